"""The laws of pipelines/run.py, for tasks run here and for tasks run by a real Ray on this machine."""

import asyncio
import contextlib
import ipaddress
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.run import ATTEMPTS, Done, Shared, Tell, Where, Workers, task_name, workers
from pmd.errors import BadRequest, Refused

RAY_WORKERS = 2


@pytest.fixture(scope="module")
def on_ray() -> Iterator[Workers]:
    with workers(Where(count=RAY_WORKERS)) as pool:
        yield pool


@pytest.fixture(params=["inline", "ray"])
def pool(request: pytest.FixtureRequest) -> Iterator[Workers]:
    if request.param == "ray":
        yield request.getfixturevalue("on_ray")
        return
    with workers(Where(inline=True)) as pool:
        yield pool


@dataclass(frozen=True)
class Job:
    """A task that leaves a mark for each of its attempts, in files: it may be run by any process."""

    folder: Path
    name: str
    what: Callable[["Job", int], Any] = lambda job, attempt: job.name
    other: str = ""

    def attempts(self) -> int:
        return len([*self.folder.glob(f"{self.name}.attempt-*")])

    def wait_for(self, name: str) -> None:
        give_up = time.monotonic() + 30
        while not (self.folder / name).exists():
            assert time.monotonic() < give_up, f"{name} never came"
            time.sleep(0.01)


def work(job: Job, tell: Tell) -> Any:
    attempt = job.attempts() + 1
    (job.folder / f"{job.name}.attempt-{attempt}").touch()
    return job.what(job, attempt)


def ends(pool: Workers, jobs: list[Job]) -> dict[str, Done]:
    """How each job ended, by name; each of them once."""
    found = [*pool.run(work, jobs, heard=lambda job, word: None)]
    assert sorted(done.task.name for done in found) == sorted(job.name for job in jobs)
    return {done.task.name: done for done in found}


# What jobs do


def fail(job: Job, attempt: int) -> None:
    raise OSError(28, "No space left on device", "/data/00042.tar")


def fail_once(job: Job, attempt: int) -> int:
    if attempt == 1:
        fail(job, attempt)
    return attempt


def refuse(job: Job, attempt: int) -> None:
    raise Refused("a.tsv: sha256 is 9a, pinned is c4. Bring it back.")


def refuse_in_a_group(job: Job, attempt: int) -> None:
    raise ExceptionGroup("several tasks", [ExceptionGroup("inner", [Refused("a.tsv changed")])])


class Odd(Exception):
    """Cannot be pickled, and could not be unpickled."""

    def __init__(self, message: str, stream: Any):
        super().__init__(message)
        self.stream = stream


def fail_oddly(job: Job, attempt: int) -> None:
    raise Odd("odd", sys.stdin)


def die(job: Job, attempt: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(job: Job, attempt: int) -> int:
    if attempt == 1:
        die(job, attempt)
    return attempt


def wait_for_other(job: Job, attempt: int) -> str:
    job.wait_for(f"{job.other}.ended")
    return job.name


# Ends


def test_every_task_ends_once_with_its_value(pool: Workers, tmp_path: Path) -> None:
    found = ends(pool, [Job(tmp_path, f"job-{number}") for number in range(20)])
    assert {name: done.value for name, done in found.items()} == {name: name for name in found}
    assert {done.error for done in found.values()} == {None}


def test_a_task_that_goes_on_failing_is_reported_with_its_error_and_the_others_are_done(
    pool: Workers, tmp_path: Path
) -> None:
    bad = Job(tmp_path, "bad", fail)
    found = ends(pool, [Job(tmp_path, "before"), bad, *(Job(tmp_path, f"after-{n}") for n in range(5))])
    assert bad.attempts() == ATTEMPTS
    error = found.pop("bad").error
    where = rf"\({__file__}:\d+\)"
    assert re.fullmatch(
        rf"OSError: \[Errno 28\] No space left on device: '/data/00042\.tar' {where}", error or ""
    )
    assert {done.value for done in found.values()} == {*found}


def test_a_task_that_fails_once_is_done_at_its_next_attempt(pool: Workers, tmp_path: Path) -> None:
    assert ends(pool, [Job(tmp_path, "shaky", fail_once)])["shaky"].value == 2


def test_an_error_is_told_though_it_could_not_be_sent(pool: Workers, tmp_path: Path) -> None:
    job = Job(tmp_path, "odd", fail_oddly)
    assert (ends(pool, [job])["odd"].error or "").startswith("Odd: odd (")
    assert job.attempts() == ATTEMPTS


@pytest.mark.parametrize(
    ("what", "said"),
    [(refuse, "a.tsv: sha256 is 9a, pinned is c4. Bring it back."), (refuse_in_a_group, "a.tsv changed")],
)
def test_an_error_of_ours_is_final_and_told_in_its_own_words(
    pool: Workers, tmp_path: Path, what: Callable[[Job, int], Any], said: str
) -> None:
    job = Job(tmp_path, "wrong", what)
    assert ends(pool, [job])["wrong"].error == said
    assert job.attempts() == 1


def test_a_task_whose_worker_is_killed_is_begun_anew(on_ray: Workers, tmp_path: Path) -> None:
    found = ends(on_ray, [Job(tmp_path, "struck", die_once), Job(tmp_path, "other")])
    assert (found["struck"].value, found["other"].value) == (2, "other")


def test_a_task_that_always_kills_its_worker_is_named_and_the_others_are_done(
    on_ray: Workers, tmp_path: Path
) -> None:
    deadly = Job(tmp_path, "deadly", die)
    found = ends(on_ray, [deadly, *(Job(tmp_path, f"other-{n}") for n in range(5))])
    assert deadly.attempts() == ATTEMPTS
    assert "its worker died" in (found.pop("deadly").error or "")
    assert {done.value for done in found.values()} == {*found}


def test_results_are_given_as_they_come_not_as_they_were_asked_for(on_ray: Workers, tmp_path: Path) -> None:
    jobs = [Job(tmp_path, "slow", wait_for_other, other="fast"), Job(tmp_path, "fast")]
    order: list[str] = []
    for done in on_ray.run(work, jobs, heard=lambda job, word: None):
        order.append(done.task.name)
        (tmp_path / f"{done.task.name}.ended").touch()
    assert order == ["fast", "slow"]


def test_tasks_are_taken_as_workers_need_them(pool: Workers, tmp_path: Path) -> None:
    taken = ended = most = 0

    def jobs() -> Iterator[Job]:
        nonlocal taken, most
        for number in itertools.count():  # never ends, so it must not be read to its end
            taken += 1
            most = max(most, taken - ended)
            yield Job(tmp_path, f"job-{number}")

    with contextlib.closing(pool.run(work, jobs(), heard=lambda job, word: None)) as found:  # type: ignore[type-var]
        for _ in itertools.islice(found, 20):
            ended += 1
    assert most <= RAY_WORKERS + 2


# Words


def tell_and_wait(job: Job, tell: Tell) -> None:
    attempt = job.attempts() + 1
    (job.folder / f"{job.name}.attempt-{attempt}").touch()
    tell({"done": attempt})
    job.wait_for(f"{job.name}.heard-{attempt}")
    if attempt == 1:
        fail(job, attempt)


def test_what_a_running_task_tells_is_heard_and_taken_back_when_it_begins_anew(
    pool: Workers, tmp_path: Path
) -> None:
    words: list[tuple[str, Any]] = []

    def heard(job: Job, word: Any) -> None:
        words.append((job.name, word))
        if word is not None:
            (tmp_path / f"{job.name}.heard-{word['done']}").touch()

    (done,) = pool.run(tell_and_wait, [Job(tmp_path, "chatty")], heard=heard)
    assert done.error is None
    told = [entry for place, entry in enumerate(words) if place or entry[1] is not None]
    assert told == [("chatty", {"done": 1}), ("chatty", None), ("chatty", {"done": 2})]


# What workers share


class Tally:
    """Counts, where all can see it."""

    def __init__(self, restarted: bool) -> None:
        self.restarted = restarted
        self.counts: dict[str, int] = {}
        self.dead: list[str] = []

    def add(self, name: str, more: int = 1) -> int:
        self.counts[name] = self.counts.get(name, 0) + more
        return self.counts[name]

    def die_once(self) -> bool:
        if not self.restarted:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.restarted

    def fail(self) -> None:
        raise ValueError("not like this")

    def forget(self, name: str) -> None:
        self.dead.append(name)

    def told(self) -> list[Any]:
        return [self.counts, self.dead]


@dataclass(frozen=True)
class Call:
    name: str
    shared: Shared
    method: str
    arguments: tuple[Any, ...] = ()
    marks: Path | None = None


def call_once(call: Call, tell: Tell) -> Any:
    return asyncio.run(call.shared.call(call.method, *call.arguments))


def die_by_name(call: Call, tell: Tell) -> str:
    """Its first attempt dies when it has left its name."""
    assert call.marks is not None
    mark = call.marks / "name"
    if not mark.exists():
        mark.write_text(task_name())
        os.kill(os.getpid(), signal.SIGKILL)
    return task_name()


def look(shared: Shared, method: str, until: Callable[[Any], bool]) -> Any:
    give_up = time.monotonic() + 30
    while not until(value := shared.look(method)):
        assert time.monotonic() < give_up, value
        time.sleep(0.01)
    return value


def test_a_shared_object_is_one_for_all_tasks_and_another_is_another(pool: Workers) -> None:
    shared, other = pool.shared(Tally), pool.shared(Tally)
    calls = [Call(f"{n}", shared, "add", ("a", n)) for n in range(10)]
    calls += [Call("other", other, "add", ("a",))]
    assert {done.error for done in pool.run(call_once, calls, heard=lambda task, word: None)} == {None}
    assert look(shared, "told", lambda told: told is not None)[0] == {"a": 45}
    assert look(other, "told", lambda told: told is not None)[0] == {"a": 1}
    assert asyncio.run(shared.call("add", "a")) == 46, "the driver calls it too"


def test_what_a_shared_object_raises_is_raised_by_who_calls(pool: Workers) -> None:
    shared = pool.shared(Tally)
    (done,) = pool.run(call_once, [Call("bad", shared, "fail")], heard=lambda task, word: None)
    assert "not like this" in (done.error or "")


def test_a_shared_object_that_is_lost_is_made_anew_and_called_again(on_ray: Workers) -> None:
    shared = on_ray.shared(Tally)
    first = [Call("first", shared, "add", ("a",))]
    assert [done.value for done in on_ray.run(call_once, first, heard=lambda task, word: None)] == [1]
    calls = [Call("deadly", shared, "die_once"), *(Call(f"{n}", shared, "add", ("b",)) for n in range(5))]
    ends = {done.task.name: done for done in on_ray.run(call_once, calls, heard=lambda task, word: None)}
    assert {name: end.error for name, end in ends.items()} == {name: None for name in ends}
    assert ends["deadly"].value is True
    counts, _ = look(shared, "told", lambda told: told is not None)
    assert counts.keys() <= {"b"}, "what the first one knew is gone"


def test_a_shared_object_is_told_of_a_worker_that_died(on_ray: Workers, tmp_path: Path) -> None:
    shared = on_ray.shared(Tally)
    call = Call("struck", shared, "add", marks=tmp_path)
    (done,) = on_ray.run(die_by_name, [call], heard=lambda task, word: None)
    dead = (tmp_path / "name").read_text()
    assert done.value != dead, "each attempt has its own"
    assert look(shared, "told", lambda told: told is not None and told[1])[1] == [dead]


# Ray itself


@pytest.mark.parametrize(
    "given", [{"count": 2, "inline": True}, {"count": 2, "ray": "a:1"}, {"ray": "a", "inline": True}]
)
def test_one_kind_of_workers_is_asked_for(given: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="exclude each other"):
        Where(**given)


def test_workers_are_at_least_one() -> None:
    with pytest.raises(BadRequest, match="at least 1"):
        Where(count=0)


def test_our_ray_listens_on_loopback_alone(on_ray: Workers, tmp_path: Path) -> None:
    ends(on_ray, [Job(tmp_path, f"job-{number}") for number in range(4)])  # so that all its processes are up
    listening: list[str] = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    listening.append(connection.laddr.ip.removeprefix("::ffff:"))
    assert len(listening) > 3, "Ray's own services at least"
    assert {address for address in listening if not ipaddress.ip_address(address).is_loopback} == set()


def test_nobody_joins_our_ray_without_its_token(on_ray: Workers) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    join = f"import ray; ray._raylet.GcsClient(address={address!r}).internal_kv_keys(b'', b'')"
    stranger = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    guess = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    for environment in (stranger, stranger | guess):
        done = subprocess.run([sys.executable, "-c", join], capture_output=True, text=True, env=environment)
        assert "InvalidAuthToken" in done.stderr
    subprocess.run([sys.executable, "-c", join], check=True)  # with it, which is in our environment


# Signals

SCRIPT = """
import asyncio, os, pathlib, signal, sys, time
from pipelines.run import Where, workers

async def wait(task):
    try:
        pathlib.Path(task).touch()
        await asyncio.sleep(600)
    finally:
        await asyncio.sleep(0)
        print("cleaned up")

def work(task, tell):
    if task == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if task.endswith("async"):
        asyncio.run(wait(task))
    pathlib.Path(task).touch()
    time.sleep(600)

try:
    with workers(Where(WHERE)) as pool:
        for done in pool.run(work, sys.argv[1:], heard=lambda task, word: None):
            pass
except KeyboardInterrupt:
    print("stopped")
"""


def stopped(number: signal.Signals, *, where: str, tasks: list[str]) -> str:
    """What a run prints that gets a signal while it is at its last task; none of its processes is left."""
    command = [sys.executable, "-c", SCRIPT.replace("WHERE", where), *tasks]
    # An address in the environment is another Ray's, which was not asked for.
    elsewhere = os.environ | {"RAY_ADDRESS": "192.0.2.1:6379"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=elsewhere) as process:
        while not Path(tasks[-1]).exists():
            assert process.poll() is None, "it ended before it began"
            time.sleep(0.05)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(number)
        told, _ = process.communicate(timeout=60)
    assert psutil.wait_procs(family, timeout=20)[1] == []
    return told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run(tmp_path: Path, number: signal.Signals) -> None:
    assert stopped(number, where="inline=True", tasks=[str(tmp_path / "task")]) == "stopped\n"


def test_a_signal_lets_coroutines_clean_up(tmp_path: Path) -> None:
    task = str(tmp_path / "task.async")
    assert stopped(signal.SIGTERM, where="inline=True", tasks=[task]) == "cleaned up\nstopped\n"


def test_a_signal_ends_our_ray_which_has_printed_nothing_among_the_results(tmp_path: Path) -> None:
    tasks = ["die", str(tmp_path / "task")]  # Ray has a lot to say of the killed worker
    assert stopped(signal.SIGTERM, where="count=1", tasks=tasks) == "stopped\n"
