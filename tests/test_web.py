"""The local web keeps its word: every fault is what it says, as clients of the standard library see it."""

import gc
import gzip
import http.client
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import tomllib
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.web import BEHAVIOUR, PORT_BEHAVIOUR, Fault, PortFault, Web

HOST = "images.example"
PICTURE = bytes(range(256)) * 40  # 10,240 bytes; what they mean does not matter here
# Inside TLS, Python may report a TCP reset as an end without close_notify; an orderly end raises neither.
RESET = (ConnectionResetError, ssl.SSLEOFError)


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as web:
        web.serve(HOST, "/a.jpg", PICTURE)
        yield web


class Client(http.client.HTTPConnection):
    """One connection to the web, plain or TLS, under a host name."""

    def __init__(self, web: Web, *, host: str = HOST, tls: bool = False, timeout_s: float = 5.0) -> None:
        super().__init__(host, timeout=timeout_s)
        address, port = (web.https if tls else web.http).split(":")
        sock = socket.create_connection((address, int(port)), timeout=timeout_s)
        if tls:
            sock = ssl.create_default_context(cafile=str(web.ca_file)).wrap_socket(
                sock, server_hostname=host, suppress_ragged_eofs=False
            )
        self.sock = sock

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, path: str = "/a.jpg", **headers: str) -> http.client.HTTPResponse:
        self.request("GET", path, headers=headers)
        return self.getresponse()


def fetch(
    web: Web, path: str = "/a.jpg", *, host: str = HOST, tls: bool = False
) -> tuple[int, bytes, str | None]:
    """Status, body and content type."""
    with Client(web, host=host, tls=tls) as client:
        response = client.get(path)
        return response.status, response.read(), response.getheader("Content-Type")


def raw(web: Web, path: str = "/a.jpg", *, tls: bool = False) -> bytes:
    """Every byte that comes back on one connection."""
    with Client(web, tls=tls) as client:
        client.sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        got = b""
        while part := client.sock.recv(65536):
            got += part
        return got


def test_a_page_is_served_to_its_host_alone_over_http_and_https(web: Web) -> None:
    web.serve("other.example", "/a.jpg", b"other", "image/png", {"X-Robots-Tag": "noai"})
    assert fetch(web) == (200, PICTURE, "image/jpeg")
    assert fetch(web, tls=True) == (200, PICTURE, "image/jpeg")
    with Client(web, host="other.example", tls=True) as client:
        response = client.get()
        assert (response.read(), response.getheader("X-Robots-Tag")) == (b"other", "noai")
    assert fetch(web, host="stranger.example")[0] == fetch(web, "/b.jpg")[0] == 404


def test_the_host_name_counts_without_case_and_port(web: Web) -> None:
    with Client(web) as client:
        assert client.get(Host="IMAGES.Example:8080").read() == PICTURE
    assert (web.requests[0].host, web.requests[0].port) == (HOST, 8080)


def test_a_query_finds_its_own_page_first_then_that_of_the_path(web: Web) -> None:
    web.serve(HOST, "/a.jpg?w=10", b"small")
    assert fetch(web, "/a.jpg?w=10")[1] == b"small"
    assert fetch(web, "/a.jpg?w=20")[1] == PICTURE


def test_a_certificate_is_for_the_name_that_was_asked_for(web: Web) -> None:
    context = ssl.create_default_context(cafile=str(web.ca_file))
    address, port = web.https.split(":")
    with (
        socket.create_connection((address, int(port))) as sock,
        context.wrap_socket(sock, server_hostname="one.example") as secure,
    ):
        certificate = secure.getpeercert()
    assert certificate and certificate["subjectAltName"] == (("DNS", "one.example"),)


def test_a_client_that_does_not_trust_our_authority_gets_no_page(web: Web) -> None:
    address, port = web.https.split(":")
    with socket.create_connection((address, int(port))) as sock, pytest.raises(ssl.SSLCertVerificationError):
        ssl.create_default_context().wrap_socket(sock, server_hostname=HOST)
    assert web.count() == 0


def test_a_connection_is_kept_and_closed_as_the_client_asks(web: Web) -> None:
    with Client(web) as client:
        for _ in range(3):
            assert client.get().read() == PICTURE
    assert len({request.connection for request in web.requests}) == 1
    with Client(web) as client:
        response = client.get(Connection="close")
        assert response.getheader("Connection") == "close" and response.read() == PICTURE
        assert client.sock is None or client.sock.recv(1) == b""


def test_head_gets_the_head(web: Web) -> None:
    with Client(web) as client:
        client.request("HEAD", "/a.jpg")
        response = client.getresponse()
        assert (response.getheader("Content-Length"), response.read()) == (str(len(PICTURE)), b"")
        assert client.get().read() == PICTURE  # nothing was left on the wire


def test_a_folder_serves_its_files_and_nothing_outside_it(web: Web, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    (inside / "deep").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("secret")
    (inside / "link.txt").symlink_to(tmp_path / "secret.txt")
    web.folder(HOST, "/f/", inside)
    (inside / "deep" / "b c.png").write_bytes(b"late")  # read when asked for
    assert fetch(web, "/f/deep/b%20c.png") == (200, b"late", "image/png")
    for path in (
        "/f/../secret.txt",
        "/f/%2e%2e/secret.txt",
        "/f//etc/passwd",
        "/f/link.txt",
        "/f/deep",
        "/f/%00",
    ):
        assert fetch(web, path)[0] == 404, path


def test_requests_are_logged_counted_and_forgotten(web: Web) -> None:
    fetch(web, "/a.jpg?x=1")
    fetch(web, tls=True)
    first, second = web.requests
    assert (first.method, first.target, first.path, first.tls, first.port) == (
        "GET",
        "/a.jpg?x=1",
        "/a.jpg",
        False,
        80,
    )
    assert (second.tls, second.port, second.url) == (True, 443, f"https://{HOST}/a.jpg")
    assert first.header("HOST") == HOST and first.at <= second.at and first.connection != second.connection
    assert (web.count(), web.count(HOST, "/a.jpg"), web.count(HOST, "/a.jpg?x=1"), web.count("x")) == (
        2,
        2,
        1,
        0,
    )
    web.forget()
    assert web.count() == 0 and web.requests == []


def test_the_peak_is_how_many_requests_a_host_had_at_one_time(web: Web) -> None:
    web.fault(HOST, "/a.jpg", Fault.SLOW, seconds=0.2)
    threads = [threading.Thread(target=fetch, args=(web,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert web.peak(HOST) == 4 and web.peak("other.example") == 0


# Which fault is due


def test_faults_come_in_their_order_and_then_the_page(web: Web) -> None:
    web.fault(HOST, "/a.jpg", Fault.SERVER_ERROR, times=2)
    web.fault(HOST, "/a.jpg", Fault.UNAVAILABLE, times=1)
    assert [fetch(web)[0] for _ in range(5)] == [500, 500, 503, 200, 200]


def test_a_lasting_fault_is_replaced_by_the_next_and_ended_by_healing(web: Web) -> None:
    web.fault(HOST, "/a.jpg", Fault.NOT_FOUND)
    web.fault(HOST, "/a.jpg", Fault.GONE)
    assert [fetch(web)[0] for _ in range(3)] == [410, 410, 410]
    web.heal(HOST, "/a.jpg")
    assert fetch(web)[0] == 200


def test_a_fault_by_prefix_yields_to_that_of_the_path_and_leaves_other_paths_alone(web: Web) -> None:
    web.serve(HOST, "/deep/b.jpg", b"b")
    web.fault_paths(HOST, "/deep/", Fault.FORBIDDEN)
    web.fault_paths(HOST, "/deep/er/", Fault.LEGAL)
    web.fault(HOST, "/deep/c.jpg", Fault.GONE)
    paths = ("/deep/b.jpg", "/deep/er/d.jpg", "/deep/c.jpg", "/a.jpg")
    assert [fetch(web, path)[0] for path in paths] == [403, 451, 410, 200]
    web.heal(HOST)
    assert [fetch(web, path)[0] for path in paths] == [200, 404, 404, 200]


def test_every_fault_has_a_behaviour() -> None:
    assert set(BEHAVIOUR) == set(Fault)
    # One has nobody to act, the others but another certificate.
    names = ("closed", "expired", "wrong_name", "self_signed", "unknown_authority")
    assert {*PORT_BEHAVIOUR, *map(PortFault, names)} == {*PortFault}


def test_a_fault_that_lacks_its_page_fails_the_test_that_ordered_it() -> None:
    with pytest.raises(LookupError, match=r"images\.example/none\.jpg needs a page"), Web() as web:
        web.fault(HOST, "/none.jpg", Fault.GZIP)
        with pytest.raises(http.client.RemoteDisconnected):
            fetch(web, "/none.jpg")


def test_a_misspelt_option_is_an_error(web: Web) -> None:
    with pytest.raises(TypeError, match="second"):
        web.fault(HOST, "/a.jpg", Fault.SLOW, second=1)


# What the faults are


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault.NOT_FOUND, 404),
        (Fault.GONE, 410),
        (Fault.FORBIDDEN, 403),
        (Fault.UNAUTHORIZED, 401),
        (Fault.LEGAL, 451),
        (Fault.TOO_MANY, 429),
        (Fault.SERVER_ERROR, 500),
        (Fault.UNAVAILABLE, 503),
    ],
)
def test_a_status_comes_with_html_and_the_connection_lives_on(web: Web, fault: Fault, status: int) -> None:
    web.fault(HOST, "/a.jpg", fault, times=1)
    with Client(web) as client:
        response = client.get()
        assert response.status == status and b"<title>" in response.read()
        assert client.get().read() == PICTURE


def test_any_status_and_when_to_come_back_can_be_ordered(web: Web) -> None:
    web.fault(HOST, "/a.jpg", Fault.STATUS, status=418, times=1)
    web.fault(HOST, "/a.jpg", Fault.TOO_MANY, retry_after=7, times=1)
    web.fault(HOST, "/a.jpg", Fault.UNAVAILABLE, retry_after="Fri, 01 Jan 2100 00:00:00 GMT", times=1)
    with Client(web) as client:
        seen = []
        for _ in range(3):
            response = client.get()
            seen.append((response.status, response.getheader("Retry-After")))
            response.read()
    assert seen == [(418, None), (429, "7"), (503, "Fri, 01 Jan 2100 00:00:00 GMT")]


def test_slow_waits_before_the_head(web: Web) -> None:
    web.fault(HOST, "/a.jpg", Fault.SLOW, seconds=0.3)
    start = time.monotonic()
    assert fetch(web)[1] == PICTURE
    assert time.monotonic() - start >= 0.3


def test_drip_sends_the_head_at_once_and_then_single_bytes(web: Web) -> None:
    web.serve(HOST, "/a.jpg", b"abcdef")
    web.fault(HOST, "/a.jpg", Fault.DRIP, interval=0.1)
    with Client(web) as client:
        response = client.get()
        start = time.monotonic()
        parts = []
        while part := response.read1(100):
            parts.append(part)
        took_s = time.monotonic() - start
    # A busy machine may hand over two bytes together, but never early.
    assert b"".join(parts) == b"abcdef" and len(parts) >= 3 and took_s >= 0.4


def test_hang_reads_the_request_and_says_nothing(web: Web) -> None:
    web.fault(HOST, "/a.jpg", Fault.HANG)
    with Client(web, timeout_s=0.3) as client, pytest.raises(TimeoutError):
        client.get()
    assert web.count(HOST, "/a.jpg") == 1


@pytest.mark.parametrize("tls", [False, True])
def test_reset_is_a_reset(web: Web, tls: bool) -> None:
    web.fault(HOST, "/a.jpg", Fault.RESET)
    with pytest.raises(RESET):
        raw(web, tls=tls)


@pytest.mark.parametrize("tls", [False, True])
def test_reset_mid_body_comes_after_half_of_the_page(web: Web, tls: bool) -> None:
    web.fault(HOST, "/a.jpg", Fault.RESET_MID_BODY)
    with Client(web, tls=tls) as client:
        response = client.get()
        assert response.read(len(PICTURE) // 2) == PICTURE[: len(PICTURE) // 2]
        with pytest.raises(RESET):
            response.read(1)


@pytest.mark.parametrize("tls", [False, True])
def test_no_bytes_is_an_orderly_end_without_an_answer(web: Web, tls: bool) -> None:
    web.fault(HOST, "/a.jpg", Fault.NO_BYTES)
    assert raw(web, tls=tls) == b""


def test_a_bad_status_line_is_not_http(web: Web) -> None:
    web.fault(HOST, "/a.jpg", Fault.BAD_STATUS_LINE)
    with pytest.raises(http.client.BadStatusLine):
        fetch(web)


def test_a_huge_header_is_as_huge_as_ordered(web: Web) -> None:
    web.fault(HOST, "/a.jpg", Fault.HUGE_HEADER, size=200_000)
    head, _, body = raw(web).partition(b"\r\n\r\n")
    assert head.count(b"x") >= 200_000 and body == PICTURE
    with pytest.raises(http.client.LineTooLong):
        fetch(web)


@pytest.mark.parametrize("tls", [False, True])
def test_truncated_ends_before_its_content_length(web: Web, tls: bool) -> None:
    web.fault(HOST, "/a.jpg", Fault.TRUNCATED)
    with pytest.raises(http.client.IncompleteRead) as cut:
        fetch(web, tls=tls)
    assert cut.value.partial == PICTURE[: len(PICTURE) // 2] and cut.value.expected == len(PICTURE) // 2


def test_truncated_chunked_ends_before_its_last_chunk(web: Web) -> None:
    web.fault(HOST, "/a.jpg", Fault.TRUNCATED_CHUNKED)
    with pytest.raises(http.client.IncompleteRead) as cut:
        fetch(web)
    assert cut.value.partial == PICTURE


def test_the_odd_but_correct_framings_give_the_whole_page(web: Web) -> None:
    for fault in (Fault.CHUNKED, Fault.CLOSE_DELIMITED):
        web.fault(HOST, "/a.jpg", fault)
        assert fetch(web) == (200, PICTURE, "image/jpeg")
        assert b"content-length" not in raw_head(web).lower()


def raw_head(web: Web) -> bytes:
    with Client(web) as client:
        return bytes(client.get(Connection="close").headers)


def test_gzip_unpacks_to_the_page(web: Web) -> None:
    web.fault(HOST, "/a.jpg", Fault.GZIP)
    with Client(web) as client:
        response = client.get()
        assert response.getheader("Content-Encoding") == "gzip"
        assert gzip.decompress(response.read()) == PICTURE


def test_a_gzip_bomb_is_small_on_the_wire_and_large_in_memory(web: Web) -> None:
    web.fault(HOST, "/a.jpg", Fault.BOMB_GZIP, size=50_000_000)
    _, body, _ = fetch(web)
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    size, rest = 0, body
    while rest:
        size += len(unpacker.decompress(rest, 1 << 20))
        rest = unpacker.unconsumed_tail
    assert size == 50_000_000 and unpacker.eof and len(body) < size / 100


def test_endless_and_big_go_on_until_the_client_leaves(web: Web) -> None:
    for fault in (Fault.ENDLESS, Fault.BIG):
        web.fault(HOST, "/a.jpg", fault)
        with Client(web) as client:
            response = client.get()
            assert response.getheader("Content-Length") in (None, "1000000000")
            assert response.read(2_000_000).startswith(PICTURE)
    web.heal(HOST)
    assert fetch(web)[0] == 200


def test_big_can_be_as_small_as_to_end(web: Web) -> None:
    web.fault(HOST, "/a.jpg", Fault.BIG, size=100_000)
    assert fetch(web)[1] == PICTURE + bytes(100_000 - len(PICTURE))


def test_bodies_that_are_not_the_picture_they_are_called(web: Web) -> None:
    seen = {}
    for fault in (Fault.EMPTY_200, Fault.HTML_200, Fault.HTML_AS_JPEG, Fault.WRONG_TYPE):
        web.fault(HOST, "/a.jpg", fault)
        status, body, content_type = fetch(web)
        assert status == 200
        seen[fault] = (body[:9], content_type)
    assert seen == {
        Fault.EMPTY_200: (b"", "image/jpeg"),
        Fault.HTML_200: (b"<!doctype", "text/html; charset=utf-8"),
        Fault.HTML_AS_JPEG: (b"<!doctype", "image/jpeg"),
        Fault.WRONG_TYPE: (PICTURE[:9], "text/plain"),
    }


def location(web: Web, path: str = "/a.jpg", *, tls: bool = False) -> tuple[int, str | None]:
    with Client(web, tls=tls) as client:
        response = client.get(path)
        return response.status, response.getheader("Location")


def test_redirects_lead_where_they_say(web: Web) -> None:
    seen = []
    for fault, how in (
        (Fault.REDIRECT, {"to": "http://other.example/b.jpg", "status": 308}),
        (Fault.REDIRECT_LOOP, {}),
        (Fault.REDIRECT_NO_LOCATION, {}),
        (Fault.REDIRECT_TO_FILE, {}),
    ):
        web.fault(HOST, "/a.jpg", fault, **how)
        seen.append(location(web, tls=True))
    assert seen == [
        (308, "http://other.example/b.jpg"),
        (302, f"https://{HOST}/a.jpg"),
        (302, None),
        (302, "file:///etc/passwd"),
    ]


def test_a_redirect_chain_has_its_hops_and_ends_at_the_page(web: Web) -> None:
    web.fault(HOST, "/a.jpg", Fault.REDIRECT_CHAIN, hops=2)
    assert location(web) == (302, "/a.jpg?hop=1")
    web.forget()
    # urllib connects to the authority of the URL, so this one page also lives under the server's own address.
    web.serve("127.0.0.1", "/a.jpg", PICTURE)
    web.fault("127.0.0.1", "/a.jpg", Fault.REDIRECT_CHAIN, hops=2)
    with urllib.request.urlopen(f"http://{web.http}/a.jpg", timeout=5) as response:
        assert response.read() == PICTURE
    assert [request.target for request in web.requests] == ["/a.jpg", "/a.jpg?hop=1", "/a.jpg?hop=2"]
    web.fault("127.0.0.1", "/a.jpg", Fault.REDIRECT_LOOP)
    with pytest.raises(urllib.error.HTTPError, match="infinite loop") as loop:
        urllib.request.urlopen(f"http://{web.http}/a.jpg", timeout=5)
    loop.value.close()


# What is sent against the rules


def first_bytes(web: Web, fault: Fault, *, count: int = 300, **how: Any) -> bytes:
    """The first that comes of a fault; fewer where it ends before. The page is b"PAGE"."""
    web.serve(HOST, "/a.jpg", b"PAGE")
    web.fault(HOST, "/a.jpg", fault, **how)
    got = b""
    with Client(web, timeout_s=0.4) as client:
        client.sock.sendall(f"GET /a.jpg HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        with suppress(TimeoutError):
            while len(got) < count and (part := client.sock.recv(count - len(got))):
                got += part
    return got


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n"
SENT: dict[Fault, bytes] = {  # exactly
    Fault.HEAD_CUT: b"HTTP/1.1 200 OK\r\nContent-Type: ima",
    Fault.HEAD_STALL: b"HTTP/1.1 200 OK\r\nContent-Type: ima",
    Fault.HTTP_09: b"PAGE",
    Fault.HTTP_10: b"HTTP/1.0 200 OK\r\nContent-Type: image/jpeg\r\n\r\nPAGE",
    Fault.LF_ALONE: b"HTTP/1.1 200 OK\nContent-Type: image/jpeg\nContent-Length: 4\n\nPAGE",
    Fault.NUL_IN_FIELD: HEAD + b"ETag: a\0b\r\nContent-Length: 4\r\n\r\nPAGE",
    Fault.CR_IN_FIELD: HEAD + b"ETag: a\rX-Robots-Tag: all\r\nContent-Length: 4\r\n\r\nPAGE",
    Fault.FOLDED_FIELD: HEAD + b"ETag: a\r\n b\r\nContent-Length: 4\r\n\r\nPAGE",
    Fault.SPACE_BEFORE_COLON: HEAD + b"ETag : a\r\nContent-Length: 4\r\n\r\nPAGE",
    Fault.NO_COLON: HEAD + b"ETag\r\nContent-Length: 4\r\n\r\nPAGE",
    Fault.NO_NAME: HEAD + b": a\r\nContent-Length: 4\r\n\r\nPAGE",
    Fault.STALL: HEAD + b"Content-Length: 4\r\nConnection: close\r\n\r\nPA",
    Fault.TRUNCATED_CLOSE: HEAD + b"Connection: close\r\n\r\nPA",
    Fault.LENGTH_SHORT: HEAD + b"Content-Length: 2\r\n\r\nPAGE",
    Fault.LENGTH_TWICE: HEAD + b"Content-Length: 4\r\nContent-Length: 2\r\n\r\nPAGE",
    Fault.LENGTH_REPEATED: HEAD + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nPAGE",
    Fault.LENGTH_NEGATIVE: HEAD + b"Content-Length: -4\r\n\r\nPAGE",
    Fault.LENGTH_PLUS: HEAD + b"Content-Length: +4\r\n\r\nPAGE",
    Fault.LENGTH_WORD: HEAD + b"Content-Length: many\r\n\r\nPAGE",
    Fault.LENGTH_EMPTY: HEAD + b"Content-Length: \r\n\r\nPAGE",
    Fault.LENGTH_HUGE: HEAD + b"Content-Length: 1000000000000000000\r\n\r\nPAGE",
    Fault.LENGTH_OVERFLOW: HEAD + b"Content-Length: 18446744073709551620\r\n\r\nPAGE",
    Fault.LENGTH_AND_CHUNKED: HEAD
    + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nPAGE\r\n0\r\n\r\n",
    Fault.MORE_BYTES: HEAD + b"Content-Length: 4\r\n\r\nPAGE\r\nand more",
    Fault.TINY_CHUNKS: HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n1\r\nP\r\n1\r\nA\r\n1\r\nG\r\n1\r\nE\r\n0\r\n\r\n",
    Fault.TRUNCATED_CHUNK: HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nPA",
    Fault.CHUNK_SIZE_WORD: HEAD + b"Transfer-Encoding: chunked\r\n\r\nmany\r\nPAGE",
    Fault.CHUNK_SIZE_NEGATIVE: HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\nPAGE",
    Fault.CHUNK_SIZE_HUGE: HEAD + b"Transfer-Encoding: chunked\r\n\r\n7fffffffffffffff\r\nPAGE",
    Fault.CHUNK_SIZE_OVERFLOW: HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n10000000000000004\r\nPAGE\r\n0\r\n\r\n",
    Fault.CHUNK_TOO_LONG: HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nPAGE",
    Fault.TWICE_CHUNKED: HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n4\r\nPAGE\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("fault", SENT)
def test_a_short_fault_sends_just_these_bytes(web: Web, fault: Fault) -> None:
    assert first_bytes(web, fault) == SENT[fault]


@pytest.mark.parametrize(
    ("fault", "begins", "goes_on"),
    [
        (Fault.ENDLESS_STATUS_LINE, b"HTTP/1.1 200 OKOK", b"OKOKOK"),
        (Fault.ENDLESS_PROVISIONAL, b"HTTP/1.1 100 Continue\r\n\r\nHTTP", b"100 Continue\r\n\r\nHTTP"),
        (Fault.ENDLESS_FIELD, HEAD + b"X: xxx", b"xxx"),
        (Fault.ENDLESS_HEAD, HEAD + b"X: y\r\nX: y\r\n", b"X: y\r\nX"),
        (Fault.ENDLESS_EXTENSION, HEAD + b"Transfer-Encoding: chunked\r\n\r\n5;xxx", b"xxx"),
        (
            Fault.ENDLESS_TRAILERS,
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: y\r\n",
            b"X: y",
        ),
        (Fault.ENDLESS_TINY_CHUNKS, HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n1", b"1\r\nx\r\n"),
        (Fault.REDIRECT_ENDLESS, b"HTTP/1.1 302 Found\r\nLocation: /a.jpg?", b"\0\0"),
        (Fault.SLOW_PROVISIONAL, b"HTTP/1.1 102 Processing\r\n\r\nHTTP", b""),
    ],
)
def test_an_endless_fault_goes_on_until_the_client_leaves(
    web: Web, fault: Fault, begins: bytes, goes_on: bytes
) -> None:
    got = first_bytes(web, fault, count=300_000 if goes_on else 60)
    assert got.startswith(begins) and goes_on in got[-100:] and len(got) >= 54
    assert fault is Fault.SLOW_PROVISIONAL or len(got) == 300_000
    while web.open_connections:  # it noticed
        time.sleep(0.01)


def test_heads_are_as_large_as_ordered(web: Web) -> None:
    large = first_bytes(web, Fault.LARGE_HEAD, count=10**6, size=100_000).partition(b"\r\n\r\n")[0]
    assert 99_000 < len(large) < 101_000 and max(map(len, large.split(b"\r\n"))) < 1_001
    many = first_bytes(web, Fault.MANY_FIELDS, count=10**6, size=5_000).partition(b"\r\n\r\n")[0]
    assert many.count(b"\r\nX: y") == 5_000
    assert b"\x1b[31mred" in first_bytes(web, Fault.ESC_IN_FIELD)
    web.fault(HOST, "/a.jpg", Fault.HEAD_DRIP, interval=0.0)
    assert fetch(web) == (200, b"PAGE", "image/jpeg")


def test_other_protocols_are_what_they_say(web: Web) -> None:
    assert first_bytes(web, Fault.HTTP_2)[:9] == b"\0\0\x0c\x04\0\0\0\0\0"  # SETTINGS, 12 bytes, stream 0
    assert len(first_bytes(web, Fault.HTTP_2)) == 9 + 12
    assert first_bytes(web, Fault.SWITCHING).startswith(b"HTTP/1.1 101 ")
    answers = [b"HTTP/1.1 %d" % status for status in (100, 102, 103, 200)]
    assert [line for line in first_bytes(web, Fault.PROVISIONAL).split(b"\r\n") if b"HTTP/1.1" in line] == [
        line + (b" OK" if line.endswith(b"200") else b" ") for line in answers
    ]


def test_answers_that_nobody_asked_for_come_at_once_or_later(web: Web) -> None:
    for fault in (Fault.TWO_RESPONSES, Fault.LATE_RESPONSE):
        got = first_bytes(web, fault, seconds=0.05)
        assert got.count(b"HTTP/1.1 200 OK") == 2 and got.endswith(b"GIF89a, or so it seems")


def test_a_status_can_come_alone_or_with_the_page(web: Web) -> None:
    assert first_bytes(web, Fault.STATUS_ALONE, status=206) == b"HTTP/1.1 206 Partial Content\r\n\r\n"
    assert first_bytes(web, Fault.STATUS_WITH_PAGE, status=206).endswith(b"\r\n\r\nPAGE")


def test_a_part_of_a_page_can_be_as_long_as_ordered(web: Web) -> None:
    for fault in (Fault.TRUNCATED, Fault.TRUNCATED_CHUNK, Fault.TRUNCATED_CLOSE):
        assert first_bytes(web, fault, size=3).endswith(b"\nPAG")


UNPACKED = {  # what it says it is packed with, and what unpacks it
    Fault.DEFLATE: ("deflate", zlib.decompress),
    Fault.DEFLATE_BARE: ("deflate", lambda body: zlib.decompress(body, wbits=-15)),
    Fault.GZIP_TWICE: ("gzip, gzip", lambda body: gzip.decompress(gzip.decompress(body))),
    Fault.GZIP_INSIDE: ("gzip", lambda body: gzip.decompress(gzip.decompress(body))),
    Fault.GZIP_AND_MORE: ("gzip", lambda body: gzip.decompress(body.removesuffix(b"and more"))),
    Fault.GZIP_NOT: ("gzip", lambda body: body),
    Fault.BROTLI: ("br", lambda body: body),
    Fault.ENCODING_UNKNOWN: ("x-own", lambda body: body),
    Fault.TRANSFER_GZIP: (None, gzip.decompress),
}


@pytest.mark.parametrize("fault", UNPACKED)
def test_a_packed_page_is_packed_as_it_says_or_does_not(web: Web, fault: Fault) -> None:
    encoding, unpack = UNPACKED[fault]
    head, _, body = first_bytes(web, fault).partition(b"\r\n\r\n")
    said = [line[18:].decode() for line in head.split(b"\r\n") if line.startswith(b"Content-Encoding")]
    assert said == ([encoding] if encoding else []) and unpack(body) == b"PAGE"


@pytest.mark.parametrize("fault", [Fault.GZIP_CUT, Fault.GZIP_WRONG_SUM, Fault.GZIP_AND_MORE])
def test_gzip_that_is_damaged_is_damaged(web: Web, fault: Fault) -> None:
    body = first_bytes(web, fault).partition(b"\r\n\r\n")[2]
    with pytest.raises((EOFError, gzip.BadGzipFile)):
        gzip.decompress(body)


def test_gzip_of_nothing_and_in_six_layers(web: Web) -> None:
    assert gzip.decompress(first_bytes(web, Fault.GZIP_EMPTY).partition(b"\r\n\r\n")[2]) == b""
    body = first_bytes(web, Fault.GZIP_SIX_TIMES, count=2_000).partition(b"\r\n\r\n")[2]
    for _ in range(6):
        body = gzip.decompress(body)
    assert body == b"PAGE"


@pytest.mark.parametrize(("fault", "wbits"), [(Fault.BOMB_DEFLATE, 15), (Fault.BOMB_DEFLATE_BARE, -15)])
def test_bombs_come_in_zlib_too(web: Web, fault: Fault, wbits: int) -> None:
    web.fault(HOST, "/a.jpg", fault, size=5_000_000)
    _, body, _ = fetch(web)
    assert len(zlib.decompress(body, wbits=wbits)) == 5_000_000 > 100 * len(body)


def test_a_zstd_bomb_is_one_frame_of_runs(web: Web) -> None:
    web.fault(HOST, "/a.jpg", Fault.BOMB_ZSTD, size=1 << 20)
    _, body, _ = fetch(web)
    assert body[:4] == b"\x28\xb5\x2f\xfd" and len(body) == 6 + 8 * 4
    runs = [int.from_bytes(body[at : at + 3], "little") for at in range(6, len(body), 4)]
    assert sum(run >> 3 for run in runs) == 1 << 20
    assert [run >> 1 & 3 for run in runs] == [1] * 8 and [run & 1 for run in runs] == [0] * 7 + [1]


def test_pages_that_are_no_pictures_say_what_they_are(web: Web) -> None:
    seen = {}
    for fault in (Fault.JSON_200, Fault.XML_200, Fault.SVG_200, Fault.META_REFRESH):
        web.fault(HOST, "/a.jpg", fault, to="b.jpg")
        status, body, kind = fetch(web)
        seen[kind] = (status, body[:5])
    assert seen == {
        "application/json": (200, b'{"err'),
        "application/xml": (200, b"<?xml"),
        "image/svg+xml": (200, b"<svg "),
        "text/html; charset=utf-8": (200, b"<!doc"),
    }
    assert b"url=b.jpg" in fetch(web)[1]
    web.fault(HOST, "/a.jpg", Fault.WRONG_TYPE, content_type="video/mp4")
    assert fetch(web) == (200, PICTURE, "video/mp4")


# Ports


def at_port(web: Web, host: str, port: int) -> socket.socket:
    address, number = web.connect_to[f"{host}:{port}"].split(":")
    return socket.create_connection((address, int(number)), timeout=2)


def test_a_port_fault_is_for_this_port_of_this_host_alone(web: Web) -> None:
    web.port_fault("bad.example", PortFault.SILENT, port=80)
    web.port_fault("bad.example", PortFault.CLOSED)
    assert set(web.connect_to) == {"*:80", "*:443", "bad.example:80", "bad.example:443"}
    with at_port(web, "bad.example", 80) as sock:
        sock.settimeout(0.2)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: bad.example\r\n\r\n")
        with pytest.raises(TimeoutError):
            sock.recv(1)
    with pytest.raises(ConnectionRefusedError):
        at_port(web, "bad.example", 443)
    assert fetch(web)[1] == fetch(web, tls=True)[1] == PICTURE
    assert web.count("bad.example") == 0


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (PortFault.HANGS_UP, b""),
        (PortFault.SPEAKS_FIRST, b"220 mail.example ESMTP"),
        (PortFault.PLAIN, b"HTTP/1.1 400 Bad Requ"),
        (PortFault.ALERT, b"\x15\x03\x03\0\x02\x02\x28"),
        (PortFault.CUT_HANDSHAKE, b"\x16\x03\x03\0\x7a\x02\0\0\x76"),
        (PortFault.TLS_1_0, b"\x16\x03\x01\0\x2a\x02\0\0\x26\x03\x01"),
    ],
)
def test_a_port_says_this_and_no_more(web: Web, fault: PortFault, said: bytes) -> None:
    web.port_fault("bad.example", fault)
    with at_port(web, "bad.example", 443) as sock:
        if fault is not PortFault.HANGS_UP:
            sock.sendall(b"hello")
        assert sock.recv(len(said) or 1) == said


def test_a_port_that_resets_resets(web: Web) -> None:
    web.port_fault("bad.example", PortFault.RESETS)
    with pytest.raises(ConnectionResetError), at_port(web, "bad.example", 443) as sock:
        sock.recv(1)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (PortFault.EXPIRED, "certificate has expired"),
        (PortFault.WRONG_NAME, "Hostname mismatch"),
        (PortFault.SELF_SIGNED, "self-signed certificate"),
        (PortFault.UNKNOWN_AUTHORITY, "unable to get local issuer"),
        (PortFault.TLS_1_0, "UNSUPPORTED_PROTOCOL"),
        (PortFault.TLS_1_1, "UNSUPPORTED_PROTOCOL"),
    ],
)
def test_bad_tls_is_refused_for_its_own_reason_and_for_no_other(web: Web, fault: PortFault, why: str) -> None:
    web.port_fault("bad.example", fault)
    trusting = ssl.create_default_context(cafile=str(web.ca_file))
    with at_port(web, "bad.example", 443) as sock, pytest.raises(ssl.SSLError, match=why):
        trusting.wrap_socket(sock, server_hostname="bad.example")
    if fault in PORT_BEHAVIOUR:
        return
    web.serve("bad.example", "/", PICTURE)
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    with (
        at_port(web, "bad.example", 443) as sock,
        blind.wrap_socket(sock, server_hostname="bad.example") as tls,
    ):
        tls.sendall(b"GET / HTTP/1.1\r\nHost: bad.example\r\n\r\n")
        assert tls.recv(15) == b"HTTP/1.1 200 OK"


# Clients that misbehave, and the end


def test_the_web_outlives_clients_that_vanish_or_talk_nonsense(web: Web) -> None:
    web.fault(HOST, "/slow.jpg", Fault.SLOW, seconds=0.1)
    web.serve(HOST, "/slow.jpg", PICTURE * 100)
    plain, secure = ((at, int(port)) for at, port in (web.http.split(":"), web.https.split(":")))
    for address, said in (
        (plain, b""),
        (plain, b"GET /a.jpg HT"),
        (plain, b"nonsense\r\n\r\n"),
        (plain, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100_000),
        (plain, f"GET /slow.jpg HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()),
        (plain, b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nshort"),
        (secure, b""),
        (secure, b"GET / HTTP/1.1\r\nHost: plain on the TLS port\r\n\r\n"),
        (secure, b"\x16\x03\x01"),
    ):
        with socket.create_connection(address) as sock, suppress(ConnectionError):  # it may be cut off early
            sock.sendall(said)
    time.sleep(0.2)
    assert fetch(web)[1] == fetch(web, tls=True)[1] == PICTURE


def test_stopping_is_prompt_and_leaves_nothing_open() -> None:
    with Web() as web:
        ca_file = web.ca_file
        web.serve(HOST, "/a.jpg", PICTURE)
        for fault in (Fault.HANG, Fault.DRIP, Fault.BIG, Fault.ENDLESS):
            web.fault(HOST, f"/{fault}", fault)
            web.serve(HOST, f"/{fault}", PICTURE)
        clients = [Client(web, tls=tls) for tls in (False, True) for _ in range(5)]
        for client, path in zip(clients, ["/hang", "/drip", "/big", "/endless", "/a.jpg"] * 2, strict=True):
            client.request("GET", path)  # and never reads the answer
        address, port = web.https.split(":")
        silent = socket.create_connection((address, int(port)))  # a handshake that never begins
        while web.count() < len(clients):
            time.sleep(0.01)
        start = time.monotonic()
    assert time.monotonic() - start < 1 and not ca_file.exists()
    for client in clients:
        client.close()
    silent.close()
    gc.collect()  # an unclosed socket or a pending task would warn now, and a warning is an error
    assert "tests.web" not in [thread.name for thread in threading.enumerate()]


def test_the_command_serves_a_folder_and_prints_what_a_corpus_file_needs(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(PICTURE)
    command = [
        sys.executable,
        "-m",
        "tests.web",
        str(tmp_path),
        "--host",
        "one.example",
        "--host",
        "two.example",
    ]
    at = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=at, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        fetch_table = tomllib.loads("".join(process.stdout.readline() for _ in range(3)))["fetch"]
        web = Web()
        web.http, web.https = fetch_table["connect_to"]["*:80"], fetch_table["connect_to"]["*:443"]
        web.ca_file = Path(fetch_table["ca_file"])
        for host in ("one.example", "two.example"):
            assert fetch(web, host=host, tls=True) == (200, PICTURE, "image/jpeg")
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 0 and not web.ca_file.exists()
