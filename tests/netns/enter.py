"""From a test into a network namespace, where the system allows one."""

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NAMESPACE = ["unshare", "-Urnm", "--propagation", "private"]


@functools.cache
def no_namespace() -> str | None:
    """Why there can be no namespace here; None where there can."""
    for needed in ("unshare", "ip", "mount"):
        if shutil.which(needed) is None:
            return f"there is no `{needed}` here"
    tried = subprocess.run([*NAMESPACE, "ip", "link", "set", "lo", "up"], capture_output=True, text=True)
    return f"no network namespace may be made here: {tried.stderr.strip()}" if tried.returncode else None


@functools.cache
def inside(scenario: str) -> dict[str, Any]:
    """What a scenario of tests/netns/inside.py came to."""
    if why := no_namespace():
        pytest.skip(why)
    done = subprocess.run(
        [*NAMESPACE, sys.executable, "-m", "tests.netns.inside", scenario],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=200,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr[-5_000:]
    return json.loads(done.stdout)
