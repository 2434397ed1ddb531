"""Images that must not be trained on, because models are evaluated on them: known by ids, dropped in plan.

    dataset_coco.json, dataset_flickr30k.json (Karpathy's splits), lists of one's own
        --read--> BlockList: {"coco_id": {"391895", ...}, "flickr_photo_id": {...}, "key": {...}}
    a record whose key, url or id in `meta` is among them gets Reason.DECONTAMINATED

A list is text, one `<name> <value>` a line, where name is key, url, or the name of an id in `meta`; # begins
a comment. Ids go across sources: COCO's photos are known in COCO, Localized Narratives and Visual Genome by
coco_id, Flickr's in all sources by flickr_photo_id.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

from pmd.errors import BadRequest
from pmd.manifest import canonical_json
from pmd.records import Record
from pmd.sources.json_lists import BLOCK_BYTES, elements
from pmd.sources.part import Part, Unreadable, blocks, heads

EVALUATION = ("val", "test")  # Karpathy's splits that results are reported on


@dataclass(frozen=True)
class BlockList:
    """Values by the name that they go by."""

    values: Mapping[str, frozenset[str]]

    def blocks(self, record: Record) -> bool:
        if record.key in self._keys or record.url in self._urls:
            return True
        if not self._ids or record.meta is None:
            return False
        meta = orjson.loads(record.meta)
        return any(str(meta[name]) in values for name, values in self._ids if name in meta)

    @cached_property
    def _keys(self) -> frozenset[str]:
        return self.values.get("key", frozenset())

    @cached_property
    def _urls(self) -> frozenset[str]:
        return self.values.get("url", frozenset())

    @cached_property
    def _ids(self) -> list[tuple[str, frozenset[str]]]:
        return [(name, values) for name, values in self.values.items() if name not in ("key", "url")]

    def to_bytes(self) -> bytes:
        """The one form that a block list is stored and hashed in."""
        return canonical_json({name: sorted(values) for name, values in self.values.items()}) + b"\n"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()


def from_bytes(data: bytes) -> BlockList:
    return BlockList({name: frozenset(values) for name, values in json.loads(data).items()})


def block_list(entries: Iterable[tuple[str, str]]) -> BlockList:
    """A block list of (name, value) entries."""
    values: dict[str, set[str]] = {}
    for name, value in entries:
        values.setdefault(name, set()).add(value)
    return BlockList({name: frozenset(found) for name, found in sorted(values.items())})


def read_list(path: Path) -> list[tuple[str, str]]:
    """The entries of a list of one's own. Raises BadRequest, with the line, where it is none."""
    entries: list[tuple[str, str]] = []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"[decontaminate] lists: {path}: {error}") from None
    for number, line in enumerate(text.split("\n"), start=1):
        words = line.partition("#")[0].split()
        if len(words) == 2 and _NAME.match(words[0]):
            entries.append((words[0], words[1]))
        elif words:
            raise BadRequest(
                f"[decontaminate] lists: {path}, line {number}: expected a name and a value, "
                f"such as `coco_id 391895`, found {line[:80]!r}"
            )
    return entries


_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


def karpathy_coco(path: Path) -> list[tuple[str, str]]:
    """The photos of COCO in Karpathy's val and test: 10,000 of them."""
    return [("coco_id", str(image["cocoid"])) for image in _evaluated(path, "dataset_coco.json", "cocoid")]


def karpathy_flickr30k(path: Path) -> list[tuple[str, str]]:
    """The photos of Flickr30k in Karpathy's val and test, about 2,000: their names are their Flickr ids."""
    images = _evaluated(path, "dataset_flickr30k.json", "filename")
    return [("flickr_photo_id", str(image["filename"]).partition(".")[0]) for image in images]


def _evaluated(path: Path, name: str, id_name: str) -> list[dict[str, Any]]:
    """The images of val and test in a Karpathy file, or in that member of caption_datasets.zip."""
    members = heads(str(path), re.compile(rf"(?:^|/){re.escape(name)}\Z"))
    images: list[Any] = []
    try:
        for member in members:
            text = blocks(Part(str(path), "", member), BLOCK_BYTES)
            images += [image for _, image in elements(text, "images")]
    except Unreadable as error:
        raise BadRequest(f"[decontaminate] {path}: not Karpathy's {name}: {error}") from None
    evaluated = [
        image
        for image in images
        if isinstance(image, dict) and image.get("split") in EVALUATION and image.get(id_name) is not None
    ]
    if not evaluated:
        raise BadRequest(f"[decontaminate] {path}: expected Karpathy's {name}, found no image of val or test")
    return evaluated
