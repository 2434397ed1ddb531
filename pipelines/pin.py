"""pin: which annotation files, exactly.

    [source.cc3m] files, or the published ones --download, look inside--> pin/cc3m.json: format, size, sha256

Files are known by their bytes, not by their names. What is pinned stays pinned: a file that has changed since
is refused, because everything made from it would be of two minds. Published files are downloaded once into
the library of this machine; `pmd pin SOURCE` fills it, or tells it where files lie that are here already.
"""

import contextlib
import json
from collections.abc import Generator, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.job import BLOCK_LIST, Job
from pipelines.library import Kept, Library, Told, Wanted, hashed
from pipelines.progress import Progress
from pmd.archives import Archives
from pmd.decontaminate import BlockList, block_list, karpathy_coco, karpathy_flickr30k, read_list
from pmd.errors import BadRequest, Refused
from pmd.fetch.file import REFUSED
from pmd.manifest import AnnotationFile, Edition, FetchSpec, ImageArchive, SourceSpec, load_source
from pmd.sources import READERS

Pinned = dict[str, Any]  # one file, as a pin has it: Kept's fields, and its format


def pin(job: Job) -> None:
    """Pin the annotation files of this run's sources. Those that kept size and time are not read again."""
    changed: dict[str, dict[str, Any]] = {}
    library = Library()
    for source in job.sources:
        before = json.loads(job.store.read_bytes(_pin(source))) if job.store.exists(_pin(source)) else None
        spec = job.corpus.source_spec(source)
        files = _files(source, spec, job.corpus.fetch, library, job.progress, _by_path(before))
        archives = _archives(source, spec, job.corpus.fetch, library, job.progress)
        if before is not None:
            _refuse_change(
                source,
                before["files"],
                files,
                of="that this output was begun with",
                hint="Bring the pinned files back, or give the new ones an --out of their own.",
            )
        expected = _expected(source, spec, is_whole=job.limit is None)
        after = {"source": source, "files": files, "archives": archives, "expected": expected}
        if after != before:
            changed[source] = after
    blocked = _block_list(job, library)
    # Only now, so that what is refused for one source has written nothing for another.
    for source, after in changed.items():
        job.store.write_bytes(_pin(source), json.dumps(after, indent=1, sort_keys=True).encode() + b"\n")
        total = sum(file["size"] for file in after["files"])
        job.progress.note(f"pin      {source}: {len(after['files'])} files, {total:,} bytes")
    if blocked is not None and job.block_list() != blocked:
        job.store.write_bytes(BLOCK_LIST, blocked.to_bytes())
        sizes = ", ".join(f"{len(values):,} by {name}" for name, values in blocked.values.items())
        job.progress.note(f"pin      images left out: {sizes}")


def _block_list(job: Job, library: Library) -> BlockList | None:
    """The images that the corpus file leaves out; None where it leaves out none."""
    spec = job.corpus.decontaminate
    if not (spec.karpathy_coco or spec.flickr30k or spec.lists):
        return None
    entries: list[tuple[str, str]] = []
    if spec.karpathy_coco or spec.flickr30k:
        splits = spec.splits or load_source("coco").edition_named("karpathy").file[0].url
        if "://" in splits:
            splits = _downloaded("coco", splits, job.corpus.fetch, library, job.progress)
        entries += karpathy_coco(Path(splits)) if spec.karpathy_coco else []
        entries += karpathy_flickr30k(Path(splits)) if spec.flickr30k else []
    for path in spec.lists:
        entries += read_list(Path(path))
    found = block_list(entries)
    before = job.block_list()
    if before is not None and before != found:
        raise Refused(
            f"the images to leave out are not those that this output was begun with: sha256 {before.sha256} "
            f"then, {found.sha256} now. Bring the lists back, or give the corpus an --out of its own."
        )
    return found


def _pin(source: str) -> str:
    return f"pin/{source}.json"


def pin_source(
    source: str, *, edition: str, files: Iterable[str], fetch: FetchSpec, accept: bool, progress: Progress
) -> dict[str, Any]:
    """Pin a source on this machine, for every corpus that names no files for it; returns the pin.

    files: those that are here already; none: the published ones are downloaded. Raises Refused where a file
    is not what is published, or not what was pinned before; accept: takes them as they are.
    """
    library = Library()
    before = library.pin(source)
    published = load_source(source).edition_named(edition)
    chosen = tuple(files)
    if chosen:
        entries = tuple(str(Path(entry).expanduser().resolve()) for entry in chosen if "://" not in entry)
        urls = tuple(entry for entry in chosen if "://" in entry)
        spec = SourceSpec(files=entries + urls)
        found = _files(source, spec, fetch, library, progress, _by_path(before))
        if not accept:
            _refuse_unpublished(source, found, published)
        hashes = {file.sha256 for file in published.file if file.sha256}
        if hashes and hashes.isdisjoint(file["sha256"] for file in found):
            progress.note(f"pin      {source}: by their sha256, none of these is a published file")
    else:
        found = _published(source, published, fetch, library, progress, accept=accept)
    if before is not None and before["edition"] == published.name and not accept:
        _refuse_change(
            source,
            before["files"],
            found,
            of="that were pinned here before",
            hint=f"Review them; then `pmd pin {source} --accept` takes the new ones.",
        )
    made = {"source": source, "edition": published.name, "files": found}
    library.write_pin(source, made)
    return made


def _files(
    source: str,
    spec: SourceSpec,
    fetch: FetchSpec,
    library: Library,
    progress: Progress,
    known: dict[str, Kept],
) -> list[Pinned]:
    """The annotation files that a corpus file names for a source, or else those pinned here or published."""
    if source not in READERS:
        raise BadRequest(f"{source}: there is no reader for it; there are {', '.join(sorted(READERS))}")
    if not spec.files:
        if source == "table":
            raise BadRequest("[source.table] needs `files`: any index, no published one")
        published = load_source(source).edition_named(spec.edition)
        here = library.pin(source)
        if here is None or here["edition"] != published.name:
            return _published(source, published, fetch, library, progress)
        known = _by_path(here)
        paths = [(Path(file["path"]), file["format"]) for file in here["files"]]
        for path, _ in paths:
            if not path.exists():
                raise BadRequest(f"{source}: {path} is gone; `pmd pin {source}` finds or downloads it again")
    else:
        local = (
            _downloaded(source, entry, fetch, library, progress) if "://" in entry else entry
            for entry in spec.files
        )
        paths = _recognised(source, local)
    return _sorted([_pinned(path, form, known.get(str(path))) for path, form in paths])


def _published(
    source: str,
    edition: Edition,
    fetch: FetchSpec,
    library: Library,
    progress: Progress,
    *,
    accept: bool = False,
) -> list[Pinned]:
    """The files of an edition, downloaded where they are not here."""
    pinned: list[Pinned] = []
    for file in edition.file:
        with _watched(progress, source, file.url, file.size) as told:
            kept = library.file(_wanted(file), fetch, told=told, accept=accept)
        ((path, form),) = _recognised(source, [kept.path])
        pinned.append(_pinned(path, form, kept))
    return _sorted(pinned)


def _downloaded(source: str, url: str, fetch: FetchSpec, library: Library, progress: Progress) -> str:
    """The local path of an annotation file that a corpus file names by its URL."""
    ours = [] if source == "table" else load_source(source).edition
    published = {file.url: file for edition in ours for file in edition.file}
    file = published.get(url) or AnnotationFile(url=url)
    with _watched(progress, source, url, file.size) as told:
        return library.file(_wanted(file), fetch, told=told).path


def _archives(
    source: str, spec: SourceSpec, fetch: FetchSpec, library: Library, progress: Progress
) -> list[dict[str, str]]:
    """The archives of images that a corpus file names for a source, as local paths to be read at random."""
    published = {} if source == "table" else {entry.url: entry for entry in load_source(source).archive}
    found: list[dict[str, str]] = []
    for entry in spec.archive:
        if "://" in entry:
            archive = published.get(entry) or ImageArchive(url=entry, holds="")
            with _watched(progress, source, entry, archive.size) as told:
                path = Path(library.file(_wanted(archive), fetch, told=told).path)
        else:
            path = Path(entry)
            if not path.is_file():
                raise BadRequest(f"[source.{source}] archive: {path}: no such file")
        with _watched(progress, source, f"unpack {path.name}", path.stat().st_size) as told:
            plain = library.plain_archive(path, told=told)
        Archives([plain])  # raises here, and not in every task, where it is damaged
        found.append({"path": str(plain)})
    return found


def _expected(source: str, spec: SourceSpec, *, is_whole: bool) -> dict[str, Any]:
    """What is known of a source: the paper's figures, and ranges of rows, pairs and words of its edition.

    The ranges are those of whole published files: there are none where a corpus file names others and no
    edition, or where only some rows are read.
    """
    if source == "table":
        return {}
    published = load_source(source)
    told: dict[str, Any] = {"paper": published.paper.model_dump()}
    if not is_whole or (spec.files and not spec.edition):
        return told
    edition = published.edition_named(spec.edition)
    ranges = {name: getattr(edition, name) for name in ("rows", "pairs", "words_per_caption")}
    spans = {name: [*span] for name, span in ranges.items() if span is not None}
    return told | {"edition": edition.name, "evidence": edition.evidence} | spans


def _wanted(file: AnnotationFile | ImageArchive) -> Wanted:
    return Wanted(file.url, file.mirrors, file.size, file.sha256)


@contextlib.contextmanager
def _watched(progress: Progress, source: str, what: str, size: int | None) -> Generator[Told]:
    """Show the bytes of a download."""
    shown = False

    def told(done: int, total: int | None) -> None:
        nonlocal shown
        if not shown:
            progress.note(f"pin      {source}: {what}")
            shown = True
        progress.total(source, total or done)
        progress.done(source, done)

    with progress.stage("pin", {source: size or 1}, unit="bytes"):
        yield told


def _recognised(source: str, entries: Iterable[str]) -> list[tuple[Path, str]]:
    """(path, format) of every annotation file among some files and in some folders."""
    reader = READERS[source]
    found: list[tuple[Path, str]] = []
    for path in map(Path, entries):
        if path.is_dir():
            inside = [(file, reader.recognise(file)) for file in _files_below(path)]
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


def _files_below(folder: Path) -> list[Path]:
    """The files of a folder, without hidden ones and downloads that are unfinished or were refused."""
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.name.startswith(".") and not file.name.endswith(REFUSED)
    ]


def _pinned(path: Path, form: str, known: Kept | None) -> Pinned:
    return asdict(hashed(path, known)) | {"format": form}


def _by_path(pin: dict[str, Any] | None) -> dict[str, Kept]:
    """The files of an earlier pin, so that those which have not changed need not be hashed again."""
    files = pin["files"] if pin else []
    return {
        file["path"]: Kept(**{name: file.get(name) for name in Kept.__dataclass_fields__}) for file in files
    }


def _sorted(files: list[Pinned]) -> list[Pinned]:
    return sorted(files, key=lambda file: (file["name"], file["sha256"]))


def _refuse_unpublished(source: str, files: list[Pinned], edition: Edition) -> None:
    """A file with the name of a published one must be that file."""
    published = {file.url.partition("?")[0].rpartition("/")[2]: file for file in edition.file}
    for file in files:
        known = published.get(file["name"])
        if known and known.sha256 and known.sha256 != file["sha256"]:
            raise Refused(
                f"{file['path']}: sha256 is {file['sha256']} ({file['size']:,} bytes), the published file's "
                f"{known.sha256} ({known.size:,} bytes). If it is right all the same: "
                f"`pmd pin {source} --accept`."
            )


def _refuse_change(source: str, before: list[Pinned], after: list[Pinned], *, of: str, hint: str) -> None:
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
        f"the annotation files of {source} are not those {of}:\n  " + "\n  ".join(lines) + f"\n{hint}"
    )
