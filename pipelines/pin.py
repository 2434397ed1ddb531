"""pin: which annotation files, exactly.

    [source.cc3m] files --look inside--> pin/cc3m.json: each file's format, size and sha256

Files are known by their bytes, not by their names. What is pinned stays pinned: a file that has changed since
is refused, because everything made from it would be of two minds.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pipelines.job import Job
from pmd.errors import BadRequest, Refused
from pmd.manifest import load_source
from pmd.sources import READERS


def pin(job: Job) -> None:
    """Pin the annotation files of this run's sources. Those that kept size and time are not read again."""
    changed: dict[str, list[dict[str, Any]]] = {}
    for source in job.sources:
        name = _pin(source)
        before = json.loads(job.store.read_bytes(name))["files"] if job.store.exists(name) else None
        known = {file["path"]: file for file in before or []}
        files = [_pinned(path, form, known) for path, form in annotation_files(job, source)]
        files.sort(key=lambda file: (file["name"], file["sha256"]))
        if before is not None:
            _refuse_change(source, before, files)
        if files != before:
            changed[source] = files
    # Only now, so that what is refused for one source has written nothing for another.
    for source, files in changed.items():
        after = {"source": source, "files": files}
        job.store.write_bytes(_pin(source), json.dumps(after, indent=1, sort_keys=True).encode() + b"\n")
        total = sum(file["size"] for file in files)
        job.progress.note(f"pin      {source}: {len(files)} files, {total:,} bytes")


def _pin(source: str) -> str:
    return f"pin/{source}.json"


def annotation_files(job: Job, source: str) -> list[tuple[Path, str]]:
    """(path, format) of every annotation file that the corpus file names for a source."""
    reader = READERS.get(source)
    if reader is None:
        raise BadRequest(f"{source}: there is no reader for it yet; there are {', '.join(sorted(READERS))}")
    spec = job.corpus.source_spec(source)
    if not spec.files:
        published = "\n  ".join(file.url for file in load_source(source).file)
        raise BadRequest(
            f"{source}: no annotation files. Download them and name the files or their folder in the "
            f'corpus file:\n  [source.{source}]\n  files = ["..."]\nThey are published at:\n  {published}'
        )
    found: list[tuple[Path, str]] = []
    for entry in spec.files:
        if "://" in entry:
            raise BadRequest(
                f"{source}: {entry}: annotation files are read from local paths; download it first"
            )
        path = Path(entry)
        if path.is_dir():
            inside = [(file, reader.recognise(file)) for file in sorted(path.rglob("*")) if file.is_file()]
            readable = [(file, form) for file, form in inside if form is not None]
            if not readable:
                raise BadRequest(
                    f"{source}: {path}: none of its {len(inside)} files holds {source} annotations"
                )
            found += readable
        elif path.is_file():
            form = reader.recognise(path)
            if form is None:
                raise BadRequest(f"{source}: {path}: its content is not that of a {source} annotation file")
            found.append((path, form))
        else:
            raise BadRequest(f"{source}: {path}: no such file or folder")
    return list(dict.fromkeys(found))


def _pinned(path: Path, form: str, known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    status = path.stat()
    pinned = known.get(str(path))
    if pinned and (pinned["size"], pinned["mtime_ns"]) == (status.st_size, status.st_mtime_ns):
        return pinned
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = os.fstat(file.fileno()).st_size
    if pinned and (pinned["size"], pinned["sha256"]) == (size, digest):
        return pinned  # touched, but the same
    return {
        "path": str(path),
        "name": path.name,
        "format": form,
        "size": size,
        "sha256": digest,
        "mtime_ns": status.st_mtime_ns,
    }


def _refuse_change(source: str, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
    pinned = {file["name"]: file["sha256"] for file in before}
    found = {file["name"]: file["sha256"] for file in after}
    if pinned == found and len(before) == len(after):
        return
    lines = [
        f"{name}: pinned {pinned.get(name, 'not at all')}, found {found.get(name, 'nothing')}"
        for name in sorted({*pinned, *found})
        if pinned.get(name) != found.get(name)
    ]
    raise Refused(
        f"the annotation files of {source} are not those that this output was begun with:\n  "
        + "\n  ".join(lines)
        + "\nBring the pinned files back, or give the new ones an --out of their own."
    )
