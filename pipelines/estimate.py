"""estimate: what a build will cost, before it: a few hundred images of each source are fetched, none is kept.

    annotation files --some pieces, at random--> rows --by a seeded hash of the key--> a sample of images
                                                  |                                      |
                                        rows, images, hosts                   captions judged, images fetched
                                                  +------> figures with 95 % intervals <-+

Rows are read uniformly, and as few as will do. A file of lines is entered at random places, and the pieces
there, of 32 KiB each, are read whole, so every row is as likely as any other to be read, long or short. What
cannot be entered (packed files, JSON, members of archives) is read a part at a time, parts chosen at random
until 256 MB are read, or all. Of the images in the rows read, those with the lowest hashes are the sample:
each image is as likely as any other, with all its rows that were read, wherever they lie. The same files and
seed give the same sample.

Intervals: Wilson's for shares; for sums and sizes a seeded bootstrap over the images of the sample.
"""

import asyncio
import contextlib
import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import xxhash
from rich.table import Table

from pipelines.job import BLOCK_LIST
from pipelines.library import Library
from pipelines.progress import Progress
from pmd import filters, text
from pmd.archives import Archives, is_packed_tar
from pmd.decontaminate import BlockList, from_bytes
from pmd.errors import BadRequest
from pmd.fetch.client import Answer, Client
from pmd.fetch.consent import Terms
from pmd.fetch.file import REFUSED
from pmd.images.sandbox import Sandbox, kept_sandbox
from pmd.manifest import Corpus, FetchSpec, TextSpec, load_source
from pmd.records import Caption, Reason, Record, Rejected
from pmd.shards import BLOCK
from pmd.sources import READERS, Incomplete, Part
from pmd.sources.part import is_packed, is_zip
from pmd.storage import Store
from pmd.tables import FETCHED

PIECE = 32 << 10  # bytes of a file of lines that are read at one place
PIECES_A_SAMPLE = 2  # places entered for each image of the sample: neighbours in a file are often alike
READ_BYTES = 256 << 20  # of files that cannot be entered
HELD = 8_192  # images held to draw the sample from; where there are more, how many is an estimate
REPLICAS = 1_000  # of the bootstrap
Z = 1.96  # of a 95 % interval
BUSIEST = 5  # hosts that are named
Numbers = np.ndarray[Any, Any]
TEXT_A_ROW = 2.0  # bytes on disk for each byte of caption, in plan, indexes and samples
ROW_BYTES = 300  # and for all else that is told of an image


@dataclass(frozen=True)
class Figure:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        return {name: round(value, 6) for name, value in vars(self).items()}


@dataclass
class Hours:
    """How long it takes if nothing else holds it up."""

    politeness: float = 0.0  # the busiest host, at the rate and connections it is granted
    connections: float = 0.0  # of all workers, at the measured time for an image
    cpu: float = 0.0  # measured here, on so many workers
    bandwidth: float = 0.0

    def binds(self) -> str:
        return max(vars(self), key=lambda name: getattr(self, name))

    def as_json(self) -> dict[str, Any]:
        hours = {name: round(value, 6) for name, value in vars(self).items()}
        return hours | {"binds": self.binds(), "all": max(hours.values())}


@dataclass
class SourceEstimate:
    """One source."""

    sampled: int  # images asked for
    rows_read: int
    is_exact: bool  # all rows have been read
    yield_: Figure  # images kept, of those that are asked for
    figures: dict[str, Figure]  # sums over the source
    replicas: dict[str, Numbers]  # of each of these, for the sums over all sources
    reasons: dict[str, Figure]  # rows lost
    hosts: Counter[str]  # images met at each, of those that are to be fetched
    latency_s: dict[str, float]  # mean, by host
    mean_latency_s: float
    cpu_s: float  # an image
    notes: list[str] = field(default_factory=list[str])


@dataclass
class Estimate:
    sources: dict[str, SourceEstimate]
    expected: dict[str, dict[str, Any]]  # of sources whose files are not at hand: what their manifests say
    requests: int  # sent for the sample
    seconds: float
    workers: int
    bandwidth: float  # Mbit/s
    fetch: FetchSpec


# --- which files, which rows ---


def files_at_hand(source: str, corpus: Corpus, output: Store | None) -> list[Path]:
    """The annotation files of a source that are on this machine; none unless all of them are."""
    name = f"pin/{source}.json"
    spec = corpus.source_spec(source)
    if output is not None and output.exists(name):
        found = [Path(file["path"]) for file in json.loads(output.read_bytes(name))["files"]]
    elif spec.files:
        if any("://" in entry for entry in spec.files):
            return []
        found = [path for entry in spec.files for path in _recognised(source, Path(entry))]
    else:
        pin = Library().pin(source)
        if source == "table" or pin is None:
            return []
        if pin["edition"] != load_source(source).edition_named(spec.edition).name:
            return []
        found = [Path(file["path"]) for file in pin["files"]]
    return sorted(set(found)) if all(path.exists() for path in found) else []


def _recognised(source: str, entry: Path) -> list[Path]:
    if entry.is_dir():
        inside = sorted(path for path in entry.rglob("*") if path.is_file())
        hidden = [path.name.startswith(".") or path.name.endswith(REFUSED) for path in inside]
        files = [path for path, is_hidden in zip(inside, hidden, strict=True) if not is_hidden]
        found = [path for path in files if READERS[source].recognise(path)]
    else:
        found = [entry] if entry.is_file() and READERS[source].recognise(entry) else []
    if not found:
        raise BadRequest(f"{source}: {entry}: no {source} annotations are there")
    return found


class _Pieces(NamedTuple):
    parts: list[Part]
    share: float  # of all bytes; 1: all of them


def _pieces(source: str, paths: Sequence[Path], samples: int, chance: np.random.Generator) -> _Pieces:
    """Parts at random: of equal chances for every row to be in one."""
    try:
        parts = READERS[source].parts(paths)
    except Incomplete as error:
        raise BadRequest(f"{source}: {error}") from None
    if not parts:
        return _Pieces([], 1.0)
    if all(_can_be_entered(part) for part in parts):
        return _entered(parts, PIECES_A_SAMPLE * samples, chance)
    of_file = Counter((part.path, part.member) for part in parts)
    sizes = [os.path.getsize(part.path) / of_file[part.path, part.member] for part in parts]
    chosen: list[int] = []
    read = 0.0
    for place in chance.permutation(len(parts)).tolist():
        if read >= READ_BYTES:
            break
        chosen.append(place)
        read += sizes[place]
    share = sum(sizes[place] for place in chosen) / sum(sizes) if len(chosen) < len(parts) else 1.0
    return _Pieces([parts[place] for place in sorted(chosen)], share)


def _can_be_entered(part: Part) -> bool:
    """Is it of plain lines, whose places are counted in bytes, and which mean something by themselves?"""
    if part.member is not None or part.stop is None or part.beside:
        return False
    with open(part.path, "rb") as file:
        is_database = file.read(16).startswith((b"PAR1", b"SQLite format 3"))
    return not (is_database or is_zip(part.path) or is_packed(part.path))


def _entered(parts: Sequence[Part], count: int, chance: np.random.Generator) -> _Pieces:
    bounds = [(part.start, part.stop or 0) for part in parts]
    ends = np.cumsum([-(-(stop - start) // PIECE) for start, stop in bounds])
    if ends[-1] <= count:
        return _Pieces([*parts], 1.0)
    found: list[Part] = []
    read = 0
    for place in sorted(chance.choice(ends[-1], count, replace=False).tolist()):
        at = int(np.searchsorted(ends, place, side="right"))
        start, stop = bounds[at]
        first = start + (place - (int(ends[at - 1]) if at else 0)) * PIECE
        with open(parts[at].path, "rb") as file:
            begin = start if first == start else min(stop, _row_start(file, first))
            end = min(stop, _row_start(file, min(stop, first + PIECE)))
        read += min(stop, first + PIECE) - first
        if begin < end:
            found.append(parts[at]._replace(start=begin, stop=end))
    whole = sum(stop - start for start, stop in bounds)
    return _Pieces(found, read / whole)


def _row_start(file: Any, offset: int) -> int:
    """Where the first row begins that begins at or after an offset."""
    file.seek(offset - 1)
    while (found := file.readline(PIECE)) and not found.endswith(b"\n"):
        pass  # a row may be of any length
    return file.tell()


@dataclass
class _Image:
    """One image, with all its rows that were read."""

    hash: int
    record: Record  # the first one read
    captions: list[tuple[int, Caption]]  # with the part that each was read from


@dataclass
class _Read:
    """What was read of a source."""

    share: float  # of its bytes
    rows: list[int] = field(default_factory=list[int])  # of each part
    rejected: Counter[str] = field(default_factory=Counter[str])
    below: int = 1 << 64  # images with a hash below this are held
    images: dict[str, _Image] = field(default_factory=dict[str, _Image])

    def distinct(self) -> float:
        """How many images there are in what was read."""
        return len(self.images) * (2.0**64 / self.below)

    def sample(self, count: int) -> list[_Image]:
        return sorted(self.images.values(), key=lambda image: image.hash)[:count]

    def rows_error(self) -> float:
        """The standard error of the number of rows, as a part of it."""
        if self.share == 1.0 or not sum(self.rows):
            return 0.0
        if len(self.rows) < 2:
            return 0.2  # nothing is known of how parts differ
        counts = np.array(self.rows, float)
        return float(counts.std(ddof=1) / counts.mean() / math.sqrt(len(counts)) * math.sqrt(1 - self.share))

    def images_error(self) -> float:
        """The same of the number of images, which is an estimate where not all were held."""
        counted = 0.0 if self.below == 1 << 64 else 1 / math.sqrt(len(self.images))
        return math.hypot(self.rows_error(), counted)


def _read(source: str, pieces: _Pieces, rules: Any, seed: int) -> _Read:
    found = _Read(pieces.share)
    for number, part in enumerate(pieces.parts):
        rows = 0
        for outcome in READERS[source].read(part, rules):
            if isinstance(outcome, Rejected):
                found.rejected[outcome.reason] += 1
                rows = max(rows, outcome.row + 1)
                continue
            rows = max(rows, outcome.captions[-1].row + 1)
            place = xxhash.xxh3_64_intdigest(outcome.key.encode(), seed)
            if place >= found.below:
                continue
            held = found.images.get(outcome.key)
            if held is None:
                held = found.images[outcome.key] = _Image(place, outcome._replace(captions=()), [])
                if len(found.images) > HELD:
                    found.below //= 2
                    found.images = {
                        key: image for key, image in found.images.items() if image.hash < found.below
                    }
            held.captions += ((number, caption) for caption in outcome.captions)
        found.rows.append(rows)
    return found


# --- what becomes of the sample ---


@dataclass
class _Fate:
    """One image of the sample, and what became of its rows."""

    image: _Image
    texts: list[str]  # of the captions that are kept if the image is
    rows: list[str | None]  # of each row: why it is dropped whatever the image comes to
    host: str = ""
    asked: bool = False  # of the web or an archive
    reason: str | None = None  # why the image is not kept
    attempts: int = 0  # requests
    seconds: float = 0.0
    served: int = 0  # bytes
    raw: int = 0  # bytes stored before the filter
    stored: int = 0  # bytes of the image, where it is kept

    def lost(self) -> Iterator[str]:
        """The reason of each row that is dropped."""
        for reason in self.rows:
            if found := reason or self.reason:
                yield found


def _judged(sample: Sequence[_Image], spec: TextSpec, left_out: BlockList | None) -> list[_Fate]:
    """The sample with the captions judged, as plan judges them."""
    captions = [caption for image in sample for _, caption in image.captions]
    texts = text.clean([caption.text for caption in captions])
    reasons = text.judge(texts, spec)
    fates: list[_Fate] = []
    at = 0
    for image in sample:
        blocked = left_out is not None and left_out.blocks(image.record)
        kept: list[str] = []
        rows: dict[tuple[int, int], list[str | None]] = {}
        for number, caption in image.captions:
            words, reason = _taken(caption, texts[at], reasons[at], spec)
            if blocked:
                reason = Reason.DECONTAMINATED
            if reason is None:
                kept.append(words)
            rows.setdefault((number, caption.row), []).append(reason)
            at += 1
        own = [None if None in verdicts else verdicts[0] for verdicts in rows.values()]
        fate = _Fate(image, kept, own, host=_host(image.record.url))
        fate.reason = None if kept else next(reason for reason in own if reason)
        fates.append(fate)
    return fates


def _taken(caption: Caption, words: str, reason: Reason | None, spec: TextSpec) -> tuple[str, Reason | None]:
    """What is taken of a row: its caption, or another of its texts where that one is dropped."""
    other = caption.otherwise
    while reason is not None and other is not None:
        (found,) = text.clean([other.text])
        (verdict,) = text.judge([found], spec)
        if verdict is None:
            return found, None
        other = other.otherwise
    return words, reason


def _host(url: str | None) -> str:
    with contextlib.suppress(ValueError):
        return urlsplit(url or "").hostname or ""
    return ""


def requests_per_s(host: str, spec: FetchSpec, latency_s: float) -> float:
    """How fast a host may be asked, if each answer takes so long."""
    bears = spec.bears(host)
    return min(bears.rate, bears.connections / latency_s) if latency_s > 0 else bears.rate


class _Sampler:
    """Fetches the samples of all sources, by turns, as a build would."""

    def __init__(self, corpus: Corpus, sandbox: Sandbox, progress: Progress) -> None:
        self._corpus, self._sandbox = corpus, sandbox
        self._progress = progress
        self._done: Counter[str] = Counter()
        self.requests = 0

    async def run(self, fates: Mapping[str, Sequence[_Fate]], archives: Mapping[str, Archives]) -> None:
        with ThreadPoolExecutor(1) as decoder:
            async with Client(self._corpus.fetch) as client, asyncio.TaskGroup() as group:
                for source, own in fates.items():
                    for fate in own:
                        if fate.texts:
                            group.create_task(self._one(source, fate, archives[source], client, decoder))
            self.requests = client.requests

    async def _one(
        self, source: str, fate: _Fate, archives: Archives, client: Client, decoder: ThreadPoolExecutor
    ) -> None:
        record = fate.image.record
        loop = asyncio.get_running_loop()
        fate.asked = True
        answer = _archived(archives, record.path, self._corpus.fetch.max_bytes)
        if answer is not None:
            fate.host = ""
        elif record.url is not None:
            answer = await client.fetch(record.url)
            fate.attempts, fate.seconds = answer.attempts, answer.asking_s
        else:
            answer = Answer(body=None, reason=Reason.NOT_IN_ARCHIVE)
        if answer.body is None:
            fate.reason = answer.reason
        else:
            fate.served = len(answer.body)
            picture = await loop.run_in_executor(
                decoder, self._sandbox.normalise, answer.body, record.rotation
            )
            if isinstance(picture, Reason):
                fate.reason = picture
            else:
                fate.raw = len(picture.stored)
                sizes = {
                    "original_width": picture.original_width,
                    "original_height": picture.original_height,
                }
                (fate.reason,) = filters.judge(pa.Table.from_pylist([sizes], FETCHED), self._corpus.image)
                fate.stored = fate.raw if fate.reason is None else 0
        self._done[source] += 1
        self._progress.done(source, self._done[source])


def _archived(archives: Archives, path: str | None, max_bytes: int) -> Answer | None:
    found = archives.read(path, max_bytes) if path is not None else None
    if found is None:
        return None
    if isinstance(found, Reason):
        return Answer(body=None, reason=found)
    return Answer(body=found, reason=None)


def _archives(source: str, corpus: Corpus, output: Store | None, notes: list[str]) -> Archives:
    """The archives of images that are at hand."""
    name = f"pin/{source}.json"
    if output is not None and output.exists(name):
        paths = [Path(entry["path"]) for entry in json.loads(output.read_bytes(name)).get("archives", ())]
    else:
        paths = [Path(entry) for entry in corpus.source_spec(source).archive if "://" not in entry]
        others = len(corpus.source_spec(source).archive) - len(paths)
        there = [path for path in paths if path.is_file() and not is_packed_tar(path)]
        if missing := others + len(paths) - len(there):
            notes.append(f"{missing} of its archives are not at hand, unpacked: their images count as others")
        paths = there
    return Archives(paths)


# --- figures ---


def estimate(
    corpus: Corpus,
    *,
    output: Store | None,
    samples: int,
    workers: int,
    bandwidth: float,
    progress: Progress,
) -> Estimate:
    """Sample every source whose annotation files are at hand.

    output: of a build that has been begun, for its pins; nothing is written there. bandwidth: Mbit/s.
    """
    reads: dict[str, _Read] = {}
    fates: dict[str, list[_Fate]] = {}
    archives: dict[str, Archives] = {}
    notes: dict[str, list[str]] = {}
    expected: dict[str, dict[str, Any]] = {}
    left_out = None
    if output is not None and output.exists(BLOCK_LIST):
        left_out = from_bytes(output.read_bytes(BLOCK_LIST))
    for source in corpus.sources:
        paths = files_at_hand(source, corpus, output)
        if not paths:
            expected[source] = _expected(source, corpus)
            continue
        notes[source] = _caveats(corpus, left_out)
        seed = xxhash.xxh3_64_intdigest(source.encode(), corpus.seed & (1 << 64) - 1)
        pieces = _pieces(source, paths, samples, np.random.default_rng(seed))
        archives[source] = _archives(source, corpus, output, notes[source])
        reads[source] = _read(source, pieces, corpus.source_spec(source), seed)
        fates[source] = _judged(reads[source].sample(samples), corpus.text_spec(source), left_out)
        progress.note(
            f"estimate {source}: {sum(reads[source].rows):,} rows read, {pieces.share:.1%} of the files"
        )
    sandbox = kept_sandbox(corpus.image, processes=1)
    begun, cpu = time.monotonic(), time.process_time() + sandbox.cpu_s()
    sampler = _Sampler(corpus, sandbox, progress)
    wanted = {source: sum(bool(fate.texts) for fate in own) for source, own in fates.items()}
    with progress.stage("sample", wanted):
        asyncio.run(sampler.run(fates, archives))
    cpu_s = (time.process_time() + sandbox.cpu_s() - cpu) / max(1, sum(wanted.values()))
    sources = {
        source: _of_source(corpus, source, reads[source], fates[source], cpu_s, notes[source])
        for source in reads
    }
    seconds = time.monotonic() - begun
    return Estimate(sources, expected, sampler.requests, seconds, workers, bandwidth, corpus.fetch)


def _caveats(corpus: Corpus, left_out: BlockList | None) -> list[str]:
    found: list[str] = []
    if "drop" in (corpus.dedup.exact, corpus.dedup.perceptual):
        found.append("repeats that [dedup] drops are not taken off: a sample does not show them")
    spec = corpus.decontaminate
    if (spec.karpathy_coco or spec.flickr30k or spec.lists) and left_out is None:
        found.append("what [decontaminate] drops is not taken off: `pmd pin` finds it, then give --out")
    return found


def _expected(source: str, corpus: Corpus) -> dict[str, Any]:
    if source == "table":
        return {}
    edition = load_source(source).edition_named(corpus.source_spec(source).edition)
    spans = {name: getattr(edition, name) for name in ("rows", "pairs", "words_per_caption")}
    return {"edition": edition.name} | {name: [*span] for name, span in spans.items() if span is not None}


def _of_source(
    corpus: Corpus, source: str, read: _Read, fates: list[_Fate], cpu_s: float, notes: list[str]
) -> SourceEstimate:
    chance = np.random.default_rng(xxhash.xxh3_64_intdigest(source.encode(), 1))
    is_exact = read.share == 1.0
    rows = sum(read.rows) / read.share
    planned = read.distinct() / read.share
    # One pull for both: where pieces are rich in rows, they are in images.
    pull = chance.standard_normal(REPLICAS)
    replicas = {
        "rows": rows * np.maximum(0, 1 + pull * read.rows_error()),
        "images_planned": planned * np.maximum(0, 1 + pull * read.images_error()),
    }
    values = {"rows": rows, "images_planned": planned}
    columns = {
        "images_asked": [float(fate.asked) for fate in fates],
        "requests": [float(fate.attempts) for fate in fates],
        "images": [float(_is_kept(fate)) for fate in fates],
        "served_bytes": [float(fate.served) for fate in fates],
        "stored_bytes": [float(fate.stored) for fate in fates],
        "disk_bytes": [_disk(fate) for fate in fates],
    }
    # These two by their share of rows, not by image: images differ in how many rows they have.
    by_row = {
        "kept_rows": [float(len(fate.rows) - len([*fate.lost()])) for fate in fates],
        "pairs": [float(len(fate.texts)) if _is_kept(fate) else 0.0 for fate in fates],
    }
    if fates:
        weights = chance.multinomial(len(fates), [1 / len(fates)] * len(fates), REPLICAS) / len(fates)
        for name, column in columns.items():
            values[name] = planned * float(np.mean(column))
            replicas[name] = replicas["images_planned"] * (weights @ np.array(column))
        with_record = 1 - read.rejected.total() / sum(read.rows)
        sampled = np.array([float(len(fate.rows)) for fate in fates])
        for name, column in by_row.items():
            values[name] = rows * with_record * float(np.sum(column) / np.sum(sampled))
            replicas[name] = (
                replicas["rows"] * with_record * (weights @ np.array(column)) / (weights @ sampled)
            )
    else:
        values |= dict.fromkeys([*columns, *by_row], 0.0)
        replicas |= {name: np.zeros(REPLICAS) for name in [*columns, *by_row]}
    asked = sum(fate.asked for fate in fates)
    kept = sum(_is_kept(fate) for fate in fates)
    figures = {name: interval(value, replicas[name]) for name, value in values.items()}
    if kept in (0, asked) and fates:  # a bootstrap sees no spread there
        share = wilson(kept, asked)
        scale = values["images_asked"]
        figures["images"] = Figure(values["images"], scale * share.low, scale * share.high)
    fetched = [fate for fate in fates if fate.attempts]
    by_host: dict[str, list[float]] = {}
    for fate in fetched:
        by_host.setdefault(fate.host, []).append(fate.seconds / fate.attempts)
    if not is_exact:
        notes.append(
            "not all rows were read: rows of one image that lie far apart count as images of their own"
        )
    return SourceEstimate(
        sampled=asked,
        rows_read=sum(read.rows),
        is_exact=is_exact,
        yield_=wilson(kept, asked),
        figures=figures,
        replicas=replicas,
        reasons=_reasons(read, fates, rows),
        hosts=_hosts_of(read, fates),
        latency_s={host: float(np.mean(times)) for host, times in by_host.items()},
        mean_latency_s=float(np.mean([fate.seconds / fate.attempts for fate in fetched])) if fetched else 0.0,
        cpu_s=cpu_s,
        notes=notes,
    )


def _is_kept(fate: _Fate) -> bool:
    return fate.asked and fate.reason is None


def _disk(fate: _Fate) -> float:
    """Bytes at the peak: the raw tar, which stays until somebody deletes it, the shard, and all tables."""
    text_bytes = TEXT_A_ROW * sum(len(caption.text.encode()) for _, caption in fate.image.captions)
    raw = BLOCK + _padded(fate.raw) if fate.raw else 0
    told = ROW_BYTES + sum(len(words.encode()) + 40 for words in fate.texts)
    shard = 3 * BLOCK + _padded(fate.stored) + _padded(told) + BLOCK if fate.stored else 0
    return raw + shard + text_bytes + ROW_BYTES


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _hosts_of(read: _Read, fates: Sequence[_Fate]) -> Counter[str]:
    """Of all images held, whose hosts are known unasked; where some are in archives, of those asked."""
    fetched = Counter(fate.host for fate in fates if fate.attempts)
    if not fetched or fetched.total() < sum(fate.asked for fate in fates):
        return fetched
    return Counter(host for image in read.images.values() if (host := _host(image.record.url)))


def _reasons(read: _Read, fates: list[_Fate], rows: float) -> dict[str, Figure]:
    """Rows lost: those without a record as they were read, the others as in the sample."""
    seen = sum(read.rows)
    found = {reason: _scaled(wilson(count, seen), rows) for reason, count in read.rejected.items()}
    of_images = rows * (1 - read.rejected.total() / seen) if seen else 0.0
    judged = sum(len(fate.rows) for fate in fates)
    lost = Counter(reason for fate in fates for reason in fate.lost())
    for reason, count in lost.items():
        # Rows of one image are lost together, so no more is known than of so many images.
        share = wilson(len(fates) * count / judged, len(fates))
        own = _scaled(Figure(count / judged, share.low, share.high), of_images)
        before = found.get(reason, Figure(0, 0, 0))
        found[reason] = Figure(before.value + own.value, before.low + own.low, before.high + own.high)
    return dict(sorted(found.items(), key=lambda entry: -entry[1].value))


def _scaled(share: Figure, by: float) -> Figure:
    return Figure(share.value * by, share.low * by, share.high * by)


def wilson(hits: float, of: int) -> Figure:
    """A share and its 95 % interval, which holds also where it is near 0 or 1."""
    if not of:
        return Figure(0.0, 0.0, 1.0)
    share = hits / of
    middle = share + Z * Z / (2 * of)
    half = Z * math.sqrt(share * (1 - share) / of + Z * Z / (4 * of * of))
    low, high = ((middle + sign * half) / (1 + Z * Z / of) for sign in (-1, 1))
    return Figure(share, min(max(0.0, low), share), max(min(1.0, high), share))


def interval(value: float, replicas: Numbers) -> Figure:
    """A sum, with the middle 95 % of what other samples would have given."""
    low, high = np.percentile(replicas, [2.5, 97.5]).tolist()
    return Figure(value, min(low, value), max(high, value))


def requests_by_host(sources: Iterable[SourceEstimate]) -> Counter[str]:
    """How many requests each host that was met will get."""
    found: Counter[str] = Counter()
    for source in sources:
        a_host = source.figures["requests"].value / max(1, source.hosts.total())
        found.update({host: images * a_host for host, images in source.hosts.items()})
    return found


def hours(sources: Sequence[SourceEstimate], made: Estimate) -> Hours:
    """How long the download of some sources takes."""
    found = Hours()
    for source in sources:
        figures = {name: figure.value for name, figure in source.figures.items()}
        slots = made.fetch.connections * made.workers
        found.cpu += figures["images_asked"] * source.cpu_s / made.workers / 3600
        found.connections += figures["requests"] * source.mean_latency_s / slots / 3600
        found.bandwidth += figures["served_bytes"] * 8 / (made.bandwidth * 1e6) / 3600
    site_files = len(Terms.of(made.fetch).files())
    for host, requests in requests_by_host(sources).items():
        per_s = requests_per_s(host, made.fetch, _latency(host, made))
        found.politeness = max(found.politeness, (requests + site_files) / per_s / 3600)
    return found


def _latency(host: str, made: Estimate) -> float:
    """Of a host, as measured; of one that was not asked, as the others'."""
    own = [source.latency_s[host] for source in made.sources.values() if host in source.latency_s]
    return float(np.mean(own or [source.mean_latency_s for source in made.sources.values()]))


def expected_hosts(met: Iterable[int]) -> float:
    """How many hosts there are, by how many were met once and twice (Chao's lower bound)."""
    counts = Counter(met)
    return counts.total() + counts[1] * (counts[1] - 1) / (2 * (counts[2] + 1))


# --- what is told ---


def as_json(made: Estimate) -> dict[str, Any]:
    """What `pmd estimate --json` prints. Every figure has its value and its 95 % interval."""
    whole = [*made.sources.values()]
    return {
        "ok": True,
        "requests": made.requests,
        "files_written": 0,
        "seconds": round(made.seconds, 3),
        "workers": made.workers,
        "bandwidth_mbit_s": made.bandwidth,
        "sources": {
            name: _told([source], made)
            | {
                "yield": source.yield_.as_json(),
                "sampled": source.sampled,
                "rows_read": source.rows_read,
                "all_rows_read": source.is_exact,
                "cpu_ms": round(1000 * source.cpu_s, 3),
                "latency_ms": round(1000 * source.mean_latency_s, 3),
                "lost": {reason: figure.as_json() for reason, figure in source.reasons.items()},
                "notes": source.notes,
            }
            for name, source in made.sources.items()
        },
        "all": _told(whole, made) | {"without": [*made.expected]},
        "not_at_hand": made.expected,
    }


def _told(sources: Sequence[SourceEstimate], made: Estimate) -> dict[str, Any]:
    by_host = requests_by_host(sources)
    met = sum((source.hosts for source in sources), Counter[str]())
    busiest = [
        {"host": host, "requests": round(requests), "share": round(requests / by_host.total(), 4)}
        for host, requests in by_host.most_common(BUSIEST)
        if requests
    ]
    return {name: figure.as_json() for name, figure in _sums(sources).items()} | {
        "hosts": {"met": len(met), "expected": round(expected_hosts(met.values())), "busiest": busiest},
        "hours": hours(sources, made).as_json(),
    }


def _sums(sources: Sequence[SourceEstimate]) -> dict[str, Figure]:
    if len(sources) == 1:
        return sources[0].figures
    names = sources[0].figures if sources else ()
    return {
        name: interval(
            sum(source.figures[name].value for source in sources),
            np.sum([source.replicas[name] for source in sources], axis=0),
        )
        for name in names
    }


def estimate_table(told: Mapping[str, Any]) -> Table:
    """One line a source, of what `as_json` gives."""
    table = Table(show_footer=len(told["sources"]) > 1)
    lines = [*told["sources"].items()]
    footer = _cells("all", told["all"]) if lines else [""] * len(_COLUMNS)
    for name, cell in zip(_COLUMNS, footer, strict=True):
        table.add_column(name, cell, justify="left" if name in ("source", "busiest host") else "right")
    for name, source in lines:
        table.add_row(*_cells(name, source))
    for name, expected in told["not_at_hand"].items():
        rows = "-".join(_short(bound) for bound in dict.fromkeys(expected.get("rows", ())))
        pairs = "-".join(_short(bound) for bound in dict.fromkeys(expected.get("pairs", ())))
        known = f"{name}: as its manifest says" if expected else f"{name}: nothing is known"
        table.add_row(known, rows or "-", "-", "-", pairs and f"{pairs} planned", *["-"] * 5)
    return table


def hours_line(told: Mapping[str, Any]) -> str:
    """What a download takes by each of its bounds, in a sentence."""
    hours = {name: value for name, value in told["all"]["hours"].items() if name not in ("binds", "all")}
    bounds = ", ".join(f"{value:,.2f} by {name}" for name, value in hours.items())
    means = f"{told['workers']} workers, {told['bandwidth_mbit_s']:g} Mbit/s"
    return f"hours: {bounds} ({means}): {told['all']['hours']['binds']} binds"


_COLUMNS = ("source", "rows", "yield", "images", "pairs", "served", "stored", "disk", "busiest host", "hours")


def _cells(name: str, told: Mapping[str, Any]) -> list[str]:
    share = told.get("yield")
    busiest = told["hosts"]["busiest"]
    return [
        name,
        _short(told["rows"]["value"]),
        f"{share['value']:.0%} ({share['low']:.0%}-{share['high']:.0%})" if share else "",
        _span(told["images"]),
        _span(told["pairs"]),
        *(_short(told[figure]["value"]) + "B" for figure in ("served_bytes", "stored_bytes", "disk_bytes")),
        f"{busiest[0]['host']} {busiest[0]['share']:.0%} of {told['hosts']['expected']:,}"
        if busiest
        else "-",
        f"{told['hours']['all']:,.2f} {told['hours']['binds']}",
    ]


def _span(figure: Mapping[str, float], unit: str = "") -> str:
    low, high = (_short(figure[name]) for name in ("low", "high"))
    value = _short(figure["value"])
    return f"{value}{unit}" if low == high == value else f"{value}{unit} ({low}-{high})"


def _short(value: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}"
