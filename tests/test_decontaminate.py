"""The laws of pmd/decontaminate.py: an image that models are evaluated on is known by any of its ids."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pmd.decontaminate import block_list, from_bytes, karpathy_coco, karpathy_flickr30k, read_list
from pmd.errors import BadRequest
from pmd.records import Caption, Record

CAPTIONS = (Caption("a photo", 0),)


def record(key: str = "coco-1", url: str = "http://a.example/1.jpg", **meta: Any) -> Record:
    return Record(key, url, CAPTIONS, meta=json.dumps(meta) if meta else None)


@pytest.mark.parametrize(
    ("entry", "blocked"),
    [
        (("coco_id", "9"), record("visual_genome-7", coco_id=9)),
        (("flickr_photo_id", "12"), record("sbu-0123", flickr_photo_id="12")),
        (("key", "cc3m-77"), record("cc3m-77")),
        (("url", "http://a.example/x.jpg"), record(url="http://a.example/x.jpg")),
    ],
)
def test_an_image_is_known_by_its_key_its_url_or_any_id(entry: tuple[str, str], blocked: Record) -> None:
    found = block_list([entry, ("coco_id", "1000"), ("key", "no-such-key")])
    assert found.blocks(blocked)
    assert not found.blocks(record(coco_id=99, flickr_photo_id="9"))
    assert not found.blocks(record())


def test_a_block_list_is_the_same_bytes_in_any_order_and_comes_back() -> None:
    entries = [("key", "b"), ("key", "a"), ("coco_id", "3"), ("key", "a")]
    found = block_list(entries)
    assert block_list(reversed(entries)).to_bytes() == found.to_bytes()
    assert from_bytes(found.to_bytes()) == found
    assert block_list(entries[1:]).sha256 != found.sha256


def test_a_list_is_a_name_and_a_value_a_line(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text("# of ours\n\ncoco_id 9   # a bowl\n  key  cc3m-1\r\n")
    assert read_list(path) == [("coco_id", "9"), ("key", "cc3m-1")]
    path.write_text("coco_id 9\n391895\n")
    with pytest.raises(BadRequest, match="line 2: expected a name and a value"):
        read_list(path)
    with pytest.raises(BadRequest, match="no such"):
        read_list(tmp_path / "no such")


IMAGES = [
    {"cocoid": number, "filename": f"{1000 + number}.jpg", "split": split, "sentences": []}
    for number, split in enumerate(["train", "val", "restval", "test", "val"])
]


@pytest.mark.parametrize("packed", [False, True])
def test_karpathys_val_and_test_are_left_out(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "splits"
    text = json.dumps({"images": IMAGES, "dataset": "coco"})
    if packed:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("dataset_flickr8k.json", "{}")
            archive.writestr("dataset_coco.json", text)
            archive.writestr("dataset_flickr30k.json", json.dumps({"images": IMAGES[:2]}))
    else:
        path.write_text(text)
    assert karpathy_coco(path) == [("coco_id", "1"), ("coco_id", "3"), ("coco_id", "4")]
    flickr = [value for name, value in karpathy_flickr30k(path) if name == "flickr_photo_id"]
    assert flickr == (["1001"] if packed else ["1001", "1003", "1004"])


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"images": [{"split": "train", "cocoid": 1}]}', b"PK\x03\x04"]
)
def test_a_file_without_evaluated_images_is_a_bad_request(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "splits"
    path.write_bytes(content)
    with pytest.raises(BadRequest, match="Karpathy"):
        karpathy_coco(path)
