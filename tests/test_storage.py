"""The laws of pmd/storage.py, on a folder, on S3 (a real server on loopback) and in memory."""

import hashlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import s3fs
from moto.server import ThreadedMotoServer

from pmd.errors import BadRequest
from pmd.storage import UNFINISHED, Store

NAME = "shards/coco/00042.tar"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of a bucket on an S3 server of our own."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("corpora")
        yield "s3://corpora"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def on_s3(bucket: str, request: pytest.FixtureRequest) -> Store:
    return Store(f"{bucket}/{request.node.name}")


@pytest.fixture(params=["folder", "s3", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Each kind of store, empty. Two have brackets in their URLs, which fsspec may take for a pattern."""
    match request.param:
        case "folder":
            return Store(str(tmp_path))
        case "s3":
            return request.getfixturevalue("on_s3")
        case _:
            return Store(f"memory://{request.node.name}")


def run(code: str, store: Store, *before: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, which may kill itself; `store` is the store and NAME is the name."""
    head = f"""
import os, signal
from pmd.storage import Store
store, NAME = Store({store.root!r}), {NAME!r}
"""
    return subprocess.run(
        [*before, sys.executable, "-c", head + code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},  # those writes end in a rename too
    )


def everything(store: Store) -> list[str]:
    """Every file there is, finished or not."""
    if store.is_local:
        return sorted(str(p.relative_to(store.root)) for p in Path(store.root).rglob("*") if p.is_file())
    found = store._remote.find(store._base)  # pyright: ignore[reportPrivateUsage]
    return sorted(str(path).removeprefix(store._base).strip("/") for path in found)  # pyright: ignore[reportPrivateUsage]


# What is read is what was written


def test_a_file_reads_back_as_it_was_written(store: Store) -> None:
    data = bytes(range(256)) * 40
    with store.writing(NAME) as path:
        path.write_bytes(data)
    assert store.exists(NAME) and not store.exists("shards/coco/00043.tar")
    assert store.size(NAME) == len(data)
    assert store.read_bytes(NAME) == data
    assert store.sha256(NAME) == hashlib.sha256(data).hexdigest()
    with store.open(NAME) as file:
        file.seek(300)
        assert file.read(3) == data[300:303]
    with store.reading(NAME) as copy:
        assert copy.read_bytes() == data
    assert everything(store) == [NAME]


def test_a_file_written_again_is_the_new_one(store: Store) -> None:
    store.write_bytes(NAME, b"old, and longer")
    store.write_bytes(NAME, b"new")
    assert (store.read_bytes(NAME), store.size(NAME)) == (b"new", 3)


def test_what_another_process_writes_is_seen_at_once(bucket: str, on_s3: Store) -> None:
    on_s3.write_bytes(NAME, b"old")
    assert on_s3.names("shards/coco") == [NAME]  # from here on a cache of listings would know better
    done = run("store.write_bytes(NAME, b'replaced'); store.write_bytes('shards/coco/00043.tar', b'')", on_s3)
    assert done.returncode == 0, done.stderr
    assert on_s3.exists("shards/coco/00043.tar")
    assert (on_s3.size(NAME), on_s3.read_bytes(NAME)) == (8, b"replaced")


def test_a_store_counts_the_files_that_it_gave_their_names(store: Store) -> None:
    store.write_bytes("a", b"")
    store.write_bytes("a", b"again")
    with pytest.raises(ZeroDivisionError), store.writing("b") as path:
        path.write_bytes(b"")
        raise ZeroDivisionError
    store.create("c", b"")
    assert store.published == 2


def test_names_are_sorted_and_of_finished_files_only(store: Store) -> None:
    for name in ("b.tar", "a.tar", "a.parquet", "folder/c.tar", ".lock"):
        store.write_bytes(f"shards/{name}", b"")
    with store.writing("shards/0.tar") as path:
        path.write_bytes(b"not yet")
        assert store.names("shards") == ["shards/a.parquet", "shards/a.tar", "shards/b.tar"]
    assert store.names("shards", ".tar") == ["shards/0.tar", "shards/a.tar", "shards/b.tar"]
    assert store.names("nothing here") == []


def test_files_are_removed_and_what_is_gone_is_no_complaint(store: Store) -> None:
    for name in ("a/1", "a/2", "b/1"):
        store.write_bytes(name, b"")
    store.remove("a/1")
    store.remove("a/1")
    assert everything(store) == ["a/2", "b/1"]
    store.remove_folder("a")
    store.remove_folder("a")
    assert everything(store) == ["b/1"]


# Whole or not there


def test_an_exception_while_writing_leaves_nothing(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.writing(NAME) as path:
        path.write_bytes(b"half")
        raise ZeroDivisionError
    assert everything(store) == []


def test_an_exception_while_rewriting_leaves_the_old_file(store: Store) -> None:
    store.write_bytes(NAME, b"old")
    with pytest.raises(ZeroDivisionError), store.writing(NAME) as path:
        path.write_bytes(b"half")
        raise ZeroDivisionError
    assert store.read_bytes(NAME) == b"old" and everything(store) == [NAME]


DIES = """
with store.writing(NAME) as path:
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_while_writing_leaves_nothing_that_a_reader_meets(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert run(DIES, store).returncode == -signal.SIGKILL
    assert not store.exists(NAME) and store.names("shards/coco") == []
    (left,) = everything(store)
    assert left.endswith(UNFINISHED)
    store.write_bytes("keep", b"")
    assert store.sweep() == 1
    assert everything(store) == ["keep"]
    assert store.sweep() == 0


def test_a_kill_while_writing_leaves_nothing_on_s3(bucket: str, on_s3: Store) -> None:
    assert run(DIES, on_s3).returncode == -signal.SIGKILL
    assert everything(on_s3) == []


needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace is not installed, so the system calls cannot be watched"
)


@needs_strace
def test_bytes_are_on_disk_before_the_name_and_the_name_before_we_go_on(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    store = Store(str(tmp_path / "out"))
    watch = ("strace", "-f", "-qq", "-y", "-o", str(trace), "-e", "trace=openat,write,fsync,rename,renameat2")
    done = run("store.write_bytes(NAME, b'whole'); os.write(2, b'went on')", store, *watch)
    assert done.returncode == 0, done.stderr
    steps = [_step(line, store.root) for line in trace.read_text().splitlines()]
    assert [step for step in steps if step] == [
        *("fsync out/shards", "fsync out", "fsync ."),  # each new folder, in the one that holds it
        "create aside",
        "write aside",
        *("fsync aside", "rename aside to out/shards/coco/00042.tar", "fsync out/shards/coco"),
        "went on",
    ]


def _step(line: str, root: str) -> str | None:
    """A line of strace, as a step in the life of our file; None: about something else."""
    line = re.sub(r"\.00042\.tar\.[0-9a-f-]+\.part", "aside", line).replace(str(Path(root).parent), ".")
    line = line.replace("./out/shards/coco/aside", "aside").replace("./out", "out")
    if match := re.search(r"fsync\(\d+<([^>]*)>\) += 0", line):
        return f"fsync {match[1]}"
    if re.search(r'openat\(.*"aside", .*O_CREAT', line):
        return "create aside"
    if re.search(r"write\(\d+<aside>", line):
        return "write aside"
    if match := re.search(r'rename\w*\(.*"aside", (?:AT_FDCWD\S+ )?"([^"]*)".*= 0', line):
        return f"rename aside to {match[1]}"
    return "went on" if "went on" in line else None


@needs_strace
@pytest.mark.parametrize(
    ("call", "found"), [("fsync:when=1", b"old"), ("rename", b"old"), ("fsync:when=2", b"new")]
)
def test_a_kill_at_any_step_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, call: str, found: bytes
) -> None:
    store = Store(str(tmp_path))
    store.write_bytes(NAME, b"old")
    name, _, when = call.partition(":")
    strike = f"inject={name}:signal=KILL:{when}".rstrip(":")
    watch = ("strace", "-f", "-qq", "-e", f"trace={name}", "-e", strike)
    assert run("store.write_bytes(NAME, b'new')", store, *watch).returncode != 0
    assert store.read_bytes(NAME) == found
    store.sweep()
    assert everything(store) == [NAME]


@needs_strace
def test_a_full_disk_is_an_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_bytes(NAME, b"old")
    full = ("strace", "-f", "-qq", "-e", "trace=fsync", "-e", "inject=fsync:error=ENOSPC:when=1")
    done = run("store.write_bytes(NAME, b'new')", store, *full)
    assert "No space left on device" in done.stderr
    assert store.read_bytes(NAME) == b"old" and everything(store) == [NAME]


# One name, one owner


def test_only_one_of_many_creates_a_file_and_the_others_find_it_whole(store: Store) -> None:
    callers, rounds = 6, 10
    together = threading.Barrier(callers, timeout=30)

    def create(caller: int) -> list[tuple[bool, bytes]]:
        ends: list[tuple[bool, bytes]] = []
        for turn in range(rounds):
            together.wait()
            mine = store.create(f"{turn}", bytes([caller]) * 1000)
            ends.append((mine, store.read_bytes(f"{turn}")))
        return ends

    with ThreadPoolExecutor(callers) as pool:
        by_caller = list(pool.map(create, range(callers)))
    for turn in range(rounds):
        (owner,) = [caller for caller, ends in enumerate(by_caller) if ends[turn][0]]
        assert {ends[turn][1] for ends in by_caller} == {bytes([owner]) * 1000}
    assert len(everything(store)) == rounds


# Where


def test_a_file_url_is_the_folder(tmp_path: Path) -> None:
    assert Store(f"file://{tmp_path}").root == Store(str(tmp_path)).root


def test_a_home_folder_and_a_relative_path_are_resolved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Store("~/out").root == Store("out").root == str(tmp_path / "out")


def test_an_unknown_kind_of_url_is_a_bad_request() -> None:
    with pytest.raises(BadRequest, match="nowhere://x"):
        Store("nowhere://x")


def test_a_mistyped_bucket_is_an_error_and_is_not_made(bucket: str) -> None:
    with pytest.raises(FileNotFoundError):
        Store("s3://corpra/out").write_bytes(NAME, b"")
    assert not s3fs.S3FileSystem(skip_instance_cache=True).exists("corpra")
