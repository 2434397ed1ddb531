"""Texts alone: files of them, packed into one that is read at any place.

    .txt, .jsonl, .parquet, also .gz --pack--> FOLDER: texts.bin   pieces of text, one after another, UTF-8
                                                       texts.idx   where each begins; and the end: uint64
                                                       texts.json  what went in, how much was dropped and why
    FOLDER --Texts--> the piece at any position of any epoch

A text that is longer than a model reads is cut into pieces at spaces, and each piece is a sample: nothing is
cut off, and all of it comes once an epoch.
"""

import gzip
import hashlib
import json
import os
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flava_model.loose import Loose
from pmd.stream import BadRequest, Damaged

FORMAT = 1  # of texts.json
LONGEST = 2_000  # bytes of a piece: some 450 tokens of English
LONGEST_LINE = 64 << 20  # bytes; a longer one is no text
_BIN, _IDX, _TOLD = "texts.bin", "texts.idx", "texts.json"

# A text, or why there is none in a row.
Row = str | None
Done = Callable[[int, float], None]


def pack(
    files: Sequence[str | Path],
    out: str | Path,
    *,
    column: str = "text",
    longest: int = LONGEST,
    done: Done = lambda rows, share: None,
) -> dict[str, Any]:
    """Pack files, or all that are in a folder, in the order given. Returns what texts.json says.

    column: of Parquet, and the field of JSON lines. longest: bytes of a piece. done: is told how many rows
    were read, and what share of the bytes. The same files give the same bytes.

    Raises BadRequest where a file is missing, of an unknown kind or without the column, or where `out` has
    something else.
    """
    if longest < 16:
        raise BadRequest(f"longest: pieces of {longest} bytes; expected 16 at least")
    inputs, out = _inputs(files), Path(out)
    told: dict[str, Any] = {
        "format": FORMAT,
        "inputs": [{"name": path.name, "size": path.stat().st_size} for path in inputs],
        "column": column,
        "longest": longest,
    }
    if out.exists():
        if (there := _read_told(out)) is not None:
            known = [{"name": one["name"], "size": one["size"]} for one in there["inputs"]]
            if {name: there[name] for name in told if name != "inputs"} | {"inputs": known} == told:
                return there
        raise BadRequest(f"{out}: there is something else already; choose another folder, or remove it")
    aside = out.with_name(f".{out.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    rows: Counter[str] = Counter()
    sha256 = {name: hashlib.sha256() for name in (_BIN, _IDX)}
    pieces = end = 0
    through, whole = 0, sum(one["size"] for one in told["inputs"]) or 1
    with (aside / _BIN).open("wb") as texts, (aside / _IDX).open("wb") as index:

        def write(name: str, file: BinaryIO, data: bytes) -> None:
            file.write(data)
            sha256[name].update(data)

        write(_IDX, index, np.uint64(0).tobytes())
        for path, entry in zip(inputs, told["inputs"], strict=True):
            with _Counted(path) as counted:
                for text, why in _rows(path, counted, column):
                    rows["seen"] += 1
                    rows["kept" if text is not None else f"dropped: {why}"] += 1
                    for piece in cut(text, longest) if text is not None else ():
                        data = piece.encode()
                        end += len(data)
                        pieces += 1
                        write(_BIN, texts, data)
                        write(_IDX, index, np.uint64(end).tobytes())
                    if rows["seen"] % 1_000 == 0:
                        done(rows["seen"], (through + counted.count) / whole)
                entry["sha256"] = counted.sha256()
            through += entry["size"]
        for file in (texts, index):
            file.flush()
            os.fsync(file.fileno())
    told |= {"count": pieces, "bytes": end, "rows": dict(sorted(rows.items()))}
    told["sha256"] = {name: hasher.hexdigest() for name, hasher in sha256.items()}
    with (aside / _TOLD).open("w") as file:
        json.dump(told, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.rename(aside, out)
    return told


def cut(text: str, longest: int) -> Iterator[str]:
    """A text in pieces of up to so many bytes: at spaces, or within a word that alone is longer, but never
    within a character. Spaces at the ends of pieces are left out.
    """
    begin = end = size = 0  # of the piece at hand
    for word in re.finditer(r"\S+", text):
        grown = len(text[end : word.end()].encode())
        if size and size + grown > longest:
            yield text[begin:end]
            size = 0
        if not size:
            begin, grown = word.start(), len(word[0].encode())
        end = word.end()
        if grown > longest and not size:
            yield from _within(word[0].encode(), longest)
        else:
            size += grown
    if size:
        yield text[begin:end]


def _within(word: bytes, longest: int) -> Iterator[str]:
    begin = 0
    while begin < len(word):
        end = begin + longest
        while end < len(word) and word[end] & 0xC0 == 0x80:  # within a character
            end -= 1
        yield word[begin:end].decode()
        begin = end


# What goes in


def _inputs(files: Sequence[str | Path]) -> list[Path]:
    found: list[Path] = []
    for file in map(Path, files):
        if file.is_dir():
            found += sorted(path for path in file.iterdir() if _kind(path) and not path.name.startswith("."))
        elif not file.is_file():
            raise BadRequest(f"{file}: there is no such file")
        elif not _kind(file):
            raise BadRequest(f"{file}: expected .txt, .jsonl, .ndjson, these with .gz, or .parquet")
        else:
            found.append(file)
    if not found:
        raise BadRequest(f"{', '.join(map(str, files))}: there is no file of texts")
    return found


def _kind(path: Path) -> str | None:
    name = path.name.removesuffix(".gz")
    for ending in (".txt", ".jsonl", ".ndjson"):
        if name.endswith(ending):
            return ending
    return ".parquet" if path.name.endswith(".parquet") else None


class _Counted:
    """A file that is hashed as it is read from its beginning to its end."""

    def __init__(self, path: Path) -> None:
        self._path, self._hasher, self.count = path, hashlib.sha256(), 0
        self.file = path.open("rb")

    def __enter__(self) -> "_Counted":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self._hasher.update(data)
        self.count += len(data)
        return data

    def sha256(self) -> str:
        """Of the whole file."""
        if self.count == 0:  # read by others, from its end
            self.file.seek(0)
        while self.read(1 << 20):
            pass
        return self._hasher.hexdigest()


def _rows(path: Path, counted: _Counted, column: str) -> Iterator[tuple[Row, str]]:
    kind = _kind(path)
    if kind == ".parquet":
        yield from _of_parquet(path, column)
        return
    for line in _lines(path, counted):
        if line is None:
            yield None, "too_long"
            continue
        try:
            text: Any = line.decode()
        except UnicodeDecodeError:
            yield None, "invalid_utf8"
            continue
        if kind != ".txt" and text.strip():
            try:
                told = json.loads(text)
            except ValueError:
                yield None, "invalid_json"
                continue
            text = told.get(column) if isinstance(told, dict) else None
        yield _judged(text)


def _judged(text: Any) -> tuple[Row, str]:
    if not isinstance(text, str):
        return None, "no_text"
    try:
        text.encode()
    except UnicodeEncodeError:  # a half of a pair of surrogates, which JSON can write
        return None, "invalid_utf8"
    return (text, "") if text.strip() else (None, "empty")


def _lines(path: Path, counted: _Counted) -> Iterator[bytes | None]:
    r"""Without their ends, which are \n; None for one that is too long."""
    read = (
        _gunzipped(path, counted) if path.name.endswith(".gz") else iter(lambda: counted.read(1 << 20), b"")
    )
    held, first, skipping = b"", True, False
    for block in read:
        if first:
            block, first = block.removeprefix(b"\xef\xbb\xbf"), False
        *lines, rest = block.split(b"\n")
        for line in lines:
            if skipping:
                skipping = False
                yield None
            else:
                yield (held + line).removesuffix(b"\r")
            held = b""
        held = b"" if skipping else held + rest
        if len(held) > LONGEST_LINE:
            held, skipping = b"", True
    if skipping:
        yield None
    elif held:
        yield held.removesuffix(b"\r")


def _gunzipped(path: Path, counted: _Counted) -> Iterator[bytes]:
    try:
        with gzip.GzipFile(fileobj=cast("BinaryIO", counted)) as opened:
            while block := opened.read(1 << 20):
                yield block
    except (OSError, EOFError, zlib.error) as error:
        raise BadRequest(f"{path}: not gzip from its beginning to its end: {error}") from None


def _of_parquet(path: Path, column: str) -> Iterator[tuple[Row, str]]:
    try:
        with pq.ParquetFile(path) as opened:
            if column not in opened.schema_arrow.names:
                raise BadRequest(
                    f"{path}: there is no column {column!r}; it has {', '.join(opened.schema_arrow.names)}"
                )
            for batch in opened.iter_batches(1_024, columns=[column]):
                for text in batch.column(0).to_pylist():
                    yield _judged(text)
    except (OSError, pa.ArrowException) as error:
        raise BadRequest(f"{path}: not Parquet: {error}") from None


# What comes out


class Texts(Loose):
    """The pieces of a folder that `pack` wrote."""

    def __init__(self, folder: str | Path, *, seed: int = 0, window: int = 32) -> None:
        """Reads no text. Raises BadRequest where there is no pack, Damaged where it is not whole."""
        self._folder = Path(folder)
        told = _read_told(self._folder)
        if told is None:
            raise BadRequest(f"{folder}: there is no {_TOLD} in it; `flava pack-texts FILES --out {folder}`")
        if not told["count"]:
            raise BadRequest(f"{folder}: it has no text")
        self._told, self._given = told, (str(folder), seed, window)
        for name, size in ((_BIN, told["bytes"]), (_IDX, 8 * (told["count"] + 1))):
            path = self._folder / name
            found = path.stat().st_size if path.exists() else 0
            if found != size:
                raise Damaged(f"{path}: {found} bytes, {_TOLD} says {size}: pack the texts again")
        self._texts = np.memmap(self._folder / _BIN, np.uint8, mode="r")
        self._ends: NDArray[np.uint64] = np.memmap(self._folder / _IDX, np.dtype("<u8"), mode="r")
        super().__init__(told["count"], source="texts", seed=seed, window=window)

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, self._given

    def key(self, number: int) -> str:
        return f"texts:{number}"

    def item(self, number: int) -> tuple[bytes, str]:
        piece = self._texts[int(self._ends[number]) : int(self._ends[number + 1])]
        return b"", piece.tobytes().decode()

    def described(self) -> dict[str, Any]:
        told = {"texts_sha256": self._told["sha256"][_BIN], "count": len(self)}
        return told | {"seed": self._seed, "window": self.order.window}

    def verify(self) -> None:
        """Read all of it. Raises Damaged where it is not what was packed."""
        for name, sha256 in self._told["sha256"].items():
            with (self._folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != sha256:
                raise Damaged(f"{self._folder / name}: sha256 is {found}, {_TOLD} says {sha256}")


def _opened(folder: str, seed: int, window: int) -> Texts:
    return Texts(folder, seed=seed, window=window)


def _read_told(folder: Path) -> dict[str, Any] | None:
    try:
        told = json.loads((folder / _TOLD).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise Damaged(f"{folder / _TOLD}: {error}: pack the texts again") from None
    if told.get("format") != FORMAT:
        raise BadRequest(f"{folder}: texts of format {told.get('format')}; this is {FORMAT}")
    return told
