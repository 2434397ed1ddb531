"""What a decoder may do to us: nothing. Every body ends, and so does whoever hurts."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from pmd.errors import PmdError
from pmd.images import Picture, normalise
from pmd.images.sandbox import Sandbox, kept_sandbox
from pmd.manifest import ImageSpec
from pmd.records import Reason
from tests.small import photo
from tests.test_images import png_chunk

SPEC = ImageSpec(image_size=96)
LARGE = ImageSpec(resize_mode="no", max_pixels=100_000_000)  # which takes seconds
HOSTILE = Path(__file__).parents[2] / "shared" / "hostile"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(SPEC) as made:
        yield made


def huge_png(width: int, height: int) -> bytes:
    """Black all over: a small file of many pixels."""
    squeeze = zlib.compressobj(1)
    rows = b"".join(squeeze.compress(bytes(1 + 3 * width)) for _ in range(height)) + squeeze.flush()
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    chunks = png_chunk(b"IHDR", head), png_chunk(b"IDAT", rows), png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def at(pid: int) -> psutil.Process:
    return psutil.Process(pid)


def until(happens: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < give_up
        time.sleep(0.001)


def test_a_picture_is_the_same_from_inside_and_outside(sandbox: Sandbox) -> None:
    for seed in range(20):
        body = photo(seed)
        assert sandbox.normalise(body) == normalise(body, SPEC)
    for rotation in (0, 90, 180, 270):
        assert sandbox.normalise(photo(1), rotation) == normalise(photo(1), SPEC, rotation)
    for body in (b"", b"GIF89a", b"\xff\xd8\xff", b"<svg>", photo(1)[:-200]):
        ours = sandbox.normalise(body)
        assert isinstance(ours, Reason) and ours == normalise(body, SPEC)
    assert len(sandbox.pids) == 1


def test_a_process_may_not_write_files_nor_start_others_nor_gain_rights(sandbox: Sandbox) -> None:
    sandbox.normalise(photo(0))
    process = at(sandbox.pids[0])
    assert process.rlimit(resource.RLIMIT_FSIZE) == (0, 0)
    assert process.rlimit(resource.RLIMIT_CORE) == (0, 0)
    assert process.rlimit(resource.RLIMIT_NPROC) == (0, 0)
    assert process.rlimit(resource.RLIMIT_NOFILE)[1] <= 64
    assert 0 < process.rlimit(resource.RLIMIT_AS)[1] < 8 << 30
    assert "NoNewPrivs:\t1" in Path(f"/proc/{process.pid}/status").read_text()


def test_a_process_knows_no_secret_of_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    with Sandbox(SPEC) as sandbox:
        sandbox.normalise(photo(0))
        assert b"canary" not in Path(f"/proc/{sandbox.pids[0]}/environ").read_bytes()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_between_two_pictures_costs_none(how: signal.Signals) -> None:
    with Sandbox(SPEC) as sandbox:
        before = sandbox.normalise(photo(0))
        (pid,) = sandbox.pids
        os.kill(pid, how)
        until(lambda: at(pid).status() == psutil.STATUS_ZOMBIE)
        assert sandbox.normalise(photo(0)) == before
        assert sandbox.pids != [pid]


def test_a_picture_that_crashes_twice_is_given_up_and_the_next_is_not() -> None:
    large = huge_png(8000, 8000)
    with Sandbox(LARGE) as sandbox, ThreadPoolExecutor(1) as thread:
        sandbox.normalise(photo(0))
        asking = thread.submit(sandbox.normalise, large)
        killed: set[int] = set()
        while not asking.done():
            for pid in {*sandbox.pids} - killed:
                # At work: it has more pixels in memory than it began with.
                if at(pid).is_running() and at(pid).memory_info().rss > 150 << 20:
                    os.kill(pid, signal.SIGSEGV)
                    killed.add(pid)
            time.sleep(0.002)
        assert (asking.result(), len(killed)) == (Reason.DECODE_CRASH, 2)
        assert isinstance(sandbox.normalise(photo(0)), Picture)


def test_a_crash_once_costs_nothing() -> None:
    large = huge_png(8000, 8000)
    with Sandbox(LARGE) as sandbox, ThreadPoolExecutor(1) as thread:
        sandbox.normalise(photo(0))
        (pid,) = sandbox.pids
        asking = thread.submit(sandbox.normalise, large)
        until(lambda: at(pid).memory_info().rss > 150 << 20)
        os.kill(pid, signal.SIGKILL)
        assert isinstance(asking.result(), Picture)


def test_a_picture_that_takes_too_long_to_compute_is_given_up() -> None:
    with Sandbox(LARGE, cpu_s=0.25) as sandbox:
        begun = time.monotonic()
        assert sandbox.normalise(huge_png(10_000, 10_000)) is Reason.DECODE_TIMEOUT
        assert time.monotonic() - begun < 60
        assert isinstance(sandbox.normalise(photo(0)), Picture)


def test_a_process_that_stands_still_is_given_up() -> None:
    with Sandbox(SPEC, wall_s=1.0) as sandbox:
        sandbox.normalise(photo(0))
        (pid,) = sandbox.pids
        os.kill(pid, signal.SIGSTOP)
        assert sandbox.normalise(photo(0)) is Reason.DECODE_TIMEOUT
        # Also with a body that no pipe takes whole.
        assert isinstance(sandbox.normalise(photo(0)), Picture)
        os.kill(sandbox.pids[0], signal.SIGSTOP)
        assert sandbox.normalise(bytes(5_000_000)) is Reason.DECODE_TIMEOUT
        assert not psutil.pid_exists(pid)


def test_a_picture_that_needs_too_much_memory_is_given_up_alone() -> None:
    with Sandbox(LARGE, memory=64 << 20) as sandbox:
        assert isinstance(sandbox.normalise(photo(0)), Picture)
        (pid,) = sandbox.pids
        assert sandbox.normalise(huge_png(8000, 8000)) is Reason.DECODE_LIMIT
        assert isinstance(sandbox.normalise(photo(0)), Picture)
        assert sandbox.pids == [pid], "it has not even died of it"


def test_the_largest_picture_that_a_spec_allows_fits() -> None:
    spec = ImageSpec(resize_mode="no", max_pixels=64_000_000)
    with Sandbox(spec) as sandbox:
        assert isinstance(sandbox.normalise(huge_png(8000, 8000)), Picture)


def test_several_threads_share_processes_and_none_gets_anothers_picture() -> None:
    bodies = [photo(seed) for seed in range(40)]
    expected = [normalise(body, SPEC) for body in bodies]
    with Sandbox(SPEC, processes=2) as sandbox, ThreadPoolExecutor(8) as threads:
        assert [*threads.map(sandbox.normalise, bodies * 5)] == expected * 5
        assert len(sandbox.pids) == 2


def test_none_outlives_its_sandbox_nor_its_parent() -> None:
    with Sandbox(SPEC, processes=2) as sandbox, ThreadPoolExecutor(2) as threads:
        assert len({*threads.map(sandbox.normalise, [photo(0)] * 8)}) == 1
        pids = sandbox.pids
    assert pids and not any(psutil.pid_exists(pid) for pid in pids)
    script = (
        "import time\n"
        "from pmd.images.sandbox import Sandbox\n"
        "from pmd.manifest import ImageSpec\n"
        "sandbox = Sandbox(ImageSpec())\n"
        "sandbox.normalise(b'')\n"
        "print(*sandbox.pids, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        parent.kill()
    until(lambda: not psutil.pid_exists(pid) or at(pid).status() == psutil.STATUS_ZOMBIE)


def test_one_sandbox_is_kept_until_another_spec_comes() -> None:
    own = ImageSpec(image_size=97, quality=91)  # no other test has kept one for it
    first = kept_sandbox(own, processes=1)
    first.normalise(photo(0))
    (pid,) = first.pids
    assert kept_sandbox(ImageSpec(image_size=97, quality=91), processes=1) is first
    other = kept_sandbox(ImageSpec(image_size=98), processes=1)
    assert other is not first and not psutil.pid_exists(pid)
    other.close()


def test_a_forked_process_has_decoders_of_its_own() -> None:
    script = (
        "import os\n"
        "from pmd.images.sandbox import kept_sandbox\n"
        "from pmd.manifest import ImageSpec\n"
        "sandbox = kept_sandbox(ImageSpec(), processes=1)\n"
        "sandbox.normalise(b'')\n"
        "child = os.fork()\n"
        "mine = kept_sandbox(ImageSpec(), processes=1)\n"
        "assert (mine is sandbox) == bool(child)\n"
        "assert mine.normalise(b'') == 'not_an_image'\n"
        "assert child == 0 or os.waitpid(child, 0)[1] == 0\n"
        "assert mine.normalise(b'') == 'not_an_image'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_a_process_that_cannot_start_is_an_error_that_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('for another processor')")
    monkeypatch.syspath_prepend(tmp_path)
    with Sandbox(SPEC) as sandbox, pytest.raises(PmdError, match=r"(?s)does not start:.*another processor"):
        sandbox.normalise(photo(0))
    monkeypatch.setattr("sys.executable", "/no/such/python")
    with Sandbox(SPEC) as sandbox, pytest.raises(PmdError, match="no process to decode in"):
        sandbox.normalise(photo(0))


@pytest.mark.skipif(not HOSTILE.exists(), reason="the hostile files are not here")
def test_every_hostile_file_has_one_outcome_and_our_own_memory_stays_small(sandbox: Sandbox) -> None:
    paths = sorted(path for path in HOSTILE.rglob("*") if path.is_file())
    assert len(paths) > 100
    rounds: list[list[Picture | Reason]] = []
    largest = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal largest
        while not done.wait(0.01):
            largest = max(largest, psutil.Process().memory_info().rss)

    before = psutil.Process().memory_info().rss
    with ThreadPoolExecutor(1) as thread:
        watching = thread.submit(watch)
        for _ in range(2):
            rounds.append([sandbox.normalise(path.read_bytes()) for path in paths])
        done.set()
        watching.result()
    assert rounds[0] == rounds[1]
    assert Reason.DECODE_CRASH not in rounds[0] and Reason.DECODE_TIMEOUT not in rounds[0]
    assert largest - before < 128 << 20
