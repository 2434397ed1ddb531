"""Fetching from a web that does its worst: every end is a Reason, in time, in bounds, from allowed places."""

import asyncio
import gzip
import os
import resource
import socket
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trustme

from pmd.errors import BadRequest, PmdError
from pmd.fetch.address import AddressPolicy, BlockedAddress, open_decided
from pmd.fetch.client import Answer, Client
from pmd.fetch.url import BadUrl, follow, read_url
from pmd.manifest import FetchSpec
from pmd.records import Reason
from tests.web import Fault, Web

BODY = bytes(range(256)) * 120  # 30 KB


@pytest.fixture(scope="module")
def shared_web() -> Iterator[Web]:
    with Web() as web:
        yield web


@pytest.fixture
def web(shared_web: Web) -> Web:
    """The web with an empty log. Each test has paths of its own."""
    shared_web.forget()
    return shared_web


def spec_for(web: Web, **keys: Any) -> FetchSpec:
    known: dict[str, Any] = {"timeout_s": 5, "retries": 0, "connect_to": web.connect_to, "consent": ()}
    freely = {"per_host_rate": 10_000, "per_host_connections": 8}  # it is our own web
    return FetchSpec.model_validate(known | {"ca_file": str(web.ca_file)} | freely | keys)


def fetch(*urls: str, spec: FetchSpec) -> list[Answer]:
    """All at once, by one client."""

    async def together() -> list[Answer]:
        async with Client(spec) as client:
            return await asyncio.gather(*(client.fetch(url) for url in urls))

    return asyncio.run(together())


def fetch_in_turn(*urls: str, spec: FetchSpec) -> list[Answer]:
    async def in_turn() -> list[Answer]:
        async with Client(spec) as client:
            return [await client.fetch(url) for url in urls]

    return asyncio.run(in_turn())


# How it ends. What hostile servers do is a table of its own: test_fetch_hostile.py


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (201, "http_other"),
        (206, "http_other"),  # nobody asked for a part
        (300, "http_other"),
        (402, "http_402"),
        (418, "http_4xx"),
        (499, "http_4xx"),
        (502, "http_5xx"),
        (599, "http_5xx"),
        (999, "http_other"),
    ],
)
def test_every_status_has_its_reason(web: Web, status: int, reason: str) -> None:
    web.fault("status.example", f"/{status}", Fault.STATUS, status=status)
    (answer,) = fetch(f"http://status.example/{status}", spec=spec_for(web))
    assert (answer.reason, answer.status) == (reason, status)
    assert answer.message == f"HTTP {status}"


def test_a_message_tells_nothing_of_the_run(web: Web) -> None:
    for host in ("one.example", "two.example"):
        web.fault(host, "/", Fault.HANG)
        web.fault(host, "/reset", Fault.RESET)
    spec = spec_for(web, timeout_s=0.2)
    one, two = (fetch(f"http://{host}.example/", spec=spec)[0] for host in ("one", "two"))
    assert one.message == two.message == "not complete in time"
    assert "one.example" in one.detail


def test_nothing_listens_nothing_resolves(web: Web) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = f"127.0.0.1:{listener.getsockname()[1]}"
    spec = spec_for(web, connect_to={"closed.example": closed})
    nobody, nowhere = fetch("http://closed.example/", "http://no-such-name.invalid/", spec=spec)
    assert nobody.reason is Reason.CONNECT_FAILED
    assert nowhere.reason is Reason.DNS_FAILED


def answer_to(*parts: bytes, scheme: str = "http") -> Answer:
    """What comes of a server that sends these bytes, whatever it is asked, a moment apart, and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        await reader.read(1)
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.02)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def ask() -> Answer:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        spec = FetchSpec(
            timeout_s=2, retries=0, connect_to={"*": f"{host}:{port}"}, max_bytes=100_000, consent=()
        )
        async with server, Client(spec) as client:
            answer = await client.fetch(f"{scheme}://raw.example/")
        await asyncio.gather(*(task for task in serving if task))
        return answer

    serving: set[asyncio.Task[Any] | None] = set()
    return asyncio.run(ask())


def test_a_request_on_a_connection_that_was_closed_meanwhile_is_sent_again_and_counted() -> None:
    """One on a fresh connection is not: that is the host's failure, and for its retries to say."""
    received = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        serving.add(asyncio.current_task())
        for number in range(2):  # the second request of a connection finds it closed
            path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
            received += 1
            if number or path == b"/never":
                break
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1")
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def ask() -> tuple[list[Answer], int]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        spec = FetchSpec(retries=0, connect_to={"*": f"{host}:{port}"}, consent=(), per_host_rate=1e6)
        async with server, Client(spec) as client:
            answers = [
                await client.fetch(f"http://raw.example{path}") for path in ("/1", "/2", "/3", "/never")
            ]
            return answers, client.requests

    serving: set[asyncio.Task[Any] | None] = set()
    answers, sent = asyncio.run(ask())
    assert [answer.reason for answer in answers] == [None, None, None, Reason.CONNECT_RESET]
    assert [answer.attempts for answer in answers] == [1, 1, 1, 1]
    assert sent == received == 1 + 2 + 2 + 2


OK, CHUNKED = b"HTTP/1.1 200 OK\r\n", b"Transfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n"


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([OK + b"Content-Length: 3\r\n\r\nabc"], None),
        ([OK + b"Content-Length: 3\r\n", b"\r\na", b"bc and more"], None),
        ([b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + OK + b"\r\nabc"], None),
        ([OK + CHUNKED, b"3;x=y\r\nabc\r\n", b"0\r\nTrailer: 1\r\n\r\n"], None),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], "body_empty"),
        ([b"HTTP/1.1 304 Not Modified\r\n\r\n"], "http_other"),
        ([b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"], "http_other"),
        ([b""], "connect_reset"),
        ([b"HTTP/1.1 200 OK\r\nContent-Ty"], "connect_reset"),
        ([b"abc"], "protocol_error"),
        ([b"HTTP/2 200\r\n\r\nabc"], "protocol_error"),
        ([b"HTTP/1.1 99999 OK\r\n\r\n"], "protocol_error"),
        ([OK + b"Content-Length: -1\r\n\r\nabc"], "protocol_error"),
        ([OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"], "protocol_error"),
        ([OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc"], "protocol_error"),
        ([OK + b"X: a\0b\r\n\r\nabc"], "protocol_error"),
        ([OK + b"X: 1\r\n" * 10_000 + b"\r\nabc"], "protocol_error"),
        ([OK + b"X: " + b"1" * 70_000 + b"\r\n\r\nabc"], "protocol_error"),
        ([OK + CHUNKED, b"no number\r\n"], "protocol_error"),
        ([OK + CHUNKED, b"3\r\nabcdefgh\r\n"], "protocol_error"),
        ([OK + CHUNKED, b"-1\r\n"], "protocol_error"),
        ([OK + CHUNKED, b"ffff\r\nab"], "body_truncated"),
        ([OK + b"Content-Length: 10\r\n\r\n", b"abc"], "body_truncated"),
        ([b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\n\r\n"], "redirect_bad"),
        ([b"HTTP/1.1 302 Found\r\nLocation: http://a:b@c.example/\r\n\r\n"], "redirect_bad"),
    ],
)
def test_what_is_sent_against_the_rules_ends_at_once(parts: list[bytes], reason: str | None) -> None:
    answer = answer_to(*parts)
    assert answer.reason == reason, answer.detail
    assert answer.seconds < 1
    assert reason or answer.body in (b"abc", b"01234abc")


def test_a_machine_out_of_files_is_not_the_fault_of_its_rows(web: Web) -> None:
    async def with_no_file_left() -> None:
        async with Client(spec_for(web)) as client:
            free = os.dup(0)  # the lowest number there is
            os.close(free)
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
            try:
                with pytest.raises(PmdError, match="ulimit"):
                    await client.fetch("http://files.example/")
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    asyncio.run(with_no_file_left())


# Trying again


def test_a_transient_failure_is_tried_again_and_a_final_one_is_not(web: Web) -> None:
    web.serve("again.example", "/flaky", BODY)
    web.fault("again.example", "/flaky", Fault.SERVER_ERROR, times=1)
    web.fault("again.example", "/flaky", Fault.TRUNCATED, times=1)
    spec = spec_for(web, retries=2)
    flaky, gone = fetch("http://again.example/flaky", "http://again.example/gone", spec=spec)
    assert (flaky.body, flaky.attempts) == (BODY, 3)
    assert (gone.reason, gone.attempts) == (Reason.HTTP_404, 1)
    assert web.count("again.example", "/gone") == 1

    web.fault("again.example", "/down", Fault.UNAVAILABLE)
    (down,) = fetch("http://again.example/down", spec=spec)
    assert (down.reason, down.status, down.attempts) == (Reason.HTTP_5XX, 503, 3)


def test_retry_after_is_waited_for(web: Web) -> None:
    web.serve("limits.example", "/", BODY)
    web.fault("limits.example", "/", Fault.TOO_MANY, times=1, retry_after=1)
    (answer,) = fetch("http://limits.example/", spec=spec_for(web, retries=1))
    first, second = (request.at for request in web.requests)
    assert answer.body == BODY
    assert 1.0 <= second - first < 2.5


def test_who_asks_to_be_left_alone_for_long_is_left_alone(web: Web) -> None:
    web.fault("limits.example", "/long", Fault.TOO_MANY, retry_after=3600)
    (answer,) = fetch("http://limits.example/long", spec=spec_for(web, retries=5))
    assert (answer.reason, answer.attempts, web.count()) == (Reason.HTTP_429, 1, 1)
    assert answer.headers["retry-after"] == "3600"


def test_each_attempt_has_its_own_deadline(web: Web) -> None:
    web.serve("slow.example", "/", BODY)
    web.fault("slow.example", "/", Fault.HANG, times=2)
    (answer,) = fetch("http://slow.example/", spec=spec_for(web, retries=2, timeout_s=0.4))
    assert (answer.body, answer.attempts) == (BODY, 3)


def test_all_hops_share_one_deadline(web: Web) -> None:
    slowly = [b""] * 30  # 0.6 s; each hop leads one folder deeper
    answer = answer_to(*slowly, b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: deeper/\r\n\r\n")
    assert answer.reason is Reason.TIMEOUT  # not REDIRECT_LIMIT: 2 s are over in the fourth of six hops
    assert answer.final_url.startswith("http://raw.example/deeper/")
    assert answer.seconds < 3


# Slots


def test_connections_to_a_host_are_counted_and_waiting_costs_no_time(web: Web) -> None:
    urls = [f"http://busy.example/{number}" for number in range(18)]
    for number in range(18):
        web.serve("busy.example", f"/{number}", BODY)
    web.fault_paths("busy.example", "/", Fault.SLOW, seconds=0.1)
    answers = fetch(*urls, spec=spec_for(web, per_host_connections=3, timeout_s=0.4))
    assert [answer.reason for answer in answers] == [None] * 18  # the last waited for longer than timeout_s
    assert max(answer.seconds for answer in answers) > 0.4
    assert web.peak("busy.example") == 3


def test_connections_are_counted_over_all_hosts(web: Web) -> None:
    hosts = [f"h{number}.example" for number in range(10)]
    for host in hosts:
        web.serve(host, "/", BODY)
        web.fault(host, "/", Fault.SLOW, seconds=0.1)
    begun = time.monotonic()
    answers = fetch(*(f"http://{host}/" for host in hosts), spec=spec_for(web, connections=2, timeout_s=0.4))
    assert all(answer.body == BODY for answer in answers)
    assert time.monotonic() - begun >= 0.5


def test_hosts_that_redirect_to_each_other_do_not_block_each_other(web: Web) -> None:
    for here, there in (("ping.example", "pong.example"), ("pong.example", "ping.example")):
        for number in range(20):
            web.fault(here, f"/{number}", Fault.REDIRECT, to=f"http://{there}/at{number}")
            web.serve(there, f"/at{number}", BODY)
    urls = [f"http://{host}.example/{number}" for number in range(20) for host in ("ping", "pong")]
    answers = fetch(*urls, spec=spec_for(web, per_host_connections=1))
    assert all(answer.body == BODY for answer in answers)


def test_a_connection_is_used_again(web: Web) -> None:
    for scheme in ("http", "https"):
        web.forget()
        web.serve("kept.example", "/", BODY)
        fetch_in_turn(*[f"{scheme}://kept.example/"] * 5, spec=spec_for(web))
        assert len({request.connection for request in web.requests}) == 1


# What is sent


def test_nothing_is_sent_that_was_not_asked_for(web: Web) -> None:
    web.serve("tracks.example", "/", BODY, headers={"Set-Cookie": "id=1; Path=/"})
    web.fault("tracks.example", "/r", Fault.REDIRECT, to="https://tracks.example/")
    fetch_in_turn(
        "http://tracks.example/r", "http://tracks.example/", spec=spec_for(web, user_agent="someone/1.0")
    )
    assert len(web.requests) == 3
    for request in web.requests:
        assert {name.lower() for name, _ in request.headers} == {
            "host",
            "user-agent",
            "accept",
            "accept-encoding",
        }
        assert request.header("User-Agent") == "someone/1.0"
        assert request.header("Accept-Encoding") == "identity"


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://as.example", "/"),
        ("http://as.example?q=1#part", "/?q=1"),
        (
            "  http://as.example/a%2Fb%2fc+d%zz/../e//f;x=[1]?a=b&&c='\n",
            "/a%2Fb%2fc+d%zz/../e//f;x=[1]?a=b&&c='",
        ),
        ("http://as.example/two words/ä.jpg?q=日", "/two%20words/%C3%A4.jpg?q=%E6%97%A5"),
        ("HTTP://AS.Example:80/A", "/A"),
        ('http://as.example/<"{|}\\^`>', "/%3C%22%7B%7C%7D%5C%5E%60%3E"),
        ("http://as.example/a@b:c", "/a@b:c"),
    ],
)
def test_a_url_is_asked_as_it_is_written(web: Web, url: str, sent: str) -> None:
    fetch(url, spec=spec_for(web))
    (request,) = web.requests
    assert (request.host, request.port, request.target) == ("as.example", 80, sent)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "input_bad_url"),
        ("images.example/a.jpg", "input_bad_url"),
        ("//images.example/a.jpg", "input_bad_url"),
        ("/etc/passwd", "input_bad_url"),
        ("http:images.example/a.jpg", "input_bad_url"),
        ("http:///a.jpg", "input_bad_url"),
        ("http://:80/", "input_bad_url"),
        ("http://user@images.example/", "input_bad_url"),
        ("http://user:secret@images.example/", "input_bad_url"),
        ("http://images.example\\@127.0.0.1/", "input_bad_url"),
        ("http://127.0.0.1\\.images.example/", "input_bad_url"),
        ("http://images.example:99999/", "input_bad_url"),
        ("http://images.example:0/", "input_bad_url"),
        ("http://images.example:80:80/", "input_bad_url"),
        ("http://images.example:\uff18\uff10/", "input_bad_url"),  # digits, but not ASCII
        ("http://ima ges.example/", "input_bad_url"),
        ("http://images..example/", "input_bad_url"),
        ("http://-images.example/", "input_bad_url"),
        ("http://images%2eexample/", "input_bad_url"),
        (f"http://{'a' * 64}.example/", "input_bad_url"),
        (f"http://{'a.' * 130}example/", "input_bad_url"),
        ("http://images.example/a\r\nX-Header: 1", "input_bad_url"),
        ("http://images.example/\0", "input_bad_url"),
        ("http://images.example/" + "a" * 9_000, "input_bad_url"),
        ("http://images.example/\ud800", "input_bad_url"),
        ("http://[::1", "input_bad_url"),
        ("http://[fe80::1%25lo]/", "input_bad_url"),
        ("http://a℀b.example/", "input_bad_url"),  # becomes a/cb.example
        ("http://2130706433/", "input_bad_url"),
        ("http://0x7f.1/", "input_bad_url"),
        ("http://0x7f000001/", "input_bad_url"),
        ("http://017700000001/", "input_bad_url"),
        ("http://0177.0.0.1/", "input_bad_url"),
        ("http://127.1/", "input_bad_url"),
        ("http://127.0.0.1./", "input_bad_url"),
        ("http://1.2.3.4.5/", "input_bad_url"),
        ("http://0x/", "input_bad_url"),
        ("file:///etc/passwd", "bad_scheme"),
        ("ftp://images.example/", "bad_scheme"),
        ("data:image/gif;base64,R0lGODlh", "bad_scheme"),
        ("javascript:alert(1)", "bad_scheme"),
        ("gopher://images.example/", "bad_scheme"),
        ("blob:http://images.example/1", "bad_scheme"),
    ],
)
def test_what_is_no_url_is_not_asked(web: Web, url: str, reason: str) -> None:
    (answer,) = fetch(url, spec=spec_for(web))
    assert (answer.reason, answer.status, web.count()) == (reason, None, 0)
    assert answer.message


def test_hosts_in_other_scripts_become_ascii() -> None:
    assert str(read_url("https://Bücher.example/ä")) == "https://xn--bcher-kva.example/%C3%A4"
    assert str(read_url("https://①②⑦.0.0.1/")) == "https://127.0.0.1/"
    assert str(read_url("http://[2001:DB8:0::1]:8080/")) == "http://[2001:db8::1]:8080/"
    assert str(read_url("http://my_bucket.images.example./")) == "http://my_bucket.images.example./"


def test_a_redirect_leads_where_a_browser_would_go() -> None:
    here = read_url("https://images.example/a/b.jpg?q=1")
    for location, there in {
        "c.jpg": "https://images.example/a/c.jpg",
        "../c.jpg#part": "https://images.example/c.jpg",
        "//cdn.example/c.jpg": "https://cdn.example/c.jpg",
        "?q=2": "https://images.example/a/b.jpg?q=2",
        "http://cdn.example": "http://cdn.example/",
        " /two words": "https://images.example/two%20words",
        "/\udcff": "https://images.example/%FF",  # a byte of the header that is no UTF-8
    }.items():
        assert str(follow(here, location)) == there
    for location in ("http://", "http://[", "http://user@cdn.example/", "file:///etc/passwd"):
        with pytest.raises(BadUrl):
            follow(here, location)


def test_five_redirects_are_followed_and_no_more(web: Web) -> None:
    for hops in (5, 6):
        web.serve("chain.example", f"/{hops}", BODY)
        web.fault("chain.example", f"/{hops}", Fault.REDIRECT_CHAIN, hops=hops)
    five, six = fetch("http://chain.example/5", "http://chain.example/6", spec=spec_for(web))
    assert five.body == BODY
    assert five.final_url == "http://chain.example/5?hop=5"
    assert six.reason is Reason.REDIRECT_LIMIT


# The body


@pytest.mark.parametrize(
    ("encoding", "packed", "reason"),
    [
        ("identity", BODY, None),
        ("gzip", gzip.compress(BODY), None),
        ("X-GZIP", gzip.compress(BODY), None),
        ("deflate", zlib.compress(BODY), None),
        ("deflate", zlib.compressobj(wbits=-15).compress(b"") + zlib.compress(BODY)[2:-4], None),
        ("gzip", gzip.compress(b"", mtime=0), "body_empty"),
        ("gzip", gzip.compress(BODY)[:-9], "body_truncated"),
        ("gzip", gzip.compress(BODY) + b"more", "bad_encoding"),
        ("gzip", BODY, "bad_encoding"),
        ("gzip", gzip.compress(BODY)[:-8] + bytes(8), "bad_encoding"),  # its checksum
        ("br", BODY, "bad_encoding"),
        ("zstd", BODY, "bad_encoding"),
        ("gzip, gzip", gzip.compress(gzip.compress(BODY)), "bad_encoding"),
        ("gzip", gzip.compress(bytes(10_000_000)), "body_limit"),
        ("deflate", zlib.compress(bytes(10_000_000)), "body_limit"),
    ],
)
def test_one_layer_of_gzip_or_deflate_is_unpacked(
    web: Web, encoding: str, packed: bytes, reason: str | None
) -> None:
    web.serve("packed.example", "/", packed, headers={"Content-Encoding": encoding})
    (answer,) = fetch("http://packed.example/", spec=spec_for(web, max_bytes=1_000_000))
    assert answer.reason == reason, answer.detail
    assert reason or answer.body == BODY


@pytest.mark.parametrize("fault", [Fault.BOMB_GZIP, Fault.ENDLESS, Fault.BIG])
def test_an_enormous_body_costs_little_memory(web: Web, fault: Fault) -> None:
    web.fault("huge.example", f"/{fault}", fault)
    spec = spec_for(web, max_bytes=2_000_000)
    fetch("http://huge.example/", spec=spec)  # what is loaded once
    tracemalloc.start()
    try:
        (answer,) = fetch(f"http://huge.example/{fault}", spec=spec)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.reason is Reason.BODY_LIMIT
    assert peak < 24_000_000  # the server's own blocks of 4 MB are among it


def test_the_limit_is_inclusive(web: Web) -> None:
    web.serve("limit.example", "/", BODY)
    for fault in (None, Fault.CHUNKED, Fault.GZIP):
        if fault:
            web.fault("limit.example", "/", fault)
        (fits,) = fetch("http://limit.example/", spec=spec_for(web, max_bytes=len(BODY)))
        (over,) = fetch("http://limit.example/", spec=spec_for(web, max_bytes=len(BODY) - 1))
        assert (fits.body, over.reason) == (BODY, Reason.BODY_LIMIT)


def test_a_few_headers_are_kept_and_made_harmless(web: Web) -> None:
    headers = {"ETag": "a\x1b[31mb", "Last-Modified": "x" * 9_000, "X-Robots-Tag": "noai", "X-Other": "no"}
    web.serve("head.example", "/", BODY, headers=headers)
    (answer,) = fetch("http://head.example/", spec=spec_for(web))
    assert answer.headers == {
        "content-type": "image/jpeg",
        "content-length": str(len(BODY)),
        "etag": "a [31mb",
        "last-modified": "x" * 2_000,
        "x-robots-tag": "noai",
    }


# TLS


def test_an_untrusted_certificate_is_refused_and_nothing_is_asked_in_the_clear(
    web: Web, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    for ca_file in (str(other), None):  # None: the system's
        (answer,) = fetch("https://secure.example/", spec=spec_for(web, ca_file=ca_file, retries=2))
        assert (answer.reason, answer.attempts) == (Reason.TLS_FAILED, 1), answer.detail
    assert web.count() == 0


def test_a_server_that_speaks_no_tls_is_refused() -> None:
    assert answer_to(b"HTTP/1.1 400 Bad Request\r\n\r\n", scheme="https").reason is Reason.TLS_FAILED


def test_https_is_asked_by_the_name_of_the_url(web: Web) -> None:
    web.serve("secure.example", "/", BODY)
    (answer,) = fetch("https://secure.example/", spec=spec_for(web))
    assert answer.body == BODY
    assert web.requests[0].tls


# Addresses

PUBLIC = [
    *("8.8.8.8", "172.15.255.255", "100.63.255.255", "223.255.255.255", "2606:4700::1111", "2a00::1"),
    *("::ffff:8.8.8.8", "64:ff9b::808:808"),
]
NOT_PUBLIC = [
    *("0.0.0.0", "0.1.2.3", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254"),
    *("172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1"),
    *("198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1"),
    "255.255.255.255",
    *("::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:127.0.0.1", "100::1"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "64:ff9b:1::808:808"),
    *("2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:10::1", "2001:20::1", "2001:db8::1"),
    *("2002:7f00:1::", "2002:808:808::", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1"),
    *("fe80::1%lo", "fec0::1", "ff02::1", "4000::1", "2606:4700::5efe:7f00:1", "2606:4700::200:5efe:a00:1"),
    *("not an address", "127.1", ""),
]


def test_only_public_addresses_and_web_ports_may_be_connected_to() -> None:
    policy = AddressPolicy.of(FetchSpec())
    for address in PUBLIC:
        assert policy.objection(address, 80) is None, address
        assert policy.objection(address, 443) is None, address
        assert policy.objection(address, 8080), address
    for address in NOT_PUBLIC:
        assert policy.objection(address, 80), address


def test_a_private_network_can_be_allowed() -> None:
    policy = AddressPolicy.of(FetchSpec(allow_private=("10.0.0.0/8", "fd00::/8")))
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::1"):
        assert policy.objection(address, 8080) is None
    for address in ("127.0.0.1", "192.168.0.1", "fe80::1"):
        assert policy.objection(address, 80)


def test_an_allowed_network_is_reached_at_any_port(web: Web) -> None:
    web.serve("127.0.0.1", "/", BODY)
    spec = spec_for(web, connect_to={}, allow_private=("127.0.0.0/8",))
    (answer,) = fetch(f"http://{web.http}/", spec=spec)
    assert answer.body == BODY


def spellings(web: Web) -> list[str]:
    """Ways to write the address of the local web, or of others that must not be reached."""
    port = web.http.rpartition(":")[2]
    hosts = [
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "017700000001",
    ]
    hosts += ["localhost", "LOCALHOST", "localhost.", "0", "0.0.0.0", "127.127.127.127", "①②⑦.0.0.1"]
    hosts += [
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[0:0:0:0:0:ffff:127.0.0.1]",
    ]
    hosts += [
        "[64:ff9b::127.0.0.1]",
        "[64:ff9b:1::127.0.0.1]",
        "[2002:7f00:1::]",
        "169.254.169.254",
        "[fe80::1]",
    ]
    hosts += [
        "10.0.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "[fd00:ec2::254]",
        "mapped.example@127.0.0.1",
        "127。0。0。1",
    ]
    ports = ["", f":{port}", ":80", ":443"]
    return [f"{scheme}://{host}{at}/" for scheme in ("http", "https") for host in hosts for at in ports]


# A name, as "localhost.", may also be one that nobody knows here.
REFUSALS = {Reason.BLOCKED_ADDRESS, Reason.INPUT_BAD_URL, Reason.REDIRECT_BAD, Reason.DNS_FAILED}


def test_no_row_reaches_a_private_address(web: Web) -> None:
    spec = spec_for(web, connect_to={"mapped.example": web.http})
    for url, answer in zip(spellings(web), fetch(*spellings(web), spec=spec), strict=True):
        assert answer.reason in REFUSALS, (url, answer.reason, answer.detail)
    assert web.count() == 0


def test_no_redirect_reaches_a_private_address(web: Web) -> None:
    """From a host that connect_to names, over a connection to the very address that is refused then."""
    urls = spellings(web)
    for number, url in enumerate(urls):
        as_sent = url.encode().decode("latin-1")
        web.fault("mapped.example", f"/{number}", Fault.REDIRECT, to=as_sent)
    spec = spec_for(web, connect_to={"mapped.example": web.http})
    answers = fetch_in_turn(*(f"http://mapped.example/{number}" for number in range(len(urls))), spec=spec)
    for url, answer in zip(urls, answers, strict=True):
        assert answer.reason in REFUSALS, (url, answer.reason, answer.detail)
    assert {request.host for request in web.requests} == {"mapped.example"}
    assert web.count() == len(urls)


def test_a_name_with_any_private_answer_is_refused(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(host: bytes, port: int, *_: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (to, port)) for to in ("8.8.8.8", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", answers)
    (answer,) = fetch("http://mixed.example/", spec=spec_for(web, connect_to={}))
    assert answer.reason is Reason.BLOCKED_ADDRESS
    assert "10.0.0.1" in answer.detail


def test_a_socket_is_opened_only_to_an_address_that_was_decided_on() -> None:
    with pytest.raises(BlockedAddress):
        open_decided((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", 80)))


def test_connect_to_is_for_that_host_alone_and_the_most_specific_key_wins(web: Web) -> None:
    policy = AddressPolicy.of(
        FetchSpec(
            connect_to={
                "*": "10.0.0.1:1",
                "*:443": "10.0.0.2:2",
                "A.Example": "10.0.0.3:3",
                "a.example:443": "[::1]:4",
                "[2001:db8::1]": "cache.example:5",
            }
        )
    )
    assert policy.mapped("b.example", 80) == ("10.0.0.1", 1)
    assert policy.mapped("b.example", 443) == ("10.0.0.2", 2)
    assert policy.mapped("a.example", 80) == ("10.0.0.3", 3)
    assert policy.mapped("A.EXAMPLE.", 443) == ("::1", 4)
    assert policy.mapped("2001:db8::1", 80) == ("cache.example", 5)
    assert AddressPolicy.of(FetchSpec(connect_to={"a.example": "10.0.0.1:1"})).mapped("b.example", 80) is None


@pytest.mark.parametrize("host", ["8.8.8.8", "[2606:4700::1111]", "127.0.0.1"])
def test_connect_to_also_maps_hosts_that_are_addresses(web: Web, host: str) -> None:
    web.serve(host, "/", BODY)
    (answer,) = fetch(f"http://{host}/", spec=spec_for(web))
    assert answer.body == BODY, answer.detail
    assert web.requests[0].header("Host") == host


def test_connect_to_may_name_a_host(web: Web) -> None:
    port = web.http.rpartition(":")[2]
    web.serve("mirror.example", "/", BODY)
    (answer,) = fetch("http://mirror.example/", spec=spec_for(web, connect_to={"*": f"localhost:{port}"}))
    assert answer.body == BODY


@pytest.mark.parametrize(
    "keys",
    [
        {"connect_to": {"images.example": "127.0.0.1"}},
        {"connect_to": {"images.example": ":80"}},
        {"connect_to": {"images.example:port": "127.0.0.1:80"}},
        {"connect_to": {"": "127.0.0.1:80"}},
        {"allow_private": ("10.0.0.1/8",)},
        {"ca_file": "/no/such/file.pem"},
        {"user_agent": "me\r\nCookie: 1"},
    ],
)
def test_a_spec_that_cannot_be_followed_is_a_bad_request(keys: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="fetch"):
        Client(FetchSpec.model_validate(keys))
