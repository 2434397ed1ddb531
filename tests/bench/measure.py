"""What benchmarks share: repeated timing, the cost of a child process or its tree, the JSON they print.

{"name", "figures": {...}, "ratios": {...}, "commit", "machine"}
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_S = 0.1  # between two looks at a tree's processor time; at its memory every fifth time


def options(description: str | None, **defaults: int | str) -> argparse.Namespace:
    """The command line of a benchmark: --json, and for each keyword an option of its default's type."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on one line")
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"[default: {default}]")
    return parser.parse_args()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def medians(works: dict[str, Callable[[], object]], *, repeats: int) -> dict[str, float]:
    """Median seconds of each, taken by turns, so that a slow spell of the machine falls on all alike."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            taken[name].append(seconds(work))
    return {name: statistics.median(times) for name, times in taken.items()}


@dataclass(frozen=True)
class Child:
    """A finished child process."""

    seconds: float
    cpu_s: float  # user and system, all its threads
    peak_mb: float  # resident, of the process itself
    stdout: str


def child(command: Sequence[str]) -> Child:
    """Run a command and measure it; its standard error goes to ours. Raises if it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    cpu_s = usage.ru_utime + usage.ru_stime
    return Child(time.perf_counter() - start, cpu_s, usage.ru_maxrss / 1024, output)


@dataclass(frozen=True)
class Tree:
    """A finished child process with all that it started, as seen while it ran.

    What a process does after the last look at it is missing: less than SAMPLE_S each.
    """

    seconds: float
    cpu_s: float  # user and system
    cpu_s_by_name: dict[str, float]  # of the programs' names, as `ps` shows them
    peak_mb: float  # memory, that shared by several counted once (PSS)
    peak_mb_by_name: dict[str, float]  # what that was made of


def tree(command: Sequence[str]) -> Tree:
    """Run a command, and watch it and its descendants. Raises if it fails, with what it printed."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    cpu: dict[tuple[int, float], tuple[str, float]] = {}  # process -> its name, its time so far
    peak: dict[str, float] = {}
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        looks = 0
        while not over.wait(SAMPLE_S):
            memory: dict[str, float] = {}
            for each in _descendants(process.pid):
                try:
                    times = each.cpu_times()
                    name = Path((each.cmdline() or [each.name()])[0].split()[0]).name
                    cpu[each.pid, each.create_time()] = (name, times.user + times.system)
                    if looks % 5 == 0:
                        memory[name] = memory.get(name, 0.0) + each.memory_full_info().pss / 1e6
                except psutil.Error:  # ended while we looked
                    continue
            peak = max(peak, memory, key=lambda held: sum(held.values()))
            looks += 1

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        output = process.communicate()[0]
        seconds = time.perf_counter() - start
    finally:
        over.set()
        watcher.join()
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}:\n{output}")
    by_name: dict[str, float] = {}
    for name, taken in cpu.values():
        by_name[name] = by_name.get(name, 0.0) + taken
    return Tree(seconds, sum(by_name.values()), by_name, sum(peak.values()), peak)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_s(pid: int) -> float:
    """What a running process has taken so far."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def pmd() -> str:
    """The `pmd` of the environment that the benchmark runs in."""
    return str(Path(sys.executable).parent / "pmd")


def report(name: str, *, figures: dict[str, float], ratios: dict[str, float], as_json: bool) -> None:
    """Print a benchmark's result, for a script or for a person."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    machine = (
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {_processor()}"
    )
    rounded = (
        {key: round(value, 4) for key, value in figures.items()},
        {key: round(value, 3) for key, value in ratios.items()},
    )
    if as_json:
        print(
            json.dumps(
                {
                    "name": name,
                    "figures": rounded[0],
                    "ratios": rounded[1],
                    "commit": commit,
                    "machine": machine,
                }
            )
        )
        return
    print(f"{name} at {commit} on {machine}")
    for title, values in zip(("figures", "ratios"), rounded, strict=True):
        print(f"  {title}")
        for key, value in values.items():
            print(f"    {key:<40} {value:>14,}")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
