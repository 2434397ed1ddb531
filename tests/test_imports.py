"""The import law: who may know whom. Read from the syntax, so an import inside a function counts too."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("pmd", "pipelines", "flava_model")


def dotted(path: Path) -> str:
    """pmd/sources/coco.py -> pmd.sources.coco"""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for package in OURS for path in sorted((ROOT / package).rglob("*.py"))}


def imports(module: str) -> Iterator[str]:
    """Dotted names of what a module imports, anywhere in it: modules, and names out of modules."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            yield from (".".join([*above, *filter(None, [node.module]), alias.name]) for alias in node.names)


def within(name: str, *modules: str) -> bool:
    """Is a dotted name one of some modules, or something in one?"""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def breaches(
    place: str, *forbidden: str, allowed: tuple[str, ...] = (), outside: tuple[str, ...] = ()
) -> list[str]:
    """`module imports name` for each import in a package of something forbidden and not allowed."""
    return [
        f"{module} imports {name}"
        for module in MODULES
        if within(module, place) and not within(module, *outside)
        for name in imports(module)
        if within(name, *forbidden) and not within(name, *allowed)
    ]


def test_the_walk_sees_every_kind_of_import() -> None:
    assert {"pmd.records.Record", "pmd.sources.part.Part", "json"} <= {
        name for module in MODULES if within(module, "pmd") for name in imports(module)
    }
    assert "ray" in imports("pipelines.run"), "it is imported inside functions"
    assert breaches("pmd", "pmd.records", outside=("pmd.sources",))


def test_pmd_knows_neither_its_drivers_nor_its_models() -> None:
    assert breaches("pmd", "pipelines", "flava_model", "tests") == []


def test_pipelines_know_no_model() -> None:
    assert breaches("pipelines", "flava_model", "tests") == []


def test_models_know_of_pmd_only_what_a_trainer_needs() -> None:
    trainers = ("pmd.manifest", "pmd.stream", "pmd.records")
    assert breaches("flava_model", "pmd", "pipelines", "tests", allowed=trainers) == []


def test_models_share_layers_and_not_each_other() -> None:
    assert breaches("flava_model.models", "flava_model.models") == []


def test_readers_know_records_and_their_siblings_alone() -> None:
    assert breaches("pmd.sources", *OURS, allowed=("pmd.records", "pmd.sources")) == []


def test_ray_is_known_in_one_module() -> None:
    elsewhere = [found for place in OURS for found in breaches(place, "ray", outside=("pipelines.run",))]
    assert elsewhere == []


def test_torch_is_for_models() -> None:
    assert breaches("pmd", "torch") + breaches("pipelines", "torch") == []


NETWORK = (
    *("socket", "socketserver", "ssl", "select", "selectors", "http", "urllib.request", "ftplib", "smtplib"),
    *("xmlrpc", "aiohttp", "requests", "httpx", "urllib3", "pycurl", "websockets", "paramiko"),
)


def test_sockets_are_opened_in_one_place() -> None:
    # sandbox.py waits for pipes.
    assert breaches("pmd", *NETWORK, outside=("pmd.fetch",)) == ["pmd.images.sandbox imports select"]
    # run.py looks whether the cluster answers that it is told to join.
    assert breaches("pipelines", *NETWORK, outside=("pipelines.run",)) == []


def test_a_module_is_named_for_what_it_does() -> None:
    vague = {"utils", "util", "common", "helpers", "helper", "base", "misc", "core", "tools"}
    assert [module for module in MODULES if vague & set(module.split("."))] == []


# What importing does

WATCH = """
import sys
WORK = {"socket.connect", "socket.bind", "subprocess.Popen", "os.system", "os.mkdir", "os.rename"}

def watch(event, arguments):
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if event in WORK or writes:
        print(event, arguments)

sys.addaudithook(watch)
import importlib
for name in sys.argv[1:]:
    importlib.import_module(name)
known = {name.partition(".")[0] for name in sys.modules} | {*sys.modules}
"""


def imported(modules: list[str], forbidden: tuple[str, ...]) -> str:
    """What an interpreter prints that imports some modules: work done, and forbidden modules it loaded."""
    tell = f"print(*sorted(known & set({forbidden!r})), end='')"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WATCH + tell, *modules],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    return done.stdout + done.stderr


HEAVY = ("torch", "ray", "pandas", "langdetect", "py3langid", "lingua", "fasttext", "s3fs", "gcsfs")
CLIENTS = ("aiohttp", "requests", "httpx", "urllib3", "urllib.request", "http.client", "botocore")


def test_importing_the_library_is_quiet_and_brings_no_network_no_ray_and_no_torch() -> None:
    modules = [module for module in MODULES if within(module, "pmd") and not within(module, "pmd.fetch")]
    assert imported(modules, HEAVY + CLIENTS) == ""


def test_importing_the_commands_is_quiet_and_brings_no_ray_and_no_torch() -> None:
    assert imported([module for module in MODULES if within(module, "pipelines")], HEAVY) == ""


@pytest.mark.parametrize("work", ["print('hello')", "open('/dev/null', 'w')", "import http.client"])
def test_work_at_import_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str) -> None:
    (tmp_path / "noisy.py").write_text(work)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert imported(["noisy"], CLIENTS) != ""
