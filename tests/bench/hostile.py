"""What hostile hosts cost the others: good images per second with none of them, and with 20 % of all hosts.

    200 hosts, the same number of rows each, shuffled --> Client --> good ones: a lean server
                                                                 --> hostile ones: tests.web, a fault each

The clock stops when the last good row has its image; the rows of hostile hosts are left as they are. They
come in two sorts: `stalling` ones are silent or crawl, and hold connections; `flooding` ones send all they
can. Both hand the client all rows at once. `window` is of both sorts, handed over as `pmd download` does:
the next row when fewer than twice the client's connections are under way. Nothing is decoded. All else is
the default of [fetch], deadlines too, but for retries and the rate per host. Good and hostile servers run on
the same machine, so what floods also takes its processor from the client: look at `cpu_ms` too.
"""

import asyncio
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
SORTS = {"stalling": STALLING, "flooding": FLOODING, "window": STALLING + FLOODING}


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


async def fetch_rows(urls: list[str], spec: FetchSpec, *, window: int) -> tuple[float, float]:
    """Seconds until the last good row has its image, and our processor time until then."""
    begun, cpu = time.perf_counter(), time.process_time()
    left = sum(url.startswith("http://good") for url in urls)
    done = asyncio.Event()
    under_way = asyncio.Semaphore(window)

    async def one(client: Client, url: str) -> None:
        nonlocal left
        answer = await client.fetch(url)
        under_way.release()
        if url.startswith("http://good"):
            assert answer.body, answer
            left -= 1
            if not left:
                done.set()

    async def feed(client: Client, group: asyncio.TaskGroup) -> None:
        for url in urls:
            await under_way.acquire()
            tasks.append(group.create_task(one(client, url)))

    tasks: list[asyncio.Task[None]] = []
    async with Client(spec) as client, asyncio.TaskGroup() as group:
        tasks.append(group.create_task(feed(client, group)))
        await done.wait()
        taken = time.perf_counter() - begun, time.process_time() - cpu
        for task in tasks:
            task.cancel()
    return taken


def main() -> None:
    given = options(__doc__, images=4_000, window=400, repeats=3)
    taken: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name, hostile_server() as bad:
        width, height, count = PHOTOS["coco"]
        draw_photos(Path(name), width=width, height=height, count=count)
        with serving(Path(name)) as (address, _):
            to = {"*": address} | {hostile(sort, n): bad for sort in SORTS for n in range(HOSTILE)}
            spec = FetchSpec(connect_to=to, per_host_rate=1e6, retries=0, consent=())
            for _ in range(given.repeats):
                for sort in ("clean", *SORTS):
                    rows = (given.window if sort == "window" else given.images) // (HOSTS - HOSTILE)
                    urls = [f"http://{good(n)}/{row % count}.jpg" for n in GOOD for row in range(rows)]
                    if sort != "clean":
                        bads = range(HOSTILE)
                        urls += [f"http://{hostile(sort, n)}/{row}.jpg" for n in bads for row in range(rows)]
                    random.Random(0).shuffle(urls)
                    window = 2 * spec.connections if sort == "window" else len(urls)
                    seconds, cpu = asyncio.run(fetch_rows(urls, spec, window=window))
                    images = rows * len(GOOD)
                    taken.setdefault(sort, []).append((images / seconds, 1e3 * cpu / images))
                    print(sort, taken[sort][-1], file=sys.stderr)
    figures = {"images": float(given.images), "hosts": float(HOSTS), "hostile_hosts": float(HOSTILE)}
    for sort, runs in taken.items():
        figures[f"{sort}_images_per_s"] = statistics.median(speed for speed, _ in runs)
        figures[f"{sort}_cpu_ms"] = statistics.median(cpu for _, cpu in runs)
    clean = figures["clean_images_per_s"]
    ratios = {f"{sort}_speed_of_clean": figures[f"{sort}_images_per_s"] / clean for sort in SORTS}
    report("hostile", figures=figures, ratios=ratios, as_json=given.json)


if __name__ == "__main__":
    main()
