"""What every benchmark shares: repeated timing, memory of a child process, and the JSON they print.

{"name", "figures": {...}, "ratios": {...}, "commit", "machine"}
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


def options(description: str | None, **numbers: int) -> argparse.Namespace:
    """The command line of a benchmark: --json, and a whole-number option for each keyword."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on one line")
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"[default: {default}]")
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
