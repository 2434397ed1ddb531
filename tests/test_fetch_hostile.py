"""Every way we know for a server to be hostile or broken, and how each must end: in its Reason, in time.

One table. Each endpoint is a host of its own; what it serves is fetched, and decoded if a body came of it.
"""

import asyncio
import email.utils
import hashlib
import io
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pmd import images
from pmd.errors import BadRequest
from pmd.fetch.client import Answer, Client
from pmd.fetch.placeholders import Placeholders
from pmd.manifest import FetchSpec, ImageSpec
from pmd.records import Reason
from tests.web import Fault, PortFault, Web

HTTP_BODIES = Path(__file__).parents[2] / "shared" / "hostile" / "http_bodies"


def photo(form: str = "JPEG", side: int = 64) -> bytes:
    pixels = random.Random(side).randbytes(side * side * 3)
    file = io.BytesIO()
    Image.frombytes("RGB", (side, side), pixels).save(file, form)
    return file.getvalue()


PHOTO = photo()
KEPT = None  # how an endpoint ends that is odd, but gives its picture


@dataclass(frozen=True)
class Endpoint:
    """A host that does something, and how asking it must end."""

    end: Reason | None
    fault: Fault | PortFault | None
    how: dict[str, Any] = field(default_factory=dict[str, Any])
    status: int | None = 200  # of the answer
    detail: str = ""  # is in the answer's detail
    https: bool = False
    body: bytes = PHOTO
    headers: dict[str, str] = field(default_factory=dict[str, str])

    def order(self, web: Web, host: str) -> str:
        """Set it up; what comes back is its URL."""
        port = 443 if self.https else 80
        web.serve(host, "/a.jpg", self.body, headers=self.headers)
        web.serve(host, "/there.jpg", PHOTO)
        if isinstance(self.fault, PortFault):
            web.port_fault(host, self.fault, port=port)
        elif self.fault is not None:
            web.fault(host, "/a.jpg", self.fault, **self.how)
        return f"{'https' if self.https else 'http'}://{host}/a.jpg"


def redirect(to: str, **how: Any) -> dict[str, Any]:
    return {"fault": Fault.REDIRECT, "how": {"to": to, **how}}


def tls(fault: PortFault, end: Reason, detail: str) -> Endpoint:
    return Endpoint(end, fault, status=None, detail=detail, https=True)


def packed(name: str, encoding: str, end: Reason) -> Endpoint:
    """A real file that broke clients before."""
    path = HTTP_BODIES / name
    body = path.read_bytes() if path.exists() else b""
    return Endpoint(end, None, body=body, headers={"Content-Encoding": encoding})


R = Reason
NO_HEAD: dict[str, Any] = {"status": None}

ENDPOINTS: dict[str, Endpoint] = {
    # Time
    "slow": Endpoint(R.TIMEOUT, Fault.SLOW, {"seconds": 30}, None, "waiting for an answer"),
    "head-drip": Endpoint(R.TIMEOUT, Fault.HEAD_DRIP, {"interval": 0.5}, None, "waiting for an answer"),
    "head-stall": Endpoint(R.TIMEOUT, Fault.HEAD_STALL, {}, None, "waiting for an answer"),
    "hang": Endpoint(R.TIMEOUT, Fault.HANG, {}, None, "waiting for an answer"),
    "drip": Endpoint(R.TIMEOUT, Fault.DRIP, {"interval": 0.05}, detail="in the body"),
    "stall": Endpoint(R.TIMEOUT, Fault.STALL, detail="in the body"),
    "silent-port": Endpoint(R.TIMEOUT, PortFault.SILENT, **NO_HEAD, detail="waiting for an answer"),
    "slow-provisional": Endpoint(R.TIMEOUT, Fault.SLOW_PROVISIONAL, {"interval": 0.05}, None),
    # The connection
    "closed-port": Endpoint(R.CONNECT_FAILED, PortFault.CLOSED, **NO_HEAD, detail="connecting"),
    "hangs-up": Endpoint(R.CONNECT_RESET, PortFault.HANGS_UP, **NO_HEAD),
    "resets": Endpoint(R.CONNECT_RESET, PortFault.RESETS, **NO_HEAD),
    "reset": Endpoint(R.CONNECT_RESET, Fault.RESET, **NO_HEAD, detail="waiting for an answer"),
    "reset-mid-body": Endpoint(R.BODY_TRUNCATED, Fault.RESET_MID_BODY),
    "no-bytes": Endpoint(R.CONNECT_RESET, Fault.NO_BYTES, **NO_HEAD),
    "head-cut": Endpoint(R.CONNECT_RESET, Fault.HEAD_CUT, **NO_HEAD),
    # The protocol
    "bad-status-line": Endpoint(R.PROTOCOL_ERROR, Fault.BAD_STATUS_LINE, **NO_HEAD),
    "endless-status-line": Endpoint(R.PROTOCOL_ERROR, Fault.ENDLESS_STATUS_LINE, **NO_HEAD),
    "http-09": Endpoint(R.PROTOCOL_ERROR, Fault.HTTP_09, **NO_HEAD),
    "http-10": Endpoint(KEPT, Fault.HTTP_10),
    "http-2": Endpoint(R.PROTOCOL_ERROR, Fault.HTTP_2, **NO_HEAD),
    "speaks-first": Endpoint(R.PROTOCOL_ERROR, PortFault.SPEAKS_FIRST, **NO_HEAD),
    "switching": Endpoint(R.HTTP_OTHER, Fault.SWITCHING, status=101),
    "provisional": Endpoint(KEPT, Fault.PROVISIONAL),
    "endless-provisional": Endpoint(R.PROTOCOL_ERROR, Fault.ENDLESS_PROVISIONAL, **NO_HEAD),
    # The head
    "huge-header": Endpoint(R.PROTOCOL_ERROR, Fault.HUGE_HEADER, {"size": 100_000}, **NO_HEAD),
    "fits-header": Endpoint(KEPT, Fault.HUGE_HEADER, {"size": 60_000}),
    "many-fields": Endpoint(R.PROTOCOL_ERROR, Fault.MANY_FIELDS, {"size": 10_000}, **NO_HEAD),
    "fits-fields": Endpoint(KEPT, Fault.MANY_FIELDS, {"size": 120}),
    "large-head": Endpoint(R.PROTOCOL_ERROR, Fault.LARGE_HEAD, {"size": 100_000}, **NO_HEAD),
    "endless-field": Endpoint(R.PROTOCOL_ERROR, Fault.ENDLESS_FIELD, **NO_HEAD),
    "endless-head": Endpoint(R.PROTOCOL_ERROR, Fault.ENDLESS_HEAD, **NO_HEAD),
    "nul-in-field": Endpoint(R.PROTOCOL_ERROR, Fault.NUL_IN_FIELD, **NO_HEAD),
    "esc-in-field": Endpoint(KEPT, Fault.ESC_IN_FIELD),
    "cr-in-field": Endpoint(R.PROTOCOL_ERROR, Fault.CR_IN_FIELD, **NO_HEAD),
    "folded-field": Endpoint(KEPT, Fault.FOLDED_FIELD),
    "space-before-colon": Endpoint(R.PROTOCOL_ERROR, Fault.SPACE_BEFORE_COLON, **NO_HEAD),
    "no-colon": Endpoint(R.PROTOCOL_ERROR, Fault.NO_COLON, **NO_HEAD),
    "no-name": Endpoint(R.PROTOCOL_ERROR, Fault.NO_NAME, **NO_HEAD),
    "lf-alone": Endpoint(KEPT, Fault.LF_ALONE),
    # The length
    "truncated": Endpoint(R.BODY_TRUNCATED, Fault.TRUNCATED),
    "length-short": Endpoint(R.BODY_TRUNCATED, Fault.LENGTH_SHORT),  # says the end marker
    "length-twice": Endpoint(R.PROTOCOL_ERROR, Fault.LENGTH_TWICE, **NO_HEAD),
    "length-repeated": Endpoint(R.PROTOCOL_ERROR, Fault.LENGTH_REPEATED, **NO_HEAD),
    "length-negative": Endpoint(R.PROTOCOL_ERROR, Fault.LENGTH_NEGATIVE, **NO_HEAD),
    "length-plus": Endpoint(R.PROTOCOL_ERROR, Fault.LENGTH_PLUS, **NO_HEAD),
    "length-word": Endpoint(R.PROTOCOL_ERROR, Fault.LENGTH_WORD, **NO_HEAD),
    "length-empty": Endpoint(R.PROTOCOL_ERROR, Fault.LENGTH_EMPTY, **NO_HEAD),
    "length-huge": Endpoint(R.BODY_LIMIT, Fault.LENGTH_HUGE),
    "length-overflow": Endpoint(R.PROTOCOL_ERROR, Fault.LENGTH_OVERFLOW, **NO_HEAD),
    "length-and-chunked": Endpoint(R.PROTOCOL_ERROR, Fault.LENGTH_AND_CHUNKED, **NO_HEAD),
    "close-delimited": Endpoint(KEPT, Fault.CLOSE_DELIMITED),
    "truncated-close": Endpoint(R.BODY_TRUNCATED, Fault.TRUNCATED_CLOSE),  # says the end marker
    "more-bytes": Endpoint(KEPT, Fault.MORE_BYTES),
    "two-responses": Endpoint(KEPT, Fault.TWO_RESPONSES),
    "late-response": Endpoint(KEPT, Fault.LATE_RESPONSE, {"seconds": 0.1}),
    "big": Endpoint(R.BODY_LIMIT, Fault.BIG),
    # Chunks
    "chunked": Endpoint(KEPT, Fault.CHUNKED),
    "tiny-chunks": Endpoint(KEPT, Fault.TINY_CHUNKS),
    "chunk-extensions": Endpoint(KEPT, Fault.CHUNK_EXTENSIONS),
    "truncated-chunked": Endpoint(R.BODY_TRUNCATED, Fault.TRUNCATED_CHUNKED),
    "truncated-chunk": Endpoint(R.BODY_TRUNCATED, Fault.TRUNCATED_CHUNK),
    "chunk-size-word": Endpoint(R.PROTOCOL_ERROR, Fault.CHUNK_SIZE_WORD),
    "chunk-size-negative": Endpoint(R.PROTOCOL_ERROR, Fault.CHUNK_SIZE_NEGATIVE),
    "chunk-size-huge": Endpoint(R.BODY_TRUNCATED, Fault.CHUNK_SIZE_HUGE),
    "chunk-size-overflow": Endpoint(R.PROTOCOL_ERROR, Fault.CHUNK_SIZE_OVERFLOW),
    "chunk-too-long": Endpoint(R.PROTOCOL_ERROR, Fault.CHUNK_TOO_LONG),
    "endless-extension": Endpoint(R.PROTOCOL_ERROR, Fault.ENDLESS_EXTENSION, detail="in the body"),
    "endless-trailers": Endpoint(R.PROTOCOL_ERROR, Fault.ENDLESS_TRAILERS, detail="in the body"),
    "endless-tiny-chunks": Endpoint(R.PROTOCOL_ERROR, Fault.ENDLESS_TINY_CHUNKS, detail="in the body"),
    "twice-chunked": Endpoint(KEPT, Fault.TWICE_CHUNKED),
    "transfer-gzip": Endpoint(R.NOT_AN_IMAGE, Fault.TRANSFER_GZIP),
    "endless": Endpoint(R.BODY_LIMIT, Fault.ENDLESS),
    # Packing
    "gzip": Endpoint(KEPT, Fault.GZIP),
    "deflate": Endpoint(KEPT, Fault.DEFLATE),
    "deflate-bare": Endpoint(KEPT, Fault.DEFLATE_BARE),
    "gzip-twice": Endpoint(R.BAD_ENCODING, Fault.GZIP_TWICE),
    "gzip-six-times": Endpoint(R.BAD_ENCODING, Fault.GZIP_SIX_TIMES),
    "gzip-inside": Endpoint(R.NOT_AN_IMAGE, Fault.GZIP_INSIDE),  # one layer, no more
    "gzip-cut": Endpoint(R.BODY_TRUNCATED, Fault.GZIP_CUT),
    "gzip-wrong-sum": Endpoint(R.BAD_ENCODING, Fault.GZIP_WRONG_SUM),
    "gzip-and-more": Endpoint(R.BAD_ENCODING, Fault.GZIP_AND_MORE),
    "gzip-not": Endpoint(R.BAD_ENCODING, Fault.GZIP_NOT),
    "gzip-empty": Endpoint(R.BODY_EMPTY, Fault.GZIP_EMPTY),
    "brotli": Endpoint(R.BAD_ENCODING, Fault.BROTLI),
    "encoding-unknown": Endpoint(R.BAD_ENCODING, Fault.ENCODING_UNKNOWN),
    "bomb-gzip": Endpoint(R.BODY_LIMIT, Fault.BOMB_GZIP, {"size": 10_000_000_000}),
    "bomb-deflate": Endpoint(R.BODY_LIMIT, Fault.BOMB_DEFLATE),
    "bomb-deflate-bare": Endpoint(R.BODY_LIMIT, Fault.BOMB_DEFLATE_BARE),
    "bomb-zstd": Endpoint(R.BAD_ENCODING, Fault.BOMB_ZSTD),
    "file-bomb-br": packed("bomb-br.bin", "br", R.BAD_ENCODING),
    "file-bomb-zstd": packed("bomb-zstd.bin", "zstd", R.BAD_ENCODING),
    "file-bomb-deflate": packed("bomb-deflate.bin", "deflate", R.BODY_LIMIT),
    "file-bomb-gzip": packed("bomb-gzip.bin", "gzip", R.BODY_LIMIT),
    "file-eof": packed("unexpected-eof.gz", "gzip", R.BODY_TRUNCATED),
    "file-crc": packed("truncated-crc-error.gz", "gzip", R.BODY_TRUNCATED),
    "file-layers": packed("html-gzip-deflate-gzip.bin", "gzip, deflate, gzip", R.BAD_ENCODING),
    "file-layers-hidden": packed("html-gzip-deflate-gzip.bin", "gzip", R.NOT_AN_IMAGE),
    # Status, with and without a body
    "204": Endpoint(R.BODY_EMPTY, Fault.STATUS_ALONE, {"status": 204}, 204),
    "204-page": Endpoint(R.BODY_EMPTY, Fault.STATUS_WITH_PAGE, {"status": 204}, 204),
    "205": Endpoint(R.BODY_EMPTY, Fault.STATUS_ALONE, {"status": 205}, 205),
    "205-page": Endpoint(R.BODY_EMPTY, Fault.STATUS_WITH_PAGE, {"status": 205}, 205),
    "206": Endpoint(R.HTTP_OTHER, Fault.STATUS_ALONE, {"status": 206}, 206),
    "206-page": Endpoint(R.HTTP_OTHER, Fault.STATUS_WITH_PAGE, {"status": 206}, 206),
    "304": Endpoint(R.HTTP_OTHER, Fault.STATUS_ALONE, {"status": 304}, 304),
    "304-page": Endpoint(R.HTTP_OTHER, Fault.STATUS_WITH_PAGE, {"status": 304}, 304),
    "200-alone": Endpoint(R.BODY_EMPTY, Fault.EMPTY_200),
    "203-page": Endpoint(KEPT, Fault.STATUS_WITH_PAGE, {"status": 203}, 203),
    "404-page": Endpoint(R.HTTP_404, Fault.STATUS_WITH_PAGE, {"status": 404}, 404),
    "500-page": Endpoint(R.HTTP_5XX, Fault.STATUS_WITH_PAGE, {"status": 500}, 500),
    "404": Endpoint(R.HTTP_404, Fault.NOT_FOUND, status=404),
    "410": Endpoint(R.HTTP_410, Fault.GONE, status=410),
    "401": Endpoint(R.HTTP_401, Fault.UNAUTHORIZED, status=401),
    "402": Endpoint(R.HTTP_402, Fault.STATUS, {"status": 402}, 402),
    "403": Endpoint(R.HTTP_403, Fault.FORBIDDEN, status=403),
    "451": Endpoint(R.HTTP_451, Fault.LEGAL, status=451),
    "500": Endpoint(R.HTTP_5XX, Fault.SERVER_ERROR, status=500),
    "429-seconds": Endpoint(R.HTTP_429, Fault.TOO_MANY, {"retry_after": 7}, 429),
    "429-date": Endpoint(R.HTTP_429, Fault.TOO_MANY, {"retry_after": "Fri, 01 Jan 2100 00:00:00 GMT"}, 429),
    "429-garbage": Endpoint(R.HTTP_429, Fault.TOO_MANY, {"retry_after": "soon, \x1b[31m"}, 429),
    "429-far": Endpoint(R.HTTP_429, Fault.TOO_MANY, {"retry_after": 10**9}, 429),
    "503-endless-number": Endpoint(R.HTTP_5XX, Fault.UNAVAILABLE, {"retry_after": "9" * 5_000}, 503),
    # The content
    "html": Endpoint(R.NOT_AN_IMAGE, Fault.HTML_200),
    "html-as-jpeg": Endpoint(R.NOT_AN_IMAGE, Fault.HTML_AS_JPEG),
    "meta-refresh": Endpoint(R.NOT_AN_IMAGE, Fault.META_REFRESH, {"to": "there.jpg"}),
    "json": Endpoint(R.NOT_AN_IMAGE, Fault.JSON_200),
    "xml": Endpoint(R.NOT_AN_IMAGE, Fault.XML_200),
    "svg": Endpoint(R.UNSUPPORTED_FORMAT, Fault.SVG_200),
    "photo-as-text": Endpoint(KEPT, Fault.WRONG_TYPE, {"content_type": "text/plain"}),
    "photo-as-html": Endpoint(KEPT, Fault.WRONG_TYPE, {"content_type": "text/html"}),
    "photo-as-json": Endpoint(KEPT, Fault.WRONG_TYPE, {"content_type": "application/json"}),
    "photo-as-svg": Endpoint(KEPT, Fault.WRONG_TYPE, {"content_type": "image/svg+xml"}),
    "photo-as-webp": Endpoint(KEPT, Fault.WRONG_TYPE, {"content_type": "image/webp"}),
    "photo-as-nothing": Endpoint(KEPT, Fault.WRONG_TYPE, {"content_type": ""}),
    "photo-as-nonsense": Endpoint(KEPT, Fault.WRONG_TYPE, {"content_type": "; charset=\x80"}),
    # Redirects
    "redirect-5": Endpoint(KEPT, Fault.REDIRECT_CHAIN, {"hops": 5}),
    "redirect-6": Endpoint(R.REDIRECT_LIMIT, Fault.REDIRECT_CHAIN, {"hops": 6}, 302),
    "redirect-loop": Endpoint(R.REDIRECT_LIMIT, Fault.REDIRECT_LOOP, status=302),
    "redirect-endless": Endpoint(R.REDIRECT_LIMIT, Fault.REDIRECT_ENDLESS, status=302),
    "redirect-relative": Endpoint(KEPT, **redirect("there.jpg")),
    "redirect-fragment": Endpoint(KEPT, **redirect("/there.jpg#part")),
    "redirect-to-https": Endpoint(KEPT, **redirect("https://redirect-to-https.example/there.jpg")),
    "redirect-to-http": Endpoint(KEPT, **redirect("http://redirect-to-http.example/there.jpg"), https=True),
    "redirect-307": Endpoint(KEPT, **redirect("there.jpg", status=307)),
    "redirect-no-location": Endpoint(R.REDIRECT_BAD, Fault.REDIRECT_NO_LOCATION, status=302),
    "300-no-location": Endpoint(R.HTTP_OTHER, Fault.STATUS, {"status": 300}, 300),
    "300-location": Endpoint(R.HTTP_OTHER, **redirect("there.jpg", status=300), status=300),
    "redirect-to-file": Endpoint(R.BAD_SCHEME, Fault.REDIRECT_TO_FILE, status=302),
    "redirect-to-data": Endpoint(R.BAD_SCHEME, **redirect("data:image/gif;base64,R0lGODlh"), status=302),
    "redirect-to-javascript": Endpoint(R.BAD_SCHEME, **redirect("javascript:alert(1)"), status=302),
    "redirect-to-ftp": Endpoint(R.BAD_SCHEME, **redirect("ftp://there.example/a.jpg"), status=302),
    "redirect-to-userinfo": Endpoint(R.REDIRECT_BAD, **redirect("http://me:word@there.example/"), status=302),
    "redirect-to-port": Endpoint(R.BLOCKED_ADDRESS, **redirect("http://8.8.8.8:25/"), **NO_HEAD),
    "redirect-to-metadata": Endpoint(R.BLOCKED_ADDRESS, **redirect("http://169.254.169.254:8/"), **NO_HEAD),
    "redirect-to-controls": Endpoint(R.REDIRECT_BAD, **redirect("http://there.example/\x01"), status=302),
    "redirect-too-long": Endpoint(R.REDIRECT_BAD, **redirect("/" + "a" * 9_000), status=302),
    "redirect-to-removed": Endpoint(R.PLACEHOLDER, **redirect("https://i.imgur.com/removed.png"), status=302),
    # TLS
    "tls-expired": tls(PortFault.EXPIRED, R.TLS_FAILED, "certificate has expired"),
    "tls-wrong-name": tls(PortFault.WRONG_NAME, R.TLS_FAILED, "Hostname mismatch"),
    "tls-self-signed": tls(PortFault.SELF_SIGNED, R.TLS_FAILED, "self-signed certificate"),
    "tls-unknown": tls(PortFault.UNKNOWN_AUTHORITY, R.TLS_FAILED, "unable to get local issuer certificate"),
    "tls-1-0": tls(PortFault.TLS_1_0, R.TLS_FAILED, "UNSUPPORTED_PROTOCOL"),
    "tls-1-1": tls(PortFault.TLS_1_1, R.TLS_FAILED, "UNSUPPORTED_PROTOCOL"),
    "tls-alert": tls(PortFault.ALERT, R.TLS_FAILED, "HANDSHAKE_FAILURE"),
    "tls-plain": tls(PortFault.PLAIN, R.TLS_FAILED, "in the TLS handshake"),
    "tls-cut": tls(PortFault.CUT_HANDSHAKE, R.CONNECT_RESET, "in the TLS handshake"),
    "tls-silent": tls(PortFault.SILENT, R.TIMEOUT, "in the TLS handshake"),
    "tls-resets": tls(PortFault.RESETS, R.CONNECT_RESET, "tls-resets.example:443"),
    "tls-hangs-up": tls(PortFault.HANGS_UP, R.CONNECT_RESET, "in the TLS handshake"),
    "tls-closed": tls(PortFault.CLOSED, R.CONNECT_FAILED, "connecting"),
}


def host_of(name: str) -> str:
    return f"{name}.example"


def present(name: str) -> bool:
    return not name.startswith("file-") or bool(ENDPOINTS[name].body)


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with Web() as web:
        for name, endpoint in ENDPOINTS.items():
            endpoint.order(web, host_of(name))
        yield web


def spec_for(web: Web, **keys: Any) -> FetchSpec:
    known: dict[str, Any] = {"retries": 0, "connect_to": web.connect_to, "max_bytes": 2_000_000}
    known["consent"] = ()  # test_fetch_consent.py
    freely = {"connections": 256, "per_host_connections": 8, "per_host_rate": 10_000}  # it is our own web
    return FetchSpec.model_validate(known | {"ca_file": str(web.ca_file)} | freely | keys)


def url_of(name: str, *, https: bool) -> str:
    return f"{'https' if https else 'http'}://{host_of(name)}/a.jpg"


def timeout_of(name: str, *, at_once: bool) -> float:
    """Short where it will be waited for to the end; longer where two hundred others want to be served."""
    return (4.0 if at_once else 0.6) if ENDPOINTS[name].end is Reason.TIMEOUT else 8.0


async def ask(web: Web, names: list[str], *, https: bool, at_once: bool) -> dict[str, Answer]:
    """All of these endpoints, all at once or each after the one before. Each ends in time."""
    times = {name: timeout_of(name, at_once=at_once) for name in names}
    async with AsyncExitStack() as stack:
        clients = {
            timeout_s: await stack.enter_async_context(Client(spec_for(web, timeout_s=timeout_s)))
            for timeout_s in {*times.values()}
        }

        async def one(name: str) -> Answer:
            url = url_of(name, https=https or ENDPOINTS[name].https)
            answer = await clients[times[name]].fetch(url)
            assert answer.seconds < times[name] + 1, (name, answer)
            return answer

        if at_once:
            return dict(zip(names, await asyncio.gather(*map(one, names)), strict=True))
        return {name: await one(name) for name in names}


def end_of(answer: Answer) -> tuple[Reason | None, int | None, str]:
    """How it ended, with what was made of the body. The last is what hashed files hold."""
    if answer.body is None:
        return answer.reason, answer.status, answer.message
    picture = images.normalise(answer.body, ImageSpec())
    if isinstance(picture, Reason):
        return picture, answer.status, ""
    return None, answer.status, picture.stored_sha256


def check(name: str, answer: Answer) -> None:
    endpoint = ENDPOINTS[name]
    reason, status, _ = end_of(answer)
    said = f"{name}: {answer.reason} {answer.status} {answer.detail}"
    assert (reason, status) == (endpoint.end, endpoint.status), said
    assert endpoint.detail in answer.detail, said
    assert answer.detail.isprintable()
    assert all(value.isprintable() for value in answer.headers.values())
    if answer.body is None:
        assert answer.detail and answer.message, said
    if endpoint.end is KEPT:
        assert answer.body == PHOTO, said


def plain_names() -> list[str]:
    """Those that are the same over TLS."""
    return [
        name
        for name, endpoint in ENDPOINTS.items()
        if present(name) and not endpoint.https and not isinstance(endpoint.fault, PortFault)
    ]


def test_every_fault_is_an_endpoint() -> None:
    assert {*Fault, *PortFault} <= {endpoint.fault for endpoint in ENDPOINTS.values()}
    assert len(ENDPOINTS) >= 60


def test_every_endpoint_ends_in_its_reason_in_time_asked_all_at_once_and_one_by_one(web: Web) -> None:
    names = [name for name in ENDPOINTS if present(name)]
    at_once = asyncio.run(ask(web, names, https=False, at_once=True))
    in_turn = asyncio.run(ask(web, names, https=False, at_once=False))
    for name in names:
        check(name, at_once[name])
        check(name, in_turn[name])
        assert end_of(at_once[name]) == end_of(in_turn[name]), name
    if absent := len(ENDPOINTS) - len(names):
        pytest.skip(f"no folder {HTTP_BODIES}: {absent} of {len(ENDPOINTS)} endpoints were left out")


def test_the_same_endpoints_end_the_same_over_tls(web: Web) -> None:
    answers = asyncio.run(ask(web, plain_names(), https=True, at_once=True))
    for name, answer in answers.items():
        check(name, answer)


def test_a_failure_of_tls_is_never_answered_by_asking_in_the_clear(web: Web) -> None:
    names = [name for name in ENDPOINTS if name.startswith("tls-")]
    web.forget()
    for _ in range(2):
        asyncio.run(ask(web, names, https=True, at_once=True))
    assert not {request.host for request in web.requests} & {host_of(name) for name in names}


# Time


async def fetch(spec: FetchSpec, *urls: str) -> list[Answer]:
    async with Client(spec) as client:
        return await asyncio.gather(*map(client.fetch, urls))


@pytest.mark.parametrize("fault", [Fault.DRIP, Fault.STALL])
def test_a_body_that_crawls_is_given_up_long_before_the_deadline(
    web: Web, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setattr("pmd.fetch.client.PACE_S", 0.4)
    web.serve("crawls.example", f"/{fault}", PHOTO * 100)  # of the stalled one much comes at once
    web.fault("crawls.example", f"/{fault}", fault, interval=0.9 if fault is Fault.DRIP else 0.0)
    (answer,) = asyncio.run(fetch(spec_for(web, timeout_s=60), f"http://crawls.example/{fault}"))
    assert answer.reason is Reason.TIMEOUT
    assert "below min_bytes_per_s" in answer.detail
    assert answer.seconds < 6


def test_a_slow_body_that_keeps_its_pace_is_waited_for(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pmd.fetch.client.PACE_S", 0.2)
    web.serve("slowly.example", "/", PHOTO[:80])
    web.fault("slowly.example", "/", Fault.DRIP, interval=0.01)
    slow, any_pace = (
        asyncio.run(fetch(spec_for(web, timeout_s=60, min_bytes_per_s=least), "http://slowly.example/"))[0]
        for least in (5, 0)
    )
    assert slow.body == any_pace.body == PHOTO[:80]


def test_a_timeout_says_what_was_waited_for(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def stuck(*_: object) -> list[Any]:
        release.wait(10)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", stuck)
    spec = spec_for(web, timeout_s=0.3, connect_to={})
    try:
        (answer,) = asyncio.run(fetch(spec, "http://stuck.example/"))
    finally:
        release.set()
    assert answer.reason is Reason.TIMEOUT
    assert "within 0.3 s: looking up the name, at http://stuck.example/" in answer.detail


def test_a_date_is_waited_for_and_a_far_one_is_not(web: Web) -> None:
    begun = datetime.now(UTC)
    soon = email.utils.format_datetime(begun + timedelta(seconds=2), usegmt=True)  # cut to whole seconds
    web.serve("dates.example", "/soon", PHOTO)
    web.fault("dates.example", "/soon", Fault.UNAVAILABLE, times=1, retry_after=soon)
    far = email.utils.format_datetime(begun + timedelta(hours=2), usegmt=True)
    web.fault("far.example", "/far", Fault.TOO_MANY, retry_after=far)
    web.forget()
    urls = ("http://dates.example/soon", "http://far.example/far")
    soon_after, far_off = asyncio.run(fetch(spec_for(web, retries=1), *urls))
    first, second = (request.at for request in web.requests if request.path == "/soon")
    assert soon_after.body == PHOTO and second - first > 0.9
    assert (far_off.reason, far_off.attempts) == (Reason.HTTP_429, 1)


# Bodies

FRAMINGS = (Fault.TRUNCATED, Fault.TRUNCATED_CHUNK, Fault.TRUNCATED_CLOSE)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_picture_cut_anywhere_is_never_taken_for_whole(web: Web, form: str) -> None:
    whole = photo(form, side=24)
    picture = images.normalise(whole, ImageSpec())
    assert not isinstance(picture, Reason)
    cuts = {*range(0, len(whole), max(1, len(whole) // 60)), *range(len(whole) - 12, len(whole))}
    urls: list[str] = []
    for framing in FRAMINGS:
        for cut in sorted(cuts):
            path = f"/{form}-{framing}-{cut}"
            web.serve("cut.example", path, whole)
            web.fault("cut.example", path, framing, size=cut)
            urls.append(f"http://cut.example{path}")
    spec = spec_for(web, per_host_connections=16)
    kept = 0
    for url, answer in zip(urls, asyncio.run(fetch(spec, *urls)), strict=True):
        reason, _, stored = end_of(answer)
        if reason is None:
            kept += 1
            assert stored == picture.stored_sha256, url
            assert Fault.TRUNCATED_CLOSE in url, "a framing that tells"
        else:
            assert reason in (Reason.BODY_TRUNCATED, Reason.BODY_EMPTY, Reason.NOT_AN_IMAGE), (url, reason)
    assert kept <= 2  # all that makes pixels was there
    web.heal("cut.example")


@pytest.mark.parametrize("fault", [Fault.MORE_BYTES, Fault.TWO_RESPONSES, Fault.LATE_RESPONSE])
def test_an_answer_that_nobody_asked_for_answers_no_later_request(fault: Fault) -> None:
    async def one_after_the_other(web: Web) -> None:
        async with Client(spec_for(web)) as client:
            first = await client.fetch("http://odd.example/")
            async with asyncio.timeout(3):  # an idle connection is kept for longer
                while web.open_connections:
                    await asyncio.sleep(0.01)
            second = await client.fetch("http://odd.example/next")
        assert (first.body, second.body) == (PHOTO, PHOTO[::-1])

    with Web() as web:
        web.serve("odd.example", "/", PHOTO)
        web.serve("odd.example", "/next", PHOTO[::-1])
        web.fault("odd.example", "/", fault, seconds=0.05)
        asyncio.run(one_after_the_other(web))


BOMBS = (
    *("bomb-gzip", "bomb-deflate", "bomb-deflate-bare", "bomb-zstd", "endless", "big", "endless-tiny-chunks"),
    *("endless-head", "endless-field", "endless-provisional", "endless-extension", "endless-trailers"),
    *("redirect-endless", "gzip-six-times", "length-huge"),
    *(name for name in ENDPOINTS if name.startswith("file-") and present(name)),
)

IN_OWN_PROCESS = """
import asyncio, re, sys
from pathlib import Path
from pmd.fetch.client import Client
from pmd.manifest import FetchSpec

def peak():  # not ru_maxrss: a process begins with that of the one that started it
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

async def main(spec, first, *urls):
    async with Client(spec) as client:
        assert (await client.fetch(first)).body
        before = peak()
        for url in urls:
            reason = (await client.fetch(url)).reason  # its body goes
            print(f"{peak() - before:.1f} MiB after {url}, {reason}", file=sys.stderr)
        print(peak() - before)

asyncio.run(main(FetchSpec.model_validate_json(sys.argv[1]), *sys.argv[2:]))
"""


def test_all_bombs_together_cost_little_memory(web: Web) -> None:
    spec = spec_for(web, max_bytes=20_000_000, timeout_s=30)
    urls = [url_of(name, https=https) for https in (False, True) for name in ("gzip", *BOMBS)]
    command = [sys.executable, "-c", IN_OWN_PROCESS, spec.model_dump_json(), *urls]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 32, done.stderr


# What is sent


def test_neither_proxies_nor_passwords_are_taken_from_the_environment(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as canary:
        proxy = f"http://127.0.0.1:{canary.getsockname()[1]}"
        for name in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy"):
            monkeypatch.setenv(name, proxy)
            monkeypatch.setenv(name.upper(), proxy)
        monkeypatch.delenv("no_proxy", raising=False)
        netrc = tmp_path / "netrc"
        netrc.write_text("default login me password secret\n")
        monkeypatch.setenv("NETRC", str(netrc))
        web.serve("direct.example", "/", PHOTO)
        web.forget()
        urls = ("http://direct.example/", "https://direct.example/")
        assert [answer.body for answer in asyncio.run(fetch(spec_for(web), *urls))] == [PHOTO] * 2
        assert all(request.header("Authorization") is None for request in web.requests)
        canary.setblocking(False)
        with pytest.raises(BlockingIOError):
            canary.accept()


def test_a_contact_goes_behind_our_name(web: Web) -> None:
    web.serve("contact.example", "/", PHOTO)
    web.forget()
    spec = spec_for(web, user_agent="someone/1.0", contact="https://example.org/crawler")
    asyncio.run(fetch(spec, "http://contact.example/"))
    assert web.requests[0].header("User-Agent") == "someone/1.0 (+https://example.org/crawler)"


@pytest.mark.parametrize("contact", ["a\r\nCookie: 1", "caf\xe9@example.org", "x) (y", "back\\slash"])
def test_a_contact_that_cannot_be_sent_is_a_bad_request(contact: str) -> None:
    with pytest.raises(BadRequest, match="contact"):
        Client(FetchSpec(contact=contact))


# Placeholders


def test_a_known_placeholder_is_not_asked_for(web: Web) -> None:
    web.forget()
    answers = asyncio.run(
        fetch(spec_for(web), "https://i.imgur.com/removed.png", url_of("redirect-to-removed", https=True))
    )
    assert [answer.reason for answer in answers] == [Reason.PLACEHOLDER] * 2
    assert [answer.message for answer in answers] == ["a picture that says that there is none"] * 2
    assert {request.host for request in web.requests} == {"redirect-to-removed.example"}


def test_a_placeholder_is_known_by_its_bytes(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    file = f"""
        [[placeholder]]
        name = "a test"
        bodies = ["md5:{hashlib.md5(PHOTO).hexdigest()}"]
    """
    monkeypatch.setattr("pmd.fetch.client.known_placeholders", lambda: Placeholders.read(file.encode()))
    web.serve("bytes.example", "/", PHOTO)
    web.serve("bytes.example", "/other", PHOTO + b"x")
    gone, other = asyncio.run(fetch(spec_for(web), "http://bytes.example/", "http://bytes.example/other"))
    assert (gone.reason, gone.status, gone.final_url) == (Reason.PLACEHOLDER, 200, "http://bytes.example/")
    assert "a test" in gone.detail
    assert other.body == PHOTO + b"x"
