"""The laws of pipelines/progress.py: what a log file shows of a stage."""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from rich.console import Console

from pipelines.progress import Progress, clock


@dataclass(frozen=True)
class Task:
    source: str
    number: int


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    with io.StringIO() as file:
        yield file


def progress(log: io.StringIO, *, terminal: bool = False, quiet: bool = False) -> Progress:
    return Progress(
        quiet=quiet, console=Console(file=log, force_terminal=terminal, width=200, highlight=False)
    )


def tick(done: int, kept: int = 0, **dropped: int) -> dict[str, object]:
    return {"done": done, "kept": kept, "dropped": dropped}


@pytest.mark.parametrize("terminal", [False, True])
def test_a_source_is_summed_up_once_when_it_is_done(log: io.StringIO, terminal: bool) -> None:
    shown = progress(log, terminal=terminal)
    with shown.stage("download", {"coco": 10, "cc3m": 0}):
        for number in (0, 1):
            shown.heard(Task("coco", number), None)
            shown.heard(Task("coco", number), tick(2, 2))
            shown.finished(Task("coco", number), {"tick": tick(5, 4, http_404=1)})
    end = "10/10 images"
    assert "kept 80%  http_404 20%" in log.getvalue()
    if not terminal:
        assert len(log.getvalue().splitlines()) == 1 and end in log.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_what_runs_after_a_stage_is_not_shown_as_part_of_it(log: io.StringIO, terminal: bool) -> None:
    shown = progress(log, terminal=terminal)
    with shown.stage("plan", {"coco": 1}, unit="parts"):
        shown.finished(Task("coco", 0), {"tick": tick(1)})
    before = log.getvalue()
    shown.heard(Task("coco", 0), None)
    shown.finished(Task("coco", 0), {"published": 1})
    assert log.getvalue() == before


def test_a_task_that_begins_anew_takes_back_what_it_said(log: io.StringIO) -> None:
    shown = progress(log)
    with shown.stage("download", {"coco": 4}):
        shown.heard(Task("coco", 0), tick(3, 3))
        shown.heard(Task("coco", 0), None)
        shown.finished(Task("coco", 0), {"tick": tick(4, 1, timeout=3)})
    (line,) = log.getvalue().splitlines()
    assert "4/4 images" in line and "kept 25%  timeout 75%" in line


def test_what_a_run_waits_for_is_told_while_it_does(log: io.StringIO) -> None:
    shown = progress(log, terminal=True)
    with shown.stage("download", {"cc3m": 10}):
        shown.heard(Task("cc3m", 0), tick(1) | {"waits": "12 hosts left alone"})
    assert "12 hosts left alone" in log.getvalue()


def test_a_quiet_display_shows_notes_alone(log: io.StringIO) -> None:
    shown = progress(log, quiet=True, terminal=True)
    with shown.stage("download", {"coco": 1}):
        shown.finished(Task("coco", 0), {"tick": tick(1, 1)})
        shown.note("failed: [coco]/00001: [red] disk")
    assert log.getvalue() == "failed: [coco]/00001: [red] disk\n"


def test_a_time_is_told_in_hours_and_days() -> None:
    assert [clock(seconds) for seconds in (0, 59.6, 3_661, 200_000)] == [
        "0:00:00",
        "0:01:00",
        "1:01:01",
        "2d 7:33:20",
    ]
