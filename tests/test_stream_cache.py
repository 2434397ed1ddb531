"""The laws of pmd/stream/cache.py: shards from elsewhere are here when needed, whole, and within bounds."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pmd.errors import BadRequest, Damaged
from pmd.lock import LockedFile, read_lock
from pmd.storage import UNFINISHED, Store
from pmd.stream import Stream
from pmd.stream.cache import Cache
from tests.locked import locked

SHARDS = {"coco": (20, 5, 17, 9), "cc3m": (11, 20, 3)}
SAMPLES = 85


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    locked(folder, SHARDS)
    return folder


def away(corpus: Path) -> str:
    """As fsspec reaches it, for which it is as far away as any object store."""
    return f"local://{corpus}"


def files_of(corpus: Path) -> list[LockedFile]:
    return read_lock((corpus / "lock.json").read_bytes(), where="lock").files


def kept(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_corpus_elsewhere_is_read_as_one_that_is_here(corpus: Path, tmp_path: Path) -> None:
    here = Stream(corpus, window=2).read(0, np.arange(SAMPLES))
    there = Stream(away(corpus), window=2, cache=tmp_path)
    assert there.read(0, np.arange(SAMPLES)) == here
    there.close()
    assert kept(tmp_path) == {f"{file.sha256}{Path(file.path).suffix}" for file in files_of(corpus)}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cache")]


def test_what_is_kept_is_not_downloaded_again(corpus: Path, tmp_path: Path) -> None:
    gone = Path(shutil.copytree(corpus, tmp_path / "corpus"))
    first = Stream(away(gone), cache=tmp_path / "cache")
    samples = first.read(0, np.arange(SAMPLES))
    first.close()
    shutil.rmtree(gone / "shards")
    assert Stream(away(gone), cache=tmp_path / "cache").read(0, np.arange(SAMPLES)) == samples


def test_the_cache_keeps_to_its_bound_and_gives_up_what_is_needed_last(corpus: Path, tmp_path: Path) -> None:
    files = sorted((file for file in files_of(corpus) if file.path.endswith(".tar")), key=lambda f: f.path)
    most = sum(file.size for file in files[:3]) + 100
    cache = Cache(Store(away(corpus)), tmp_path, most=most)
    cache.expect(files, ahead=0)
    for file in files:
        cache.open(file).close()
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= most
    assert f"{files[0].sha256}.tar" in kept(tmp_path), "it comes first"
    cache.close()


def test_what_comes_next_is_downloaded_before_it_is_asked_for(corpus: Path, tmp_path: Path) -> None:
    files = files_of(corpus)
    cache = Cache(Store(away(corpus)), tmp_path, most=1 << 30)
    cache.expect(files, ahead=4)
    give_up = time.monotonic() + 30
    while len({name for name in kept(tmp_path) if not name.endswith(UNFINISHED)}) < 4:
        assert time.monotonic() < give_up
        time.sleep(0.01)
    cache.close()
    assert kept(tmp_path) == {f"{file.sha256}{Path(file.path).suffix}" for file in files[:4]}


def test_a_file_that_is_not_as_locked_is_not_kept(corpus: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(corpus, tmp_path / "corpus"))
    tar = changed / "shards/coco/00002.tar"
    data = bytearray(tar.read_bytes())
    data[5000] ^= 1
    tar.write_bytes(data)
    stream = Stream(away(changed), cache=tmp_path / "cache")
    with pytest.raises(Damaged, match=r"00002\.tar: sha256 is .* the lock says"):
        stream.read(0, np.arange(SAMPLES))
    stream.close()
    (file,) = (file for file in files_of(corpus) if file.path == "shards/coco/00002.tar")
    assert not [name for name in kept(tmp_path / "cache") if file.sha256 in name]


def test_threads_that_want_one_file_download_it_once(corpus: Path, tmp_path: Path) -> None:
    (file, *_) = files_of(corpus)
    store = Store(away(corpus))
    opened: list[str] = []
    real = store.open

    def count(name: str):
        opened.append(name)
        time.sleep(0.1)
        return real(name)

    store.open = count
    caches = [Cache(store, tmp_path, most=1 << 30) for _ in range(4)]

    def read(number: int) -> bytes:
        with caches[number % 4].open(file) as kept:
            return kept.read()

    with ThreadPoolExecutor(8) as threads:
        bodies = {*threads.map(read, range(8))}
    assert len(bodies) == 1 and opened == [file.path]


WORK = """
import sys, time, numpy as np
from pmd.stream import Stream
stream = Stream(sys.argv[1], window=2, cache=sys.argv[2], cache_bytes=int(sys.argv[3]))
print("reading", flush=True)
for epoch in range(int(sys.argv[4])):
    for sample in stream.read(epoch, np.arange(len(stream))):
        pass
print(*(sample.key for sample in stream.read(0, np.arange(len(stream)))))
"""


def test_several_jobs_share_a_cache_that_holds_less_than_they_read(corpus: Path, tmp_path: Path) -> None:
    most = sum(file.size for file in files_of(corpus)) // 2
    line = [sys.executable, "-c", WORK, away(corpus), str(tmp_path), str(most), "5"]
    jobs = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    told = [job.communicate(timeout=100)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0]
    assert len({*told}) == 1 and len(told[0].split()) == 1 + SAMPLES


def test_a_killed_job_leaves_nothing_that_stops_the_next(corpus: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-c", WORK, away(corpus), str(tmp_path), "60000", "100000"]
    for _ in range(5):
        with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as job:
            assert job.stdout and job.stdout.readline() == "reading\n"
            time.sleep(0.15)
            job.send_signal(signal.SIGKILL)
    shared = set(os.listdir("/dev/shm"))
    stream = Stream(away(corpus), window=2, cache=tmp_path)
    assert [*stream.read(0, np.arange(SAMPLES))] == Stream(corpus, window=2).read(0, np.arange(SAMPLES))
    stream.close()
    assert not [name for name in kept(tmp_path) if name.endswith(UNFINISHED)]
    assert set(os.listdir("/dev/shm")) <= shared


def test_what_cannot_be_is_a_bad_request(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="give cache="):
        Stream(away(corpus))
    stream = Stream(away(corpus), cache=tmp_path, cache_bytes=1_000)
    with pytest.raises(BadRequest, match="does not fit in a cache of 1,000"):
        stream.read(0, np.arange(3))
    stream.close()
