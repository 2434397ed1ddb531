"""The laws of flava_model/evals: what is counted is what the definitions say."""

import json
import random
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from flava_model import cli, weights
from flava_model.errors import WrongInput
from flava_model.evals.checkpoints import evaluate_checkpoints
from flava_model.evals.features import Unreadable, image_vectors, text_vectors
from flava_model.evals.linear_probe import fit, linear_probe, sweep
from flava_model.evals.retrieval import of_corpus, of_split, recalls, retrieval
from flava_model.evals.zero_shot import zero_shot
from flava_model.models.flava import Flava, preset
from flava_model.tokens import Tokenizer, train_tokenizer
from pmd.errors import BadRequest
from pmd.stream import Stream
from tests.locked import locked, picture


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    locked(folder, {"coco": (9, 7), "cc3m": (6,)})
    return folder


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> Tokenizer:
    return train_tokenizer(Stream(corpus).captions, size=90, least=1)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Flava:
    torch.manual_seed(2)
    made = Flava(preset("tiny", vocabulary=len(tokenizer), image_layers=1, text_layers=1)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def test_recalls_are_those_of_the_definition() -> None:
    chance = random.Random(1)
    images, image_of = 40, [chance.randrange(40) if number >= 40 else number for number in range(150)]
    torch.manual_seed(0)
    one, other = (F.normalize(torch.randn(count, 6), dim=-1) for count in (images, 150))
    found = recalls(one, other, torch.tensor(image_of), rows=7)
    near = (one @ other.T).tolist()
    for k in (1, 5, 10):
        right = 0
        for text in range(150):
            best = sorted(range(images), key=lambda image: -near[image][text])[:k]
            right += image_of[text] in best
        assert found[f"text_to_image@{k}"] == pytest.approx(right / 150)
        right = 0
        for image in range(images):
            best = sorted(range(150), key=lambda text: -near[image][text])[:k]
            right += any(image_of[text] == image for text in best)
        assert found[f"image_to_text@{k}"] == pytest.approx(right / images)
        assert found[f"text_to_image_by_chance@{k}"] == k / images
        drawn = [
            any(image_of[text] == image for text in chance.sample(range(150), k))
            for image in range(images)
            for _ in range(500)
        ]
        assert found[f"image_to_text_by_chance@{k}"] == pytest.approx(sum(drawn) / len(drawn), abs=0.01)


def test_a_model_that_gives_one_vector_for_everything_finds_nothing() -> None:
    same = torch.ones((20, 3))
    found = recalls(same, same, torch.arange(20))
    assert {found[f"{way}@{k}"] for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)} == {0.0}


def test_a_corpus_is_searched_with_all_its_captions(corpus: Path, model: Flava, tokenizer: Tokenizer) -> None:
    pairs = of_corpus(corpus)
    stream = Stream(corpus, unit="pairs")
    assert (pairs.images, len(pairs.texts)) == (22, len(stream))
    samples: dict[int, set[str]] = {}
    for text, image in zip(pairs.texts, pairs.image_of, strict=True):
        samples.setdefault(image, set()).add(text.split()[-1])
    assert all(len(numbers) == 1 for numbers in samples.values()) and len(samples) == 22
    found = retrieval(model, tokenizer, pairs, threads=3)
    assert found["images"] == 22 and 0 <= found["text_to_image@1"] <= found["text_to_image@10"] <= 1
    vectors = image_vectors(model, pairs.read()), text_vectors(model, tokenizer, pairs.texts)
    assert found["text_to_image@5"] == recalls(*vectors, torch.tensor(pairs.image_of))["text_to_image@5"]
    assert of_corpus(corpus, sources=["cc3m"]).images == 6 and of_corpus(corpus, most=10).images == 10


def test_vectors_do_not_depend_on_their_batch(corpus: Path, model: Flava, tokenizer: Tokenizer) -> None:
    images = [*of_corpus(corpus).read()]
    whole = image_vectors(model, images, batch=64)
    assert torch.allclose(whole, image_vectors(model, images, batch=5), atol=1e-6)
    texts = of_corpus(corpus).texts
    assert torch.allclose(
        text_vectors(model, tokenizer, texts), text_vectors(model, tokenizer, texts, batch=3), atol=1e-6
    )
    with pytest.raises(Unreadable, match="named: not an image"):
        image_vectors(model, [*images, ("named", b"no picture")])


def test_a_published_split_is_read(tmp_path: Path, model: Flava, tokenizer: Tokenizer) -> None:
    (tmp_path / "val2014").mkdir()
    told = []
    for number in range(6):
        name = f"COCO_{number}.jpg"
        (tmp_path / ("val2014" if number % 2 else ".") / name).write_bytes(picture(number))
        sentences = [{"raw": f"caption {n} of sample {number}"} for n in range(5)]
        split = "test" if number else "train"
        told.append({"filename": name, "filepath": "val2014", "split": split, "sentences": sentences})
    (tmp_path / "dataset.json").write_text(json.dumps({"images": told, "dataset": "coco"}))
    pairs = of_split(tmp_path / "dataset.json", tmp_path)
    assert (pairs.images, len(pairs.texts)) == (5, 25) and pairs.image_of[:6] == [0, 0, 0, 0, 0, 1]
    assert retrieval(model, tokenizer, pairs)["texts"] == 25
    with pytest.raises(BadRequest, match="no image of the split 'val'; there are test, train"):
        of_split(tmp_path / "dataset.json", tmp_path, split="val")
    (tmp_path / "COCO_2.jpg").unlink()
    with pytest.raises(BadRequest, match=r"photo COCO_2\.jpg is not in it"):
        of_split(tmp_path / "dataset.json", tmp_path)
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(BadRequest, match="not a split file"):
        of_split(tmp_path / "other.json", tmp_path)


def colours(folder: Path, each: int, seed: int) -> Path:
    """Images of three classes that can be told by their colour."""
    from io import BytesIO

    import numpy as np
    from PIL import Image

    chance = np.random.default_rng(seed)
    for number, name in enumerate(("blue", "green", "red")):
        (folder / name).mkdir(parents=True)
        for image in range(each):
            pixels = chance.integers(0, 90, (40, 40, 3), np.uint8)
            pixels[..., 2 - number] += 150
            file = BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            (folder / name / f"{image}.png").write_bytes(file.getvalue())
    return folder


def test_a_linear_probe_learns_what_the_encoder_shows(tmp_path: Path, model: Flava) -> None:
    found = linear_probe(
        model, colours(tmp_path / "train", 30, 1), colours(tmp_path / "test", 10, 2), iterations=60
    )
    assert found["accuracy@1"] > 0.95 and found["mean_per_class@1"] > 0.95
    assert (found["train_images"], found["test_images"], found["classes"]) == (90, 30, 3)
    (tmp_path / "test" / "red").rename(tmp_path / "test" / "rot")
    with pytest.raises(BadRequest, match="not of the same classes: red"):
        linear_probe(model, tmp_path / "train", tmp_path / "test")


def test_the_regression_is_at_its_minimum() -> None:
    """Newton's method on the same objective ends in the same answers, and the same probabilities."""
    torch.manual_seed(0)
    features = torch.randn((60, 4), dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.1, 2.0])
    labels = (features @ torch.tensor([1.0, 0.3, 4.0, -0.5], dtype=torch.float64) > 0.4).long()
    told = fit(features, labels, 2, 2.0, 1_000)

    def objective(flat: torch.Tensor) -> torch.Tensor:
        weights, bias = flat[:8].view(4, 2), flat[8:]
        loss = F.cross_entropy(features @ weights + bias, labels, reduction="sum")
        return loss + weights.pow(2).sum() + 1e-9 * bias.pow(2).sum()

    flat = torch.zeros(10, dtype=torch.float64)
    for _ in range(30):
        flat = flat.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(flat), flat)
        curved = torch.autograd.functional.hessian(objective, flat.detach())
        flat = flat.detach() - torch.linalg.solve(curved, gradient)
    grid = torch.randn((3_000, 4), dtype=torch.float64) * features.std(0)
    newton = (grid @ flat[:8].view(4, 2) + flat[8:]).argmax(1)
    assert (told(grid) == newton).float().mean() > 0.999


def test_the_sweep_ends_at_the_best_strength() -> None:
    for best in (-5.3, 0.0, 2.4, 6.0):
        assert abs(sweep(lambda power, best=best: -abs(power - best)) - best) <= 1 / 8
    assert sweep(lambda power: 1.0) == 7.875  # of equally good ones the strongest


def test_zero_shot_takes_the_nearest_class(tmp_path: Path, model: Flava, tokenizer: Tokenizer) -> None:
    images = colours(tmp_path / "images", 4, 3)
    found = zero_shot(model, tokenizer, images, names=["caption 0", "caption 1", "caption 2"])
    assert 0 <= found["accuracy@1"] <= found["accuracy@5"] == 1 and found["classes"] == 3
    # By hand, with two templates.
    templates = ("a {}", "{} of sample")
    names = ["caption 0", "sample 1", "of 2"]  # of which the tokenizer knows the tokens
    found = zero_shot(model, tokenizer, images, names=names, templates=templates)
    classes = torch.stack(
        [text_vectors(model, tokenizer, [t.format(name) for t in templates]).mean(0) for name in names]
    )
    paths = [path for name in ("blue", "green", "red") for path in sorted((images / name).iterdir())]
    near = (
        image_vectors(model, [(path.name, path.read_bytes()) for path in paths])
        @ F.normalize(classes, dim=-1).T
    )
    right = (near.argmax(1) == torch.arange(12) // 4).float().mean()
    assert found["accuracy@1"] == pytest.approx(float(right))
    with pytest.raises(BadRequest, match="3 folders and 2 names"):
        zero_shot(model, tokenizer, images, names=["one", "two"])
    with pytest.raises(BadRequest, match=r"has no \{\} for"):
        zero_shot(model, tokenizer, images, templates=["a photo"])
    (images / "stray.png").write_bytes(paths[0].read_bytes())
    with pytest.raises(BadRequest, match=r"stray\.png is in no class's folder"):
        zero_shot(model, tokenizer, images)


def test_a_checkpoint_that_goes_while_it_is_read_is_left_out(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"name": "n", "out": "o", "steps": 4, "tokenizer": "hub:none", "images": {"folder": "x"}}
    evals = {"retrieval": {"corpus": str(corpus)}}
    (tmp_path / "run.json").write_text(json.dumps({"config": config | {"evals": evals}}))
    monkeypatch.setattr("flava_model.evals.checkpoints.load_tokenizer", lambda *_, **__: None)
    there = tmp_path / "checkpoints" / "step-00000004"
    there.mkdir(parents=True)
    with pytest.raises(WrongInput, match="expected model"):  # it stays, and is none
        next(evaluate_checkpoints(tmp_path))
    load = weights.load

    def gone(path: Path) -> Flava:
        path.rmdir()
        return load(path)

    monkeypatch.setattr(weights, "load", gone)
    assert [*evaluate_checkpoints(tmp_path)] == []
    assert "update 4: left out, as its checkpoint is no more" in capsys.readouterr().err


def test_the_commands_evaluate(
    corpus: Path, model: Flava, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights.save(model, tmp_path / "model", tokenizer)
    at = str(tmp_path / "model")
    assert cli.run(["eval", "retrieval", at, str(corpus), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 22
    assert cli.run(["eval", "retrieval", at, "--json"]) == 2
    assert "give a CORPUS, or" in json.loads(capsys.readouterr().out)["error"]
    images = str(colours(tmp_path / "images", 8, 3))
    assert cli.run(["eval", "zero-shot", at, images, "--center"]) == 0
    assert "accuracy@1" in capsys.readouterr().out
    assert cli.run(["eval", "linear-probe", at, images, images, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy@1"] > 0.9
    weights.save(model, tmp_path / "bare")
    assert cli.run(["eval", "zero-shot", str(tmp_path / "bare"), images, "--json"]) == 2
    assert "there is no tokenizer beside the model" in json.loads(capsys.readouterr().out)["error"]
