"""Tasks on workers: this module alone knows Ray.

    with workers(Where(count=2)) as pool:
        for done in pool.run(function, tasks, heard=progress.hear):
            done.task, done.value or done.error

A task is a small picklable value that names files; its function reads and writes files of the output and
returns counts. Image bytes never pass through here. A function may be run twice for one task (a worker was
killed, a run was resumed) and must leave the same files. So many tasks are in flight as keep the workers busy
and no more; results are taken as they come; a task that fails is tried again, and after ATTEMPTS it is
reported with its error, never dropped.

    shared = pool.shared(make)                  # an object of which there is one, for all workers
    await shared.call("claim", "a.example")     # in the driver, and in tasks that `shared` was given to
"""

import asyncio
import contextlib
import functools
import os
import secrets
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from pmd.errors import BadRequest, PmdError

ATTEMPTS = 3
RAY_FLOOR = (2, 56)  # older ones run code from a hostile tar or Parquet file, or lack token authentication
REACH_S = 10.0  # for a cluster to accept a connection
LISTEN_S = 0.25  # how often the driver looks up from waiting
RETRY_S = 0.2  # to call a shared object again that is lost
RESTART_S = 120.0  # for a shared object that is lost to come back, perhaps on another machine

Tell = Callable[[Any], None]  # a running task's word on how far it is, for the progress display
Function = Callable[[Any, Tell], Any]


@dataclass(frozen=True)
class Where:
    """Which workers: so many on this machine, a Ray cluster's, or this very process."""

    count: int | None = None
    ray: str | None = None
    inline: bool = False

    def __post_init__(self) -> None:
        if (self.count is not None) + (self.ray is not None) + self.inline > 1:
            raise BadRequest("--workers, --ray and --inline exclude each other; give one of them")
        if self.count is not None and self.count < 1:
            raise BadRequest(f"--workers {self.count}: at least 1 is needed; --inline runs without workers")


@dataclass(frozen=True)
class Done:
    """The end of one task: its value, or the error of its last attempt."""

    task: Any
    value: Any = None
    error: str | None = None


class Shared(Protocol):
    """The one object that all workers call. Can be pickled, and given to tasks."""

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of it. While the object is being made anew this waits, and calls again: a method may
        be run twice for one call.
        """
        ...

    def look(self, method: str) -> Any:
        """What a method says, for a display: None where it does not say it at once."""
        ...


class Workers(Protocol):
    def shared(self, make: Callable[[bool], Any]) -> Shared:
        """An object that make(False) makes, once for all tasks of these workers. If it is lost with its
        process, make(True) makes another, which knows nothing of what the first one did.

        When a worker is known to have died in a task, its method `forget(name)` is called, if it has one;
        `name` is what task_name() says in that task.
        """
        ...

    def run(
        self, function: Function, tasks: Iterable[Any], *, heard: Callable[[Any, Any], None]
    ) -> Iterator[Done]:
        """Run a function over tasks; yields each task's end, in order of arrival.

        heard(task, word) is called with what running tasks tell of themselves; heard(task, None) takes it
        back, when a task is begun anew.
        """
        ...


@contextlib.contextmanager
def workers(where: Where) -> Generator[Workers]:
    """The workers that a command line asks for, for the time of the block."""
    if where.inline:
        with stopping_on_signals():
            yield Inline()
        return
    _start_ray(where)
    # Until it is shut down, Ray prints what becomes of workers on standard output, which is for results.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            # After ray.init, which installs a handler of its own.
            with stopping_on_signals():
                yield OnRay()
        finally:
            import ray

            ray.shutdown()


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM came. A KeyboardInterrupt: no `except Exception` and no event loop keeps it."""


@contextlib.contextmanager
def stopping_on_signals() -> Generator[None]:
    """SIGINT and SIGTERM raise Interrupted while the block runs; a second one ends the process at once."""

    def stop(number: int, _frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise Interrupted(signal.Signals(number).name) from None
        # An exception would land in whichever coroutine happens to run; cancelling lets all of them clean up.
        loop.call_soon_threadsafe(_cancel_all, loop)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()


def task_name() -> str:
    """A name for the running attempt at a task, which no other has."""
    ray = sys.modules.get("ray")
    task = ray.get_runtime_context().get_task_id() if ray is not None and ray.is_initialized() else None
    return task or f"{os.getpid()}-{secrets.token_hex(8)}"


class Inline:
    """One task after the other in this process: for debugging, and for machines without Ray."""

    def shared(self, make: Callable[[bool], Any]) -> Shared:
        return _SharedHere(make(False))

    def run(
        self, function: Function, tasks: Iterable[Any], *, heard: Callable[[Any, Any], None]
    ) -> Iterator[Done]:
        for task in tasks:
            for attempt in range(1, ATTEMPTS + 1):
                heard(task, None)
                try:
                    end = _attempt(function, task, lambda word, task=task: heard(task, word))
                except asyncio.CancelledError:
                    raise Interrupted from None
                if end.final or attempt == ATTEMPTS:
                    yield Done(task, end.value, end.error)
                    break


class _SharedHere:
    def __init__(self, thing: Any) -> None:
        self._thing = thing

    async def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._thing, method)(*arguments)

    def look(self, method: str) -> Any:
        return getattr(self._thing, method)()


class OnRay:
    """Tasks on the workers of a Ray that runs already."""

    def __init__(self) -> None:
        import ray
        import ray.exceptions

        self._ray = ray
        # What running tasks tell goes through one small actor; losing it costs the display some numbers, no
        # more.
        board: Any = ray.remote(num_cpus=0, max_restarts=-1)(_Board)
        self._board = board.remote()
        self._shared: list[Any] = []
        self._bound = (
            int(ray.cluster_resources().get("CPU", 1)) + 2
        )  # two wait at hand, so that no worker does

    def shared(self, make: Callable[[bool], Any]) -> Shared:
        thing: Any = self._ray.remote(num_cpus=0, max_restarts=-1)(_Thing)
        self._shared.append(thing.remote(make))
        return _SharedOnRay(self._shared[-1])

    def run(
        self, function: Function, tasks: Iterable[Any], *, heard: Callable[[Any, Any], None]
    ) -> Iterator[Done]:
        ray = self._ray
        # We count attempts ourselves. The name is what `ps` and Ray's own tools show of a worker.
        options = {"num_cpus": 1, "max_retries": 0, "name": getattr(function, "__name__", "task")}
        call: Any = ray.remote(**options)(_attempt_telling)
        waiting = enumerate(tasks)
        flying: dict[Any, tuple[int, Any, int]] = {}  # reference -> (number, task, attempt)
        by_number: dict[int, Any] = {}

        def launch(number: int, task: Any, attempt: int) -> None:
            by_number[number] = task
            flying[call.remote(function, task, self._board, number)] = (number, task, attempt)

        # What is in flight when a run is stopped is not cancelled: in Ray 2.60 a forced cancellation that
        # meets the answer ends the driver. The workers die with ray.shutdown, or with the driver's job.
        while True:
            while len(flying) < self._bound and (entry := next(waiting, None)) is not None:
                launch(*entry, 1)
            if not flying:
                return
            ready, _ = ray.wait([*flying], num_returns=1, timeout=LISTEN_S)
            for number, word in self._words():
                if number in by_number:
                    heard(by_number[number], word)
            for reference in ready:
                number, task, attempt = flying.pop(reference)
                try:
                    end: _End = ray.get(reference)
                except ray.exceptions.RayError as error:
                    # Other errors may mean that it is out of reach, and works on.
                    if isinstance(error, ray.exceptions.WorkerCrashedError | ray.exceptions.OutOfMemoryError):
                        for shared in self._shared:
                            shared.forget.remote(reference.task_id().hex())
                    end = _End(error=f"its worker died: {str(error).splitlines()[0]}", final=False)
                del by_number[number]
                if end.final or attempt == ATTEMPTS:
                    yield Done(task, end.value, end.error)
                else:
                    heard(task, None)
                    launch(number, task, attempt + 1)

    def _words(self) -> list[tuple[int, Any]]:
        with contextlib.suppress(self._ray.exceptions.RayError):
            return self._ray.get(self._board.take.remote(), timeout=1)
        return []


def _attempt_telling(function: Function, task: Any, board: Any, number: int) -> "_End":
    return _attempt(function, task, lambda word: board.put.remote(number, word))


class _Thing:
    """The actor that a shared object lives in."""

    def __init__(self, make: Callable[[bool], Any]) -> None:
        import ray

        restarted: Any = ray.get_runtime_context().was_current_actor_reconstructed
        self._thing = make(restarted)

    def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        return getattr(self._thing, method)(*arguments)

    def forget(self, name: str) -> None:
        if hasattr(self._thing, "forget"):
            self._thing.forget(name)


class _SharedOnRay:
    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def call(self, method: str, *arguments: Any) -> Any:
        import ray.exceptions

        give_up = time.monotonic() + RESTART_S
        while True:
            try:
                return await self._actor.call.remote(method, arguments)
            except ray.exceptions.RayActorError as error:
                if time.monotonic() > give_up:
                    why = str(error).splitlines()[0]
                    raise PmdError(f"what the workers share is lost, and does not come back: {why}") from None
            await asyncio.sleep(RETRY_S)

    def look(self, method: str) -> Any:
        import ray
        import ray.exceptions

        with contextlib.suppress(ray.exceptions.RayError):
            return ray.get(self._actor.call.remote(method, ()), timeout=1)
        return None


class _Board:
    """The newest word of each running task, until the driver takes it."""

    def __init__(self) -> None:
        self._words: dict[int, Any] = {}

    def put(self, number: int, word: Any) -> None:
        self._words[number] = word

    def take(self) -> list[tuple[int, Any]]:
        taken, self._words = [*self._words.items()], {}
        return taken


class _End(NamedTuple):
    """How one attempt at a task ended. Errors are put into words where they arise: not all can be pickled."""

    value: Any = None
    error: str | None = None
    final: bool = True  # another attempt would end the same


def _attempt(function: Function, task: Any, tell: Tell) -> _End:
    try:
        return _End(function(task, tell))
    except Exception as raised:
        error: BaseException = raised
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, PmdError):
            return _End(error=str(error))  # it says that the world is wrong, and will be so again
        where = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{where.filename}:{where.lineno}"
        return _End(error=f"{type(error).__name__}: {error} ({at})", final=False)


def _start_ray(where: Where) -> None:
    """Join a cluster, or start a Ray of our own: no dashboard, loopback only, and nobody joins it without its
    token.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # what runs here is nobody else's business
    if where.ray is None:
        # Read when ray is imported. Its name is history: it makes a node listen on 127.0.0.1 instead of all
        # addresses.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=_token())
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its new default, without the warning
    try:
        import ray
    except ImportError as error:
        raise BadRequest(f"Ray does not load ({error}); reinstall it, or use --inline") from None
    if tuple(int(part) for part in ray.__version__.split(".")[:2]) < RAY_FLOOR:
        raise BadRequest(
            f"Ray {ray.__version__} has known holes; install at least {'.'.join(map(str, RAY_FLOOR))}"
        )
    common = {"logging_level": "error", "log_to_driver": False, "configure_logging": False}
    if where.ray is not None:
        _check_reachable(where.ray)
        try:
            ray.init(address=where.ray, **common)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise BadRequest(f"--ray {where.ray}: {error}") from None
        return
    ray.init(
        address="local",  # or RAY_ADDRESS in the environment would be joined
        num_cpus=where.count or os.cpu_count() or 1,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=100 * 2**20,  # holds counts and names only
        **common,
    )


@functools.cache
def _token() -> str:
    """Of every Ray that this process starts: it reads one, and keeps to it."""
    return secrets.token_hex(32)


def _check_reachable(address: str) -> None:
    """Ask whether anybody listens there: Ray itself would wait for minutes before it says no."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "auto", and what else Ray may know
    try:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
    except OSError as error:
        raise BadRequest(f"--ray {address}: nobody answers there ({error}); is the cluster up?") from None
