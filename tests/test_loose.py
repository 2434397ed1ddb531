"""The laws of flava_model/loose.py: the images of a folder come as those of a corpus do."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from flava_model.data import Loader
from flava_model.inputs import Prepare
from flava_model.loose import Folder
from flava_model.views import Views
from pmd.errors import BadRequest, Damaged, Refused
from pmd.stream import Feed
from tests.locked import picture

ENDINGS = ["jpg", "JPEG"] * 6
NAMES = [f"{kind}/{number}.{ending}" for kind in ("cat", "dog") for number, ending in enumerate(ENDINGS)]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number))
    (folder / "top.jpg").write_bytes(picture(99))
    (folder / ".hidden.jpg").write_bytes(b"x")
    (folder / "notes.txt").write_text("no image")
    os.symlink(folder, folder / "cat" / "circle")
    return folder


def test_every_image_comes_once_an_epoch(images: Path) -> None:
    folder = pickle.loads(pickle.dumps(Folder(images, seed=2)))
    assert len(folder) == 25 and folder.classes == ["cat", "dog"]
    orders = [[sample.key for sample in folder.read(epoch, np.arange(25))] for epoch in range(3)]
    assert {*orders[0]} == {*NAMES, "top.jpg"} and len({*map(tuple, orders)}) == 3
    for sample in folder.read(0, np.arange(25)):
        assert sample.image == (images / sample.key).read_bytes() and sample.caption == ""
    labels = {folder.key(number): folder.label(number) for number in range(25)}
    assert all(labels[name] == (0 if name.startswith("cat") else 1) for name in NAMES)
    assert labels["top.jpg"] is None


def test_any_world_gives_the_same_also_where_images_are_damaged(images: Path) -> None:
    (images / NAMES[3]).write_bytes(b"\xff\xd8\xff no picture")
    (images / NAMES[7]).write_bytes(b"")
    found: list[dict[int, tuple[str, str | None]]] = []
    for world in (1, 2, 4):
        seen: dict[int, tuple[str, str | None]] = {}
        for rank in range(world):
            folder = Folder(images, seed=2)
            feed = Feed(folder, batch=8, rank=rank, world=world)
            loader = Loader(feed, Views(sizes=(32, 16))).then(Prepare(grid=2).images)
            for inputs in loader:
                assert inputs.patch_mask is not None and inputs.views[32].shape == (8 // world, 3, 32, 32)
                seen |= {sample.position: (sample.key, sample.instead_of) for sample in inputs.samples}
                loader.delivered(inputs)
            assert {damage.key for damage in folder.damages} <= {NAMES[3], NAMES[7]}
        found.append(seen)
    assert found[0] == found[1] == found[2]
    stood_in = {instead for _, instead in found[0].values() if instead}
    assert stood_in and stood_in <= {NAMES[3], NAMES[7]}


def test_a_file_that_is_gone_is_replaced_and_a_folder_of_such_is_given_up(images: Path) -> None:
    folder = Folder(images)
    (images / NAMES[5]).unlink()
    samples = folder.read(0, np.arange(25))
    assert [sample.instead_of for sample in samples].count(NAMES[5]) == 1
    assert folder.damages[0].key == NAMES[5] and "No such file" in folder.damages[0].why
    for name in (*NAMES, "top.jpg"):
        (images / name).unlink(missing_ok=True)
    with pytest.raises(Damaged, match="100 samples tried"):
        folder.read(0, np.array([0]))


def test_a_run_on_another_folder_is_refused(images: Path) -> None:
    state = Feed(Folder(images), batch=5).state_dict()
    Feed(Folder(images), batch=5).load_state_dict(state)
    (images / "new.png").write_bytes(b"x")
    with pytest.raises(Refused, match="folder_sha256"):
        Feed(Folder(images), batch=5).load_state_dict(state)
    with pytest.raises(BadRequest, match="there is no such folder"):
        Folder(images / "absent")
    (images / "none").mkdir()
    with pytest.raises(BadRequest, match="no image is in it"):
        Folder(images / "none")
