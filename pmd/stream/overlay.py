"""How often each image of a locked corpus stands in an epoch, told beside the corpus: no tar is rewritten.

    indexes of the shards --judge--> 0, 1, 2, ... times each --write_overlay--> a small file --> Stream

0 leaves an image out (a filter, another split, a takedown), 2 has it come twice (a weight). A file tells of
those shards alone in which something differs; it is good for the corpus with its root hash, and its own hash
is part of what a stream is, so that no run goes on with another one unnoticed.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from pmd.errors import BadRequest, Damaged, Refused
from pmd.lock import Lock, read_locked
from pmd.records import key_hash
from pmd.storage import Store
from pmd.stream.order import mixed
from pmd.tables import read_footer, read_table, write_table

FORMAT = 1
MOST = 255  # times in an epoch
_SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # of the tar, as in the lock
        ("times", pa.binary()),  # of each kept image, in the index's order: a bit each, or a byte
        ("rows", pa.int64()),  # kept images, as the lock has them
        ("images", pa.int64()),  # so often some image comes in an epoch
        ("pairs", pa.int64()),  # and some pair
    ]
)

Times = NDArray[np.uint8]
# Columns of the kept rows of one index -> how often each comes.
Judge = Callable[[pa.Table], ArrayLike]


class _Told(NamedTuple):
    times: bytes
    rows: int
    images: int
    pairs: int


class Overlay:
    """One such file."""

    def __init__(self, root: str, sha256: str, told: dict[str, _Told]) -> None:
        self.root, self.sha256 = root, sha256
        self._told = told

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Raises BadRequest where there is none, Damaged where it is not one."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise BadRequest(f"{path}: {error.strerror}; `write_overlay` makes such a file") from None
        try:
            footer = read_footer(io.BytesIO(data))
            rows = read_table(io.BytesIO(data), _SCHEMA.names).cast(_SCHEMA).to_pylist()
            told = {row["path"]: _Told(*(row[name] for name in _Told._fields)) for row in rows}
        except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
            raise Damaged(f"{path}: not an overlay: {error}") from None
        if footer.fingerprint is None or footer.facts.get("format") != FORMAT:
            raise Damaged(f"{path}: not an overlay of format {FORMAT}")
        return cls(footer.fingerprint, hashlib.sha256(data).hexdigest(), told)

    def check(self, lock: Lock) -> None:
        """Raises Refused unless it was made for this corpus."""
        if self.root != lock.root:
            raise Refused(
                f"the overlay was made for the corpus with root {self.root}, this one's is {lock.root}"
            )

    def count(self, path: str, unit: str) -> int | None:
        """Samples of a shard in an epoch; None: as many as the lock says."""
        told = self._told.get(path)
        return None if told is None else told.images if unit == "images" else told.pairs

    def times(self, path: str) -> Times | None:
        """How often each kept image of a shard comes; None: once each."""
        told = self._told.get(path)
        if told is None:
            return None
        packed = np.frombuffer(told.times, np.uint8)
        return packed if len(packed) == told.rows else np.unpackbits(packed)[: told.rows]


def write_overlay(
    path: str | Path,
    folder: str | Path,
    judge: Judge,
    *,
    columns: Sequence[str] = ("key",),
    sources: Iterable[str] = (),
    on: Overlay | None = None,
) -> Overlay:
    """Judge the images of a corpus, or of some of its sources, and write what differs from once each.

    columns: of the index (see pmd/README.md) that the judge is given. on: another overlay that holds too; how
    often an image comes is then both numbers multiplied. Raises BadRequest.
    """
    store = Store(str(folder))
    lock = read_locked(store)
    if on is not None:
        on.check(lock)
    chosen = set(sources) or set(lock.sources)
    if unknown := chosen - set(lock.sources):
        raise BadRequest(f"{folder} has no source {', '.join(sorted(unknown))}")
    rows: list[dict[str, Any]] = []
    for file in lock.files:
        if not file.path.endswith(".tar"):
            continue
        earlier = on.times(file.path) if on else None
        judged = file.path.split("/")[-2] in chosen
        if not judged and earlier is None:
            continue
        with store.open(file.path.removesuffix(".tar") + ".parquet") as opened:
            index = read_table(opened, ("captions", *columns), where=("status", "success"))
        times = np.ones(len(index), np.int64) if earlier is None else earlier.astype(np.int64)
        if judged:
            times = times * _checked(judge(index.select([*columns])), len(index), file.path)
        if len(index) != file.images or times.max(initial=0) > MOST:
            raise BadRequest(
                f"{file.path}: {len(index)} images, the lock says {file.images}; at most {MOST} times each, "
                f"not {times.max(initial=0)}"
            )
        if (times == 1).all():
            continue
        captions = [sum(c["reason"] is None for c in row) for row in index["captions"].to_pylist()]
        few = times.astype(np.uint8)
        rows.append(
            {
                "path": file.path,
                # A byte each is told from a bit each by how many bytes there are; of one image it is not.
                "times": (np.packbits(few) if few.max(initial=0) <= 1 and len(few) > 1 else few).tobytes(),
                "rows": len(index),
                "images": int(times.sum()),
                "pairs": int((times * np.array(captions, np.int64)).sum()),
            }
        )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    home = Store(str(Path(path).parent))
    with home.writing(Path(path).name) as aside:
        table = pa.Table.from_pylist(rows, _SCHEMA)
        write_table(aside, table, fingerprint=lock.root, facts={"format": FORMAT})
    return Overlay.read(path)


def _checked(judged: ArrayLike, rows: int, path: str) -> NDArray[np.int64]:
    times = np.asarray(judged) if rows else np.zeros(0, bool)  # of none, nothing needs to be given
    if times.shape != (rows,) or times.dtype.kind not in "biu" or (times.size and times.min() < 0):
        raise BadRequest(
            f"the judge gave {times.dtype} {times.shape} for the {rows} images of {path}; it is to give a "
            "whole number, 0 at least, or True or False, for each"
        )
    return times.astype(np.int64)


def without(keys: Iterable[str]) -> Judge:
    """Leaves out these images: tombstones."""
    gone = frozenset(keys)
    return lambda index: np.array([key not in gone for key in index["key"].to_pylist()], bool)


def part(begin: float, end: float, *, seed: int = 0) -> Judge:
    """Keeps a share of all images, chosen by their keys alone: part(0, 0.99) and part(0.99, 1) split a corpus
    for good, however it is built again.
    """
    if not 0 <= begin <= end <= 1:
        raise BadRequest(f"part({begin}, {end}): shares from 0 to 1, the first not above the second")
    bounds = [min(int(share * 2.0**32), 1 << 32) for share in (begin, end)]

    def judge(index: pa.Table) -> ArrayLike:
        hashes = np.array([key_hash(key) for key in index["key"].to_pylist()], np.uint64)
        # Of the hash itself the shard and the place in it are made.
        places = (mixed(hashes ^ np.uint64(seed + 1)) >> np.uint64(32)).astype(np.int64)
        return (places >= bounds[0]) & (places < bounds[1])

    return judge
