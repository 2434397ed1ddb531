"""Runs img2dataset's downloader behind our rules. A program for img2dataset's interpreter, not for ours.

    stdin    one line: the order (JSON); then an answer a line to each question, empty for yes
    stdout   frames: the lengths of a JSON object and of a body, the object, the body

        {"ready": true}                                 img2dataset has been imported {"ask": ["url",
        "http://..."]}                  may this be asked? Of a row, and of each redirect {"ask":
        ["address", "203.0.113.7", 443]}        may this be connected to? {"place": 7, "error": "HTTP
        Error 404: ..."}    a row has ended; without an error, the body follows {"end": true}

img2dataset opens whatever URL and address it is led to, reads bodies without an end, and says only in
words what went wrong. Here Python's own audit events hold each URL and each connection until the parent,
who knows the policy, has allowed it; and bodies are read within bounds of size and time. The rest is as
img2dataset does it. This file imports nothing but the standard library until the hooks are in place, and
is run by `python -I`, which finds no module of ours.
"""

import json
import os
import re
import struct
import sys
import threading
import time
import urllib.request
from http.client import HTTPConnection, HTTPException, HTTPResponse, IncompleteRead
from importlib import import_module
from typing import Any, BinaryIO

FRAME = struct.Struct("!II")
BLOCK = 1 << 16
REFUSED = "refused by pmd: "  # then the answer that the parent gave


class Refused(Exception):
    """By the parent. No OSError: whoever connects would go on to the host's next address."""


class TooLarge(HTTPException):
    """Of a body."""


class Parent:
    """Whom we work for: takes what rows came to, and answers questions. From any thread."""

    def __init__(self, told: BinaryIO, answers: BinaryIO) -> None:
        self._told = told
        self._answers = answers
        self._lock = threading.Lock()
        self._allowed: set[tuple[Any, ...]] = set()  # addresses: few, and asked for again and again
        self.ready = False

    def tell(self, words: dict[str, Any], body: bytes = b"") -> None:
        with self._lock:
            self._tell(words, body)

    def ask(self, *question: Any) -> None:
        """Returns if the answer is yes. Raises Refused."""
        if not self.ready:  # a package looks for its newer versions while it is imported
            raise Refused(REFUSED + "too early")
        if question in self._allowed:
            return
        with self._lock:
            self._tell({"ask": question})
            answer = self._answers.readline()
        if not answer:
            os._exit(1)  # the parent is gone
        if answer != b"\n":
            raise Refused(REFUSED + answer.decode().strip())
        if question[0] == "address":
            self._allowed.add(question)

    def _tell(self, words: dict[str, Any], body: bytes = b"") -> None:
        text = json.dumps(words).encode()
        try:
            self._told.write(FRAME.pack(len(text), len(body)) + text)
            self._told.write(body)
            self._told.flush()
        except OSError:
            os._exit(1)  # the parent is gone; img2dataset would note a failed row and go on


def guard(parent: Parent) -> None:
    """From here on, ask the parent about each URL that is opened, each address connected to."""

    def hook(event: str, details: tuple[Any, ...]) -> None:
        if event == "urllib.Request":
            parent.ask("url", details[0])
        elif event == "socket.connect":
            address = details[1]
            if not (isinstance(address, tuple) and len(address) >= 2):
                raise Refused(REFUSED + "blocked_address not an internet address")
            parent.ask("address", *address[:2])

    sys.addaudithook(hook)


def bound(*, seconds: float, limit: int) -> None:
    """Read each response within so many seconds of its first byte, and so many bytes at most."""

    class Response(HTTPResponse):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._deadline = time.monotonic() + seconds

        def read(self, amt: int | None = None) -> bytes:
            if self.status == 206:  # nobody asked for a part
                raise HTTPException("HTTP Error 206: Partial Content")
            expected = self.length
            if expected is not None and expected > limit:
                raise TooLarge(f"body too large: Content-Length {expected}")
            parts: list[bytes] = []
            size = 0
            while expected is None or size < expected:
                part = self.read1(BLOCK if expected is None else min(BLOCK, expected - size))
                if not part:
                    break
                parts.append(part)
                size += len(part)
                if size > limit:
                    raise TooLarge(f"body too large: more than {limit} bytes")
                if time.monotonic() > self._deadline:
                    raise TimeoutError("timed out: the body came too slowly")
            if expected is not None and size < expected:
                raise IncompleteRead(b"".join(parts), expected - size)
            return b"".join(parts)

    HTTPConnection.response_class = Response


def honour_every_directive(downloader: Any) -> None:
    """Let img2dataset take each X-Robots-Tag that names one of its directives as a refusal.

    Its own reading overlooks what stands before or behind another directive with a colon, such as
    `noai, unavailable_after: ...`. This one also heeds what is meant for other crawlers.
    """

    def is_disallowed(headers: Any, _token: str | None, directives: set[str]) -> bool:
        said = " ".join(headers.get_all("X-Robots-Tag", []))
        return not directives.isdisjoint(re.findall("[a-z]+", said.lower()))

    assert callable(downloader.is_disallowed), "img2dataset asks it"
    downloader.is_disallowed = is_disallowed


def main() -> None:
    # img2dataset prints on standard output, which is the parent's: it gets standard error instead.
    told = os.fdopen(os.dup(1), "wb", BLOCK)
    os.dup2(2, 1)
    parent = Parent(told, sys.stdin.buffer)
    order = json.loads(sys.stdin.buffer.readline())
    guard(parent)
    bound(seconds=order["timeout_s"], limit=order["max_bytes"])
    urllib.request.HTTPRedirectHandler.max_redirections = order["redirects"]
    downloader = import_module("img2dataset.downloader")
    resizer = import_module("img2dataset.resizer")
    honour_every_directive(downloader)
    parent.ready = True
    parent.tell({"ready": True})

    class Writer:
        """Where img2dataset hands each row that has ended: to the parent, at once."""

        def __init__(self, *_: Any) -> None:
            pass

        def write(self, body: bytes | None, _key: str, _caption: None, row: dict[str, Any]) -> None:
            parent.tell({"place": row["place"], "error": row["error_message"]}, body or b"")

        def close(self) -> None:
            pass

    downloader.Downloader(
        sample_writer_class=Writer,
        # The bytes as they were served: decoding is ours.
        resizer=resizer.Resizer(
            image_size=256, resize_mode="no", resize_only_if_bigger=True, disable_all_reencoding=True
        ),
        thread_count=order["threads"],
        save_caption=False,
        extract_exif=False,
        output_folder=order["folder"],
        column_list=["place", "url"],
        timeout=order["timeout_s"],
        number_sample_per_shard=order["rows"],
        oom_shard_count=1,
        compute_hash=None,
        verify_hash_type=None,
        encode_format="jpg",
        retries=0,  # it would ask again at once, also whoever refused
        user_agent_token=order["user_agent_token"],
        disallowed_header_directives=order["directives"],
    ).download_shard((0, order["table"]))
    parent.tell({"end": True})
    os._exit(0)  # whatever thread still waits for its host


if __name__ == "__main__":
    main()
