"""What the hosts of a web see of a whole build by four workers, one of which is killed half-way."""

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from pmd.fetch.budget import AHEAD_S
from tests.small import PMD, photo
from tests.web import Fault, Request, Web

HOSTS = [f"polite{number}.example" for number in range(3)]
ROWS = 90  # of each host
RATE, CONNECTIONS = 12.0, 2
WAIT_S = 3.0  # that the last host asks for, once
SITE_FILES = ("/robots.txt", "/.well-known/tdmrep.json", "/ai.txt")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Web, Path]]:
    folder = tmp_path_factory.mktemp("polite")
    with Web() as web:
        for host in HOSTS:
            web.serve(host, "/robots.txt", b"User-agent: *\nDisallow: /private/\n", "text/plain")
            for row in range(ROWS):
                web.serve(host, f"/{row}.jpg", photo(row))
                web.serve(host, f"/private/{row}.jpg", photo(row))
        for row in range(40, 70):  # more of them would be under way, were that allowed
            web.fault(HOSTS[0], f"/{row}.jpg", Fault.SLOW, seconds=0.4)
        web.fault(HOSTS[-1], "/30.jpg", Fault.TOO_MANY, times=1, retry_after=str(int(WAIT_S)))
        rows = [f"http://{host}/{row}.jpg\ta picture of it\n" for row in range(ROWS) for host in HOSTS]
        rows += [f"http://{host}/private/{row}.jpg\tnot for us\n" for row in range(9) for host in HOSTS]
        (folder / "cc12m.tsv").write_text("".join(rows))
        connect_to = ", ".join(
            f"{json.dumps(host)} = {json.dumps(to)}" for host, to in web.connect_to.items()
        )
        (folder / "corpus.toml").write_text(
            f"""
name = "polite"
sources = ["cc12m"]
[source.cc12m]
files = ["cc12m.tsv"]
[shard]
images = 20
[image]
image_size = 64
[fetch]
per_host_rate = {RATE}
per_host_connections = {CONNECTIONS}
connect_to = {{ {connect_to} }}
"""
        )
        line = [PMD, "build", folder / "corpus.toml", "--out", folder / "out", "--workers", "4", "--json"]
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as build:
            while web.count(HOSTS[0]) < ROWS // 3:
                assert build.poll() is None
                time.sleep(0.02)
            workers = [
                child
                for child in psutil.Process(build.pid).children(recursive=True)
                if child.name().startswith("ray::download_file")
            ]
            workers[0].kill()
            said, _ = build.communicate(timeout=200)
        assert build.returncode == 0, said
        assert len(workers) > 1
        yield web, folder / "out"


def requests_of(web: Web, host: str) -> list[Request]:
    return sorted((one for one in web.requests if one.host == host), key=lambda one: one.at)


def test_no_host_has_more_requests_at_a_time_than_it_bears(seen: tuple[Web, Path]) -> None:
    web, _ = seen
    assert web.peak(HOSTS[0]) == CONNECTIONS >= max(web.peak(host) for host in HOSTS)


def test_no_host_is_asked_more_often_than_it_bears_in_any_span_of_time(seen: tuple[Web, Path]) -> None:
    web, _ = seen
    late = 0.15  # a request may begin to arrive so much later than another: two processes, two connections
    for host in HOSTS:
        times = [one.at for one in requests_of(web, host)]
        assert len(times) >= ROWS
        for first in range(len(times)):
            for last in range(first + 1, len(times)):
                span = times[last] - times[first]
                assert last - first + 1 <= RATE * (span + AHEAD_S + late) + 1


def test_a_host_that_asks_for_time_is_given_it(seen: tuple[Web, Path]) -> None:
    web, _ = seen
    times = [one.at for one in requests_of(web, HOSTS[-1])]
    asked = next(one.at for one in requests_of(web, HOSTS[-1]) if one.target == "/30.jpg")
    # What was on its way when the answer came is no breach of it.
    assert not [at for at in times if asked + 0.5 < at < asked + WAIT_S - 0.05]
    assert [at for at in times if at > asked + WAIT_S]


def test_the_files_of_a_site_are_asked_for_once_and_what_they_refuse_never(seen: tuple[Web, Path]) -> None:
    web, _ = seen
    asked = Counter((one.host, one.target) for one in web.requests)
    assert [asked[host, path] for host in HOSTS for path in SITE_FILES] == [1] * 9
    assert not [target for _, target in asked if target.startswith("/private/")]


def test_each_row_has_its_outcome_and_its_verdict(seen: tuple[Web, Path]) -> None:
    _, out = seen
    ends: Counter[tuple[str | None, str | None]] = Counter()
    for index in (out / "shards" / "cc12m").glob("*.parquet"):
        table = pq.read_table(index, columns=["reason", "consent"])
        ends.update(zip(*(table[name].to_pylist() for name in ("reason", "consent")), strict=True))
    assert ends == {(None, "yes"): 3 * ROWS, ("optout_robots", "no: robots.txt"): 27}
