"""What hostile hosts cost the others: good images per second with none of them, and with 20 % of all hosts.

    200 hosts, the same number of rows each, shuffled --> Client --> good ones: a lean server
                                                                 --> hostile ones: tests.web, a fault each

The clock stops when the last good row has its image; the rows of hostile hosts are left as they are. They
come in two sorts: `stalling` ones are silent or crawl, and hold connections; `flooding` ones send all they
can. Rows are asked for as `pmd download` does it: as many at a time of each host as it bears. Nothing is
decoded. All else is the default of [fetch], deadlines and the rate per host too, but for retries. The same
without a bound on the rate (`unbounded`) shows what the client itself can bear; there the good and the
hostile server, which run on the same machine, take their processor from it: look at `cpu_ms` too.
"""

import asyncio
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from pmd.fetch.client import Client
from pmd.manifest import FetchSpec
from tests.bench.download import PHOTOS, draw_photos, serving
from tests.bench.measure import options, report
from tests.web import Fault, Web

HOSTS = 200
HOSTILE = 40  # of these
GOOD = range(HOSTS - HOSTILE)
STALLING = (Fault.HANG, Fault.STALL, Fault.HEAD_STALL, Fault.DRIP, Fault.HEAD_DRIP, Fault.SLOW_PROVISIONAL)
FLOODING = (
    *(Fault.ENDLESS, Fault.BIG, Fault.BOMB_GZIP, Fault.BOMB_DEFLATE, Fault.ENDLESS_TINY_CHUNKS),
    *(Fault.ENDLESS_PROVISIONAL, Fault.ENDLESS_HEAD, Fault.ENDLESS_EXTENSION, Fault.REDIRECT_ENDLESS),
    *(Fault.RESET, Fault.NO_BYTES, Fault.TRUNCATED, Fault.MANY_FIELDS, Fault.REDIRECT_LOOP),
)
SORTS = {"stalling": STALLING, "flooding": FLOODING}
UNBOUNDED = "unbounded_"  # before the name of a sort


def good(number: int) -> str:
    return f"good{number}.example"


def hostile(sort: str, number: int) -> str:
    return f"{sort}{number}.example"


def serve_hostile() -> None:
    """A process of its own, so that its work is not ours: prints its address, ends with its input."""
    with Web() as web:
        for sort, faults in SORTS.items():
            for number in range(HOSTILE):
                host = hostile(sort, number)
                for row in range(1_000):
                    web.serve(host, f"/{row}.jpg", bytes(100_000))
                web.fault_paths(host, "/", faults[number % len(faults)], interval=0.9)
        print(web.http, flush=True)
        sys.stdin.read()


@contextmanager
def hostile_server() -> Iterator[str]:
    code = "from tests.bench.hostile import serve_hostile; serve_hostile()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin and server.stdout
        try:
            yield server.stdout.readline().strip()
        finally:
            server.stdin.close()


async def fetch_rows(urls: list[str], spec: FetchSpec) -> tuple[float, float]:
    """Seconds until the last good row has its image, and our processor time until then."""
    begun, cpu = time.perf_counter(), time.process_time()
    left = sum(url.startswith("http://good") for url in urls)
    done = asyncio.Event()
    hosts: dict[str, deque[str]] = defaultdict(deque)
    for url in urls:
        hosts[urlsplit(url).netloc].append(url)

    async def lane(client: Client, rows: deque[str]) -> None:
        nonlocal left
        while rows:
            url = rows.popleft()
            answer = await client.fetch(url)
            if url.startswith("http://good"):
                assert answer.body, answer
                left -= 1
                if not left:
                    done.set()

    async with Client(spec) as client, asyncio.TaskGroup() as group:
        lanes = [
            group.create_task(lane(client, rows))
            for host, rows in hosts.items()
            for _ in range(spec.bears(host).connections)
        ]
        await done.wait()
        taken = time.perf_counter() - begun, time.process_time() - cpu
        for task in lanes:
            task.cancel()
    return taken


def main() -> None:
    given = options(__doc__, images=16_000, repeats=3)
    taken: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name, hostile_server() as bad:
        width, height, count = PHOTOS["coco"]
        draw_photos(Path(name), width=width, height=height, count=count)
        with serving(Path(name)) as (address, _):
            to = {"*": address} | {hostile(sort, n): bad for sort in SORTS for n in range(HOSTILE)}
            spec = FetchSpec(connect_to=to, retries=0, consent=())
            for _ in range(given.repeats):
                for bound in ("", UNBOUNDED):
                    bears = spec.model_copy(update={"per_host_rate": 1e6}) if bound else spec
                    for sort in ("clean", *SORTS):
                        rows = given.images // (HOSTS - HOSTILE)
                        urls = [f"http://{good(n)}/{row % count}.jpg" for n in GOOD for row in range(rows)]
                        if sort != "clean":
                            bads = range(HOSTILE)
                            urls += [
                                f"http://{hostile(sort, n)}/{row}.jpg" for n in bads for row in range(rows)
                            ]
                        random.Random(0).shuffle(urls)
                        seconds, cpu = asyncio.run(fetch_rows(urls, bears))
                        images = rows * len(GOOD)
                        taken.setdefault(bound + sort, []).append((images / seconds, 1e3 * cpu / images))
                        print(bound + sort, taken[bound + sort][-1], file=sys.stderr)
    figures = {"images": float(given.images), "hosts": float(HOSTS), "hostile_hosts": float(HOSTILE)}
    for sort, runs in taken.items():
        figures[f"{sort}_images_per_s"] = statistics.median(speed for speed, _ in runs)
        figures[f"{sort}_cpu_ms"] = statistics.median(cpu for _, cpu in runs)
    ratios = {
        f"{bound}{sort}_speed_of_clean": figures[f"{bound}{sort}_images_per_s"]
        / figures[f"{bound}clean_images_per_s"]
        for bound in ("", UNBOUNDED)
        for sort in SORTS
    }
    report("hostile", figures=figures, ratios=ratios, as_json=given.json)


if __name__ == "__main__":
    main()
