"""Decoding where it cannot hurt: in processes that may use so much memory, so much time, and nothing else.

    normalise(body) --body--> a process that only decodes --picture, or why there is none--> Picture | Reason
                                      |
                                      +- crashes: another takes the body once more, then DECODE_CRASH
                                      +- takes too long: it is killed, DECODE_TIMEOUT

What comes back is read as data: lengths, one JSON object, the bytes to store.
"""

import atexit
import contextlib
import ctypes
import json
import os
import queue
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Any, Self

from pmd.errors import PmdError
from pmd.images import Picture, normalise
from pmd.manifest import ImageSpec
from pmd.records import Reason

CPU_S = 30.0  # of one picture
WALL_S = 300.0  # of one picture: on a machine that is busy with other things too
# Bytes, beside what a process has when it begins: for the pixels, several times over, and for what is fixed.
MEMORY_A_PIXEL, MEMORY = 16, 256 << 20
OPEN_FILES = 32  # modules that decoders load late
# Freed blocks below this size are kept: to give each picture's pages back to the system, and to have them
# zeroed again, takes a fifth of the time of decoding it.
KEPT_BLOCK = 64 << 20
START_S = 120.0
# A request: bytes of body, degrees, is there a rotation? An answer: bytes of JSON, bytes to store.
_REQUEST, _ANSWER = struct.Struct(">Ii?"), struct.Struct(">II")
MOST_JSON, MOST_STORED = 1 << 16, 1 << 30
_PIPE = 1 << 20  # bytes that a pipe holds; most bodies go through without waiting


class Sandbox:
    """Some processes that decode under one spec. Started when first needed; may be used from any thread."""

    def __init__(
        self,
        spec: ImageSpec,
        *,
        processes: int = 1,
        cpu_s: float = CPU_S,
        wall_s: float = WALL_S,
        memory: int | None = None,
    ) -> None:
        """memory: bytes that each may use beside what it begins with."""
        self.spec = spec
        self._wall_s = wall_s
        memory = MEMORY + MEMORY_A_PIXEL * spec.max_pixels if memory is None else memory
        self._arguments = (spec.model_dump_json(), str(cpu_s), str(memory))
        self._free: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        for _ in range(processes):
            self._free.put(None)
        self._all: set[_Child] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            for child in self._all:
                child.end()
            self._all.clear()

    @property
    def pids(self) -> list[int]:
        with self._lock:
            return sorted(child.process.pid for child in self._all)

    def cpu_s(self) -> float:
        """What its processes have used so far, of those that live."""
        used = 0.0
        for pid in self.pids:
            with contextlib.suppress(OSError):
                used += time.clock_gettime((~pid << 3) | 2)  # the clock that Linux has of each process
        return used

    def normalise(self, body: bytes, rotation: int | None = None) -> Picture | Reason:
        """As pmd.images.normalise does it. Waits for a process that is free.

        Raises PmdError where no such process can be started.
        """
        child = self._free.get()
        try:
            for _ in range(2):
                if child is None:
                    child = _Child(self._arguments)
                    with self._lock:
                        self._all.add(child)
                try:
                    return child.ask(body, rotation, wall_s=self._wall_s)
                except _Ended as end:
                    with self._lock:
                        self._all.discard(child)
                    child = None
                    if end.reason is Reason.DECODE_TIMEOUT:
                        return end.reason
            return Reason.DECODE_CRASH
        finally:
            self._free.put(child)


_kept: Sandbox | None = None
_kept_by = 0  # pid: two processes that ask one decoder would get each other's pictures
_kept_lock = threading.Lock()


def kept_sandbox(spec: ImageSpec, *, processes: int) -> Sandbox:
    """The one of this process. It outlives tasks: to start one takes as long as dozens of pictures."""
    global _kept, _kept_by
    with _kept_lock:
        if _kept_by != os.getpid():  # forked: those are the parent's
            _kept, _kept_by = None, os.getpid()
        if _kept is None or _kept.spec != spec:
            if _kept is not None:
                _kept.close()
            else:
                atexit.register(_close_kept)
            _kept = Sandbox(spec, processes=processes)
        return _kept


def _close_kept() -> None:
    if _kept is not None and _kept_by == os.getpid():
        _kept.close()


class _Ended(Exception):
    """A process is gone, and with it what it was asked."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class _Child:
    """One process, asked one thing at a time."""

    def __init__(self, arguments: tuple[str, ...]) -> None:
        # Its environment says where Python finds modules, and nothing else: no secret is there to be read.
        environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "LC_ALL": "C.UTF-8"}
        environment |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
        command = (sys.executable, "-m", "pmd.images.sandbox", *arguments)
        pipe = subprocess.PIPE
        try:
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, bufsize=0
            )
        except OSError as error:
            raise PmdError(f"no process to decode in can be started: {error}") from error
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self._to, self._from = self.process.stdin.fileno(), self.process.stdout.fileno()
        for end in (self._to, self._from):
            os.set_blocking(end, False)
        try:
            ready = self._read(_ANSWER.size, until=time.monotonic() + START_S)
            assert ready == _ANSWER.pack(0, 0), ready
        except _Ended:
            said = self.process.stderr.read().decode(errors="replace").strip()
            raise PmdError(f"the process to decode in does not start:\n{said}") from None
        finally:
            self.process.stderr.close()

    def ask(self, body: bytes, rotation: int | None, *, wall_s: float) -> Picture | Reason:
        """Raises _Ended."""
        until = time.monotonic() + wall_s
        self._write(_REQUEST.pack(len(body), rotation or 0, rotation is not None), until=until)
        self._write(body, until=until)
        said, stored = _ANSWER.unpack(self._read(_ANSWER.size, until=until))
        if not 0 < said <= MOST_JSON or stored > MOST_STORED:
            raise self._ended(Reason.DECODE_CRASH)
        answer = json.loads(self._read(said, until=until))
        if "error" in answer:
            raise RuntimeError(f"in the process that decodes:\n{answer['error']}")
        if "reason" in answer:
            return Reason(answer["reason"])
        return Picture(stored=self._read(stored, until=until), **answer)

    def _write(self, data: bytes, *, until: float) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._to, left) :]
            except BlockingIOError:
                self._wait(self._to, select.POLLOUT, until)
            except BrokenPipeError:
                raise self._ended(Reason.DECODE_CRASH) from None

    def _read(self, length: int, *, until: float) -> bytes:
        data = bytearray()
        while len(data) < length:
            try:
                part = os.read(self._from, length - len(data))
            except BlockingIOError:
                self._wait(self._from, select.POLLIN, until)
                continue
            if not part:
                raise self._ended(Reason.DECODE_CRASH)
            data += part
        return bytes(data)

    def _wait(self, end: int, what: int, until: float) -> None:
        poll = select.poll()
        poll.register(end, what)
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            raise self._ended(Reason.DECODE_TIMEOUT)

    def _ended(self, reason: Reason) -> _Ended:
        self.end()
        # The kernel's word that it has had its time.
        return _Ended(Reason.DECODE_TIMEOUT if self.process.returncode == -signal.SIGPROF else reason)

    def end(self) -> None:
        """At once, whatever it is doing."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        if self.process.poll() is None:
            # It may just be ending by itself, and how says why.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


# In the process


def _serve(spec: ImageSpec, *, cpu_s: float, memory: int) -> None:
    """Answer until nobody asks any more."""
    to = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    with contextlib.suppress(OSError):
        for end in (0, to):
            _set_pipe_size(end)
    _confine(memory)
    _send(to, b"", b"")
    # What libraries print goes nowhere: nobody reads it, and a full pipe would stop them.
    for end in (1, 2):
        os.dup2(nowhere, end)
    while len(head := _take(_REQUEST.size)) == _REQUEST.size:
        length, degrees, turned = _REQUEST.unpack(head)
        body = _take(length)
        if len(body) < length:
            return
        # Of the CPU, from now on. When it is used up, the kernel ends the process.
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        try:
            picture = normalise(body, spec, degrees if turned else None)
        except MemoryError:
            picture = Reason.DECODE_LIMIT
        except Exception:
            _send(to, json.dumps({"error": traceback.format_exc()[-20_000:]}).encode(), b"")
            continue
        if isinstance(picture, Reason):
            _send(to, json.dumps({"reason": picture}).encode(), b"")
        else:
            facts: dict[str, Any] = dict(vars(picture))
            stored: bytes = facts.pop("stored")
            _send(to, json.dumps(facts).encode(), stored)


def _confine(memory: int) -> None:
    """From here on: no more memory than this, no file to write, no other program, no privilege to gain."""
    libc = ctypes.CDLL(None, use_errno=True)
    m_mmap_threshold, m_trim_threshold = -3, -1
    for option in (m_mmap_threshold, m_trim_threshold):
        libc.mallopt(option, KEPT_BLOCK)
    pr_set_no_new_privs = 38
    if libc.prctl(pr_set_no_new_privs, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    with open("/proc/self/statm") as file:
        begins_with = int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")
    limits = {
        resource.RLIMIT_AS: begins_with + memory,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_NOFILE: OPEN_FILES,
    }
    for which, most in limits.items():
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))


def _set_pipe_size(end: int) -> None:
    import fcntl

    fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, _PIPE)


def _take(length: int) -> bytes:
    data = bytearray()
    while len(data) < length and (part := os.read(0, length - len(data))):
        data += part
    return bytes(data)


def _send(end: int, said: bytes, stored: bytes) -> None:
    left = memoryview(_ANSWER.pack(len(said), len(stored)) + said + stored)
    while left:
        left = left[os.write(end, left) :]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the one who asks
    _serve(ImageSpec.model_validate_json(sys.argv[1]), cpu_s=float(sys.argv[2]), memory=int(sys.argv[3]))
