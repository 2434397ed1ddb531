"""The laws of flava_model/weights.py: what goes out comes in, here and in `transformers`; nothing is run."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import FlavaForPreTraining

import flava_model
from flava_model import cli, weights
from flava_model.codebook import DalleEncoder, RandomQuantizer
from flava_model.errors import WrongInput
from flava_model.models.flava import Flava, FlavaConfig
from flava_model.tokens import train_tokenizer
from tests.test_flava import PAIRS, SMALL, asked, batch_of, theirs

# The names of TorchMultimodal, made of ours: the other way around than weights.py does it.
BACK = (
    (r"^flava\.logit_scale$", "loss.contrastive_loss.logit_scale"),
    (r"^flava\.image_model\.", "model.image_encoder."),
    (r"^flava\.text_model\.", "model.text_encoder."),
    (r"^flava\.multimodal_model\.", "model.mm_encoder."),
    (r"^flava\.", "model."),
    (r"^mim_head\.", "loss.mim_loss.cls."),
    (r"^mlm_head\.", "loss.mlm_loss.cls."),
    (r"^mmm_image_head\.", "loss.mmm_loss.mim.cls."),
    (r"^mmm_text_head\.", "loss.mmm_loss.mlm.cls."),
    (r"^itm_head\.pooler\.", "loss.itm_loss.pooler."),
    (r"^itm_head\.seq_relationship\.", "loss.itm_loss.cls.seq_relationship."),
    (r"\.cls\.transform\.dense\.", ".cls.dense."),
    (r"\.cls\.transform\.LayerNorm\.", ".cls.layer_norm."),
    (r"\.embeddings\.LayerNorm\.", ".embeddings.layer_norm."),
    (r"\.attention\.attention\.", ".attention."),
    (r"\.attention\.output\.dense\.", ".attention.output."),
    (r"\.intermediate\.dense\.", ".feedforward.model.0."),
    (r"(\.layer\.\d+)\.output\.dense\.", r"\1.feedforward.model.2."),
    (r"\.layernorm_before\.", ".attention_layernorm."),
    (r"\.layernorm_after\.", ".feedforward_layernorm."),
)


@pytest.fixture(scope="module")
def model() -> Flava:
    torch.manual_seed(4)
    made = Flava(SMALL, DalleEncoder(codes=SMALL.codes, width=8))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return made.eval()


def same(one: Flava, other: Flava) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_what_goes_out_comes_in(model: Flava, tmp_path: Path) -> None:
    weights.save(model, tmp_path / "new" / "folder")
    found = flava_model.load(tmp_path / "new" / "folder")
    assert found.config == model.config and same(found, model) and not found.training
    weights.save(found, tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "new" / "folder" / name).read_bytes()
    assert {path.name for path in (tmp_path / "again").iterdir()} == {"config.json", "model.safetensors"}


def test_transformers_loads_what_goes_out(model: Flava, tmp_path: Path) -> None:
    weights.save(model, tmp_path)
    loaded: Any = FlavaForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    their, told = loaded
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    batch = batch_of(matches=torch.tensor([True, False, True, True, True, True]))
    with torch.no_grad():
        losses, found = model.losses(batch), their.eval()(**asked(batch)).loss_info
    for name in PAIRS:
        assert losses[name].mean().item() == pytest.approx(getattr(found, name).item(), rel=1e-5)
    pixels = torch.rand(2, 3, 32, 32)
    assert model.image_codebook is not None
    codes = their.image_codebook.get_codebook_indices(0.8 * pixels + 0.1).flatten(1)
    assert (model.image_codebook.codes(pixels) == codes).all()


def test_what_transformers_saves_comes_in(tmp_path: Path) -> None:
    their = theirs()
    their.save_pretrained(tmp_path / "folder")
    found = flava_model.load(tmp_path / "folder")
    assert found.config == SMALL and found.image_codebook is None
    state = their.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.state_dict().items())
    their.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len([*(tmp_path / "sharded").glob("*.safetensors")]) > 2
    assert same(flava_model.load(tmp_path / "sharded"), found)


def test_an_old_file_comes_in_by_its_sizes(tmp_path: Path) -> None:
    """Weights alone, in a .bin, with position_ids, and heads of 64 as all published models have."""
    config = FlavaConfig(**{**vars(SMALL), "width": 128, "heads": 2, "image_layers": 4})
    made = Flava(config).eval()
    state: dict[str, Tensor] = dict(made.state_dict())
    state["flava.text_model.embeddings.position_ids"] = torch.arange(40)[None]
    del state["mim_head.bias"], state["mlm_head.decoder.bias"]  # either name of the two may be there
    torch.save(state, tmp_path / "pytorch_model.bin")
    for path in (tmp_path / "pytorch_model.bin", tmp_path):
        found = flava_model.load(path)
        assert same(found, made) and found.config == config


def test_torchmultimodals_names_come_in(tmp_path: Path) -> None:
    config = FlavaConfig(**{**vars(SMALL), "width": 64, "heads": 1})
    made = Flava(config).eval()
    state: dict[str, Tensor] = {}
    for name, value in made.state_dict().items():
        for pattern, to in BACK:
            name = re.sub(pattern, to, name)
        state[name] = value.clone()
    assert "model.image_encoder.encoder.layer.0.attention.query.weight" in state
    assert "loss.mmm_loss.mlm.cls.layer_norm.bias" in state
    torch.save(state, tmp_path / "flava.pt")
    found = flava_model.load(tmp_path / "flava.pt")
    assert same(found, made)
    assert (found.config.head_layer_norm_eps, found.config.attend_text_padding) == (1e-5, True)


def test_commands_bring_weights_in_and_out(
    model: Flava, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs().save_pretrained(tmp_path / "theirs")
    line = ["import-hf", str(tmp_path / "theirs"), "--out", str(tmp_path / "ours")]
    assert cli.run([*line, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] and told["config"] == vars(SMALL) and not told["image_codebook"]
    assert told["parameters"] == sum(value.numel() for value in Flava(SMALL).parameters())
    assert cli.run(["export-hf", str(tmp_path / "ours"), "--out", str(tmp_path / "back")]) == 0
    assert "without an image codebook" in capsys.readouterr().out
    assert same(flava_model.load(tmp_path / "back"), flava_model.load(tmp_path / "theirs"))
    assert cli.run(["import-hf", str(tmp_path / "no.bin"), "--out", str(tmp_path / "new"), "--json"]) == 2
    captured = capsys.readouterr()
    assert "there is no such file or folder" in json.loads(captured.out)["error"]
    assert captured.err.startswith("flava: ") and not (tmp_path / "new").exists()


def test_a_random_codebook_is_not_in_the_weights(tmp_path: Path) -> None:
    made = Flava(SMALL, RandomQuantizer(codes=SMALL.codes))
    weights.save(made, tmp_path)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "codebook" in name]
    assert json.loads((tmp_path / "config.json").read_bytes())["init_codebook"] is False
    assert flava_model.load(tmp_path).config == SMALL


class _Runs:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "flava.pt"])
def test_a_pickle_runs_nothing(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "it ran"
    (tmp_path / name).write_bytes(pickle.dumps({"flava.logit_scale": _Runs(marker)}))
    with pytest.raises(WrongInput, match="not a file of weights"):
        flava_model.load(tmp_path / name)
    torch.save({"flava.logit_scale": _Runs(marker)}, tmp_path / name)
    with pytest.raises(WrongInput, match="not a file of weights"):
        flava_model.load(tmp_path / name)
    assert not marker.exists()


def test_what_does_not_fit_is_told(model: Flava, tmp_path: Path) -> None:
    weights.save(model, tmp_path)
    state, file = load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors"

    def refused(change: dict[str, Tensor | None], said: str) -> None:
        changed = {name: value for name, value in (state | change).items() if value is not None}
        save_file(changed, file)
        with pytest.raises(WrongInput, match=said):
            flava_model.load(tmp_path)

    refused({"flava.logit_scale": None}, r"lacks flava\.logit_scale \(1 missing, 0 unknown\)")
    refused({"flava.what": torch.zeros(1)}, r"has flava\.what \(0 missing, 1 unknown\)")
    refused(
        {"flava.image_projection.bias": torch.zeros(7)},
        r"flava\.image_projection\.bias: expected \(32,\), given \(7,\)",
    )
    file.write_bytes(b"no weights")
    with pytest.raises(WrongInput, match=r"model\.safetensors: not a file of weights"):
        flava_model.load(tmp_path)
    file.unlink()
    with pytest.raises(WrongInput, match=r"expected model\.safetensors or pytorch_model\.bin in it"):
        flava_model.load(tmp_path)
    with pytest.raises(WrongInput, match="there is no such file or folder"):
        flava_model.load(tmp_path / "nowhere.bin")
    torch.save({"step": 3}, tmp_path / "other.pt")
    with pytest.raises(WrongInput, match="expected tensors by name"):
        flava_model.load(tmp_path / "other.pt")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(WrongInput, match="not the weights of a FLAVA with its heads"):
        flava_model.load(tmp_path / "other.pt")


def test_a_configuration_that_is_none_of_flavas_is_told(model: Flava, tmp_path: Path) -> None:
    weights.save(model, tmp_path)
    told = json.loads((tmp_path / "config.json").read_bytes())
    told["flava_model"]["config"]["colour"] = "red"
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(WrongInput, match="unknown setting colour"):
        flava_model.load(tmp_path)
    del told["flava_model"]
    told["text_config"]["hidden_size"] = 96
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(WrongInput, match="text_config's hidden_size is another"):
        flava_model.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(WrongInput, match="not the configuration of a FLAVA"):
        flava_model.load(tmp_path)
    index = {"weight_map": {"flava.logit_scale": "../../secret"}}
    (tmp_path / "model.safetensors").rename(tmp_path / "elsewhere")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WrongInput, match="is not a file beside it"):
        flava_model.load(tmp_path)


def test_a_tokenizer_goes_with_its_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = ["two brown dogs run", "a man rides a wave"] * 3
    tokenizer = train_tokenizer(lambda: [captions], size=80)
    weights.save(Flava(SMALL), tmp_path / "with", tokenizer)
    beside = weights.tokenizer_beside(tmp_path / "with")
    assert beside is not None and beside.sha256 == tokenizer.sha256
    assert cli.run(["export-hf", str(tmp_path / "with"), "--out", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokenizer_sha256"] == tokenizer.sha256
    weights.load(tmp_path / "out")
    weights.save(Flava(SMALL), tmp_path / "without")
    assert weights.tokenizer_beside(tmp_path / "without") is None

    train_tokenizer(lambda: [captions[:1] * 2], size=70).save(tmp_path / "out")
    with pytest.raises(WrongInput, match=f"trained with another tokenizer.* {tokenizer.sha256}"):
        weights.load(tmp_path / "out")
    with pytest.raises(WrongInput, match=r"a tokenizer of \d+ tokens: expected 97 at most"):
        broad = train_tokenizer(lambda: [["".join(map(chr, range(0x430, 0x480)))]], size=600)
        weights.save(Flava(SMALL), tmp_path, broad)


def test_a_random_quantizer_is_the_same_again(tmp_path: Path) -> None:
    quantizer = RandomQuantizer(codes=SMALL.codes, dimensions=5, seed=9)
    weights.save(Flava(SMALL, quantizer), tmp_path)
    pixels = torch.rand((4, 3, 32, 32))
    again = weights.load(tmp_path).image_codebook
    assert again is not None and torch.equal(again.codes(pixels), quantizer.codes(pixels))
    FlavaForPreTraining.from_pretrained(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    told["flava_model"]["random_quantizer"]["depth"] = 3
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(WrongInput, match=r"random_quantizer: .*depth"):
        weights.load(tmp_path)


def test_a_codebook_comes_alone(tmp_path: Path, model: Flava) -> None:
    codebook = model.image_codebook
    assert isinstance(codebook, DalleEncoder)
    pixels = torch.rand((2, 3, 32, 32))
    save_file(codebook.state_dict(), tmp_path / "alone.safetensors")
    names = {re.sub(r"\.(group|path)\.", ".", name): value for name, value in codebook.state_dict().items()}
    openai = {re.sub("weight$", "w", re.sub("bias$", "b", name)): value for name, value in names.items()}
    torch.save(openai, tmp_path / "encoder.pt")
    weights.save(model, tmp_path / "whole")
    for path in ("alone.safetensors", "encoder.pt", "whole"):
        assert torch.equal(weights.load_codebook(tmp_path / path).codes(pixels), codebook.codes(pixels))
    weights.save(Flava(SMALL), tmp_path / "none")
    with pytest.raises(WrongInput, match="expected the weights of an image codebook, given none"):
        weights.load_codebook(tmp_path / "none")
