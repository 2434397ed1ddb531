"""Weights in and out: our own folders, those of `transformers`, and files with TorchMultimodal's names.

    a folder or file --names, shapes, settings--> Flava, DalleEncoder   -->   a folder that transformers loads

A folder is config.json and model.safetensors, in the layout of facebook/flava-full, and often the tokenizer's
files. Ours are the same with one section more in the configuration, for what transformers has no name for.
Nothing is unpickled: .bin and .pt files are read by torch's reader of weights alone. Nothing is downloaded.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flava_model.checkpoint import is_checkpoint, read_checkpoint, read_tensors
from flava_model.codebook import Codebook, DalleEncoder, RandomQuantizer
from flava_model.codes import codebook_sha256
from flava_model.errors import WrongInput
from flava_model.models.flava import Flava, FlavaConfig
from flava_model.tokens import Tokenizer, load_tokenizer

OURS = "flava_model"  # the section of config.json that is ours
_HEADS = ("mim_head", "mlm_head", "mmm_image_head", "mmm_text_head")


def load(path: str | Path) -> Flava:
    """A model from a folder, a run's checkpoint, or a file of weights alone, whose sizes then say what it is.

    Raises WrongInput where there is none, or a part of it is missing, unknown or of another shape, or a
    tokenizer beside it is not the one that it was trained with.
    """
    path = Path(path)
    if is_checkpoint(path):
        return _of_checkpoint(path)
    found = _read(path)
    weights = _renamed(found)
    ours = _ours(path)
    codebook: Codebook | None = None
    if "random_quantizer" in ours:
        try:
            codebook = RandomQuantizer(**ours["random_quantizer"])
        except (TypeError, RuntimeError) as error:
            raise WrongInput(f"{path / 'config.json'}: random_quantizer: {error}") from None
    trained = ours.get("tokenizer_sha256")
    if trained is not None and (given := tokenizer_beside(path)) and given.sha256 != trained:
        raise WrongInput(
            f"{path}: the model was trained with another tokenizer than the one beside it: expected sha256 "
            f"{trained}, given {given.sha256}"
        )
    first, last = (f"image_codebook.blocks.{name}.weight" for name in ("input", "output.conv"))
    if first in weights and last in weights:
        codebook = DalleEncoder(codes=len(weights[last]), width=len(weights[first]))
    config = _config(path) or _sizes(weights, path)
    if any(name.startswith("model.image_encoder.") for name in found):  # TorchMultimodal's defaults
        config = replace(config, head_layer_norm_eps=1e-5, attend_text_padding=True)
    model = Flava(config, codebook)
    _fill(model, weights, path)
    return model.eval()


def load_codebook(path: str | Path) -> DalleEncoder:
    """An image codebook from a folder or file: facebook/flava-image-codebook, DALL-E's encoder with the names
    of TorchMultimodal, or one within a whole model. Raises WrongInput.
    """
    path = Path(path)
    found = {
        name if name.startswith("image_codebook.") else f"image_codebook.{name}": value
        for name, value in _read(path).items()
    }
    weights = {
        name.removeprefix("image_codebook."): value
        for name, value in _renamed(found).items()
        if name.startswith("image_codebook.blocks.")
    }
    if not {"blocks.input.weight", "blocks.output.conv.weight"} <= weights.keys():
        raise WrongInput(f"{path}: expected the weights of an image codebook, given none")
    codebook = DalleEncoder(
        codes=len(weights["blocks.output.conv.weight"]), width=len(weights["blocks.input.weight"])
    )
    _fill(codebook, weights, path)
    return codebook.eval()


def tokenizer_beside(path: str | Path) -> Tokenizer | None:
    """That of a folder of weights; None where there is none."""
    path = Path(path)
    if is_checkpoint(path):
        saved = read_checkpoint(path)
        expected, run = saved.told["described"]["tokenizer_sha256"], saved.told["config"]
        if expected is None:
            return None
        tokenizer = load_tokenizer(run["tokenizer"], longest=run["longest"])
        if tokenizer.sha256 != expected:
            raise WrongInput(
                f"{run['tokenizer']}: not the tokenizer of {path}: expected sha256 {expected}, "
                f"given {tokenizer.sha256}"
            )
        return tokenizer
    there = path.is_dir() and any((path / name).exists() for name in ("tokenizer.json", "vocab.txt"))
    return load_tokenizer(path) if there else None


def save(model: Flava, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
    """Write a folder that `load` and FlavaForPreTraining.from_pretrained read. The weights appear last.

    tokenizer: the one that the model was trained with. Raises WrongInput where it has more tokens.
    """
    if tokenizer is not None and len(tokenizer) > model.config.vocabulary:
        raise WrongInput(
            f"a tokenizer of {len(tokenizer)} tokens: expected {model.config.vocabulary} at most, the model's"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        tokenizer.save(folder)
    weights = dict(model.state_dict())
    for head in _HEADS:  # the same memory as decoder.bias, which safetensors does not write twice
        del weights[f"{head}.bias"]
    _publish(
        folder / "config.json", json.dumps(_as_theirs(model, tokenizer), indent=2, sort_keys=True).encode()
    )
    aside = folder / ".model.safetensors.part"
    save_file({name: value.contiguous() for name, value in weights.items()}, aside, metadata={"format": "pt"})
    _replace(aside, folder / "model.safetensors")


def _publish(path: Path, data: bytes) -> None:
    aside = path.with_name(f".{path.name}.part")
    aside.write_bytes(data)
    _replace(aside, path)


def _replace(aside: Path, final: Path) -> None:
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(aside, final)


# Reading


def _of_checkpoint(path: Path) -> Flava:
    """With its codebook, where that still is what it was."""
    saved = read_checkpoint(path)
    described = saved.told["described"]
    model = Flava(FlavaConfig(**described["model"]))
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    read_tensors(saved, tensors)
    given = saved.told["config"]["codebook"]
    if described["codebook_sha256"] is not None and (given == "random" or Path(given).exists()):
        codebook = RandomQuantizer(model.config.codes) if given == "random" else load_codebook(given)
        if codebook_sha256(codebook) == described["codebook_sha256"]:
            model.image_codebook = codebook
    return model.eval()


def _read(path: Path) -> dict[str, Tensor]:
    """All tensors of a folder or a file."""
    if path.is_dir():
        for name in ("model.safetensors", "pytorch_model.bin"):
            if (path / name).exists():
                return _read_file(path / name)
            if (path / f"{name}.index.json").exists():
                parts = json.loads((path / f"{name}.index.json").read_bytes())["weight_map"].values()
                if strange := [part for part in parts if Path(part).name != part]:
                    raise WrongInput(f"{path / name}.index.json: {strange[0]!r} is not a file beside it")
                return {key: value for part in {*parts} for key, value in _read_file(path / part).items()}
        raise WrongInput(f"{path}: expected model.safetensors or pytorch_model.bin in it")
    return _read_file(path)


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WrongInput(f"{path}: there is no such file or folder") from None
    # A pickle that is not of weights alone ends in one of several errors.
    except Exception as error:
        raise WrongInput(f"{path}: not a file of weights: {str(error).splitlines()[0]}") from None
    while isinstance(found, Mapping) and isinstance(
        inner := found.get("state_dict", found.get("model")), Mapping
    ):
        found = inner
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise WrongInput(f"{path}: expected tensors by name")
    return dict(found)


# TorchMultimodal's names, in the order in which they are replaced; then those of a bare core.
_RENAMED = (
    (r"^model\.", "flava."),
    (r"^flava\.image_encoder\.", "flava.image_model."),
    (r"^flava\.text_encoder\.", "flava.text_model."),
    (r"^flava\.mm_encoder\.", "flava.multimodal_model."),
    (r"^loss\.contrastive_loss\.logit_scale$", "flava.logit_scale"),
    (r"^loss\.mim_loss\.cls\.", "mim_head."),
    (r"^loss\.mlm_loss\.cls\.", "mlm_head."),
    (r"^loss\.mmm_loss\.mim\.cls\.", "mmm_image_head."),
    (r"^loss\.mmm_loss\.mlm\.cls\.", "mmm_text_head."),
    (r"^loss\.itm_loss\.pooler\.", "itm_head.pooler."),
    (r"^loss\.itm_loss\.cls\.seq_relationship\.", "itm_head.seq_relationship."),
    (r"_head\.dense\.", "_head.transform.dense."),
    (r"_head\.layer_norm\.", "_head.transform.LayerNorm."),
    (r"\.embeddings\.layer_norm\.", ".embeddings.LayerNorm."),
    (r"(\.layer\.\d+)\.attention\.(query|key|value)\.", r"\1.attention.attention.\2."),
    (r"(\.layer\.\d+)\.attention\.output\.(weight|bias)$", r"\1.attention.output.dense.\2"),
    (r"(\.layer\.\d+)\.feedforward\.model\.0\.", r"\1.intermediate.dense."),
    (r"(\.layer\.\d+)\.feedforward\.model\.2\.", r"\1.output.dense."),
    (r"(\.layer\.\d+)\.attention_layernorm\.", r"\1.layernorm_before."),
    (r"(\.layer\.\d+)\.feedforward_layernorm\.", r"\1.layernorm_after."),
    (r"^image_codebook\.encoder\.", "image_codebook."),
    (r"^(image_codebook\.blocks\.group_\d)\.(block_\d)\.", r"\1.group.\2."),
    (r"^(image_codebook\..*\.res_path)\.(conv_\d)\.", r"\1.path.\2."),
    (r"^(image_codebook\..*)\.w$", r"\1.weight"),
    (r"^(image_codebook\..*)\.b$", r"\1.bias"),
    (r"^(?=(image|text|multimodal)_model\.|(image|text)_(to_mm_)?projection\.|logit_scale$)", "flava."),
)


def _renamed(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By the names of facebook/flava-full, with both names of each bias that has two."""
    weights: dict[str, Tensor] = {}
    for name, value in found.items():
        for pattern, to in _RENAMED:
            name = re.sub(pattern, to, name)
        if not name.endswith(".position_ids"):  # of old files: the numbers from 0 on
            weights[name] = value
    for head in _HEADS:
        for one, other in (
            (f"{head}.bias", f"{head}.decoder.bias"),
            (f"{head}.decoder.bias", f"{head}.bias"),
        ):
            if one in weights:
                weights.setdefault(other, weights[one])
    return weights


def _fill(module: torch.nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Raises WrongInput, naming the first few that do not fit."""
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in weights]
    strange = [name for name in weights if name not in wanted]
    if missing or strange:
        told = [
            f"{what} {', '.join(names[:3])}"
            for what, names in (("lacks", missing), ("has", strange))
            if names
        ]
        raise WrongInput(f"{path} {' and '.join(told)} ({len(missing)} missing, {len(strange)} unknown)")
    for name, value in weights.items():
        if value.shape != wanted[name].shape:
            raise WrongInput(f"{path}: {name}: expected {(*wanted[name].shape,)}, given {(*value.shape,)}")
    module.load_state_dict(dict(weights))


# Settings


def _told(path: Path) -> dict[str, Any]:
    """config.json; nothing where there is none. Raises WrongInput."""
    file = path / "config.json"
    if not path.is_dir() or not file.exists():
        return {}
    try:
        told = json.loads(file.read_bytes())
    except ValueError as error:
        raise WrongInput(f"{file}: not the configuration of a FLAVA: {error}") from None
    if not isinstance(told, dict):
        raise WrongInput(f"{file}: not the configuration of a FLAVA: expected an object")
    return told


def _ours(path: Path) -> dict[str, Any]:
    """The section that is ours, if a folder has one."""
    ours = _told(path).get(OURS, {})
    known = {"config", "tokenizer_sha256", "random_quantizer"}
    if strange := [name for name in ours if name not in known]:
        raise WrongInput(
            f"{path / 'config.json'}: {OURS} has the unknown {strange[0]}: written by a later flava?"
        )
    return ours


def _config(path: Path) -> FlavaConfig | None:
    """What config.json says; None where there is none."""
    told, file = _told(path), path / "config.json"
    if not told:
        return None
    try:
        image, text, both = (told.get(f"{part}_config", {}) for part in ("image", "text", "multimodal"))
        known = {
            "image_size": image.get("image_size", 224),
            "patch_size": image.get("patch_size", 16),
            "width": image.get("hidden_size", 768),
            "heads": image.get("num_attention_heads", 12),
            "mlp": image.get("intermediate_size", 3072),
            "image_layers": image.get("num_hidden_layers", 12),
            "text_layers": text.get("num_hidden_layers", 12),
            "multimodal_layers": both.get("num_hidden_layers", 6),
            "vocabulary": text.get("vocab_size", 30_522),
            "positions": text.get("max_position_embeddings", 512),
            "token_types": text.get("type_vocab_size", 2),
            "codes": image.get("vocab_size", 8192),
            "projection": told.get("projection_dim", 768),
            "qkv_bias": image.get("qkv_bias", True),
            "layer_norm_eps": image.get("layer_norm_eps", 1e-12),
            "head_layer_norm_eps": image.get("layer_norm_eps", 1e-12),
            "logit_scale": told.get("logit_scale_init_value", 2.6592),
            "initializer_range": told.get("initializer_range", 0.02),
        }
        for name, part in (("text", text), ("multimodal", both)):
            for size, default in (
                ("hidden_size", 768),
                ("num_attention_heads", 12),
                ("intermediate_size", 3072),
            ):
                if part.get(size, default) != image.get(size, default):
                    raise WrongInput(f"{file}: {name}_config's {size} is another than image_config's")
        known |= _ours(path).get("config", {})
        names = {field.name for field in fields(FlavaConfig)}
        if strange := [name for name in known if name not in names]:
            raise WrongInput(f"{file}: {OURS} has the unknown setting {strange[0]}")
        return FlavaConfig(**known)
    except (ValueError, AttributeError, TypeError) as error:
        if isinstance(error, WrongInput):
            raise
        raise WrongInput(f"{file}: not the configuration of a FLAVA: {error}") from None


def _sizes(weights: Mapping[str, Tensor], path: Path) -> FlavaConfig:
    """The model that weights are of, as far as their shapes say: heads are taken to be of 64."""
    try:
        patch = weights["flava.image_model.embeddings.patch_embeddings.projection.weight"]
        patches = weights["flava.image_model.embeddings.position_embeddings"].shape[1] - 1
        words = weights["flava.text_model.embeddings.word_embeddings.weight"]
        blocks = {
            part: 1
            + max(
                int(found[1])
                for name in weights
                if (found := re.match(rf"flava\.{part}_model\.encoder\.layer\.(\d+)\.", name))
            )
            for part in ("image", "text", "multimodal")
        }
        width = words.shape[1]
        return FlavaConfig(
            image_size=round(patches**0.5) * patch.shape[-1],
            patch_size=patch.shape[-1],
            width=width,
            heads=width // 64,
            mlp=weights["flava.image_model.encoder.layer.0.intermediate.dense.weight"].shape[0],
            image_layers=blocks["image"],
            text_layers=blocks["text"],
            multimodal_layers=blocks["multimodal"],
            vocabulary=words.shape[0],
            positions=weights["flava.text_model.embeddings.position_embeddings.weight"].shape[0],
            token_types=weights["flava.text_model.embeddings.token_type_embeddings.weight"].shape[0],
            codes=weights["mim_head.decoder.weight"].shape[0],
            projection=weights["flava.image_projection.weight"].shape[0],
        )
    except (KeyError, ValueError, IndexError) as error:
        raise WrongInput(f"{path}: not the weights of a FLAVA with its heads: {error} is missing") from None


def _as_theirs(model: Flava, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """config.json as transformers writes it, with our settings beside theirs."""
    config, codebook = model.config, model.image_codebook
    tower = {
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp,
        "layer_norm_eps": config.layer_norm_eps,
        "qkv_bias": config.qkv_bias,
        "initializer_range": config.initializer_range,
    }
    told: dict[str, Any] = {
        "model_type": "flava",
        "architectures": ["FlavaForPreTraining"],
        "hidden_size": config.width,
        "projection_dim": config.projection,
        "layer_norm_eps": config.layer_norm_eps,
        "logit_scale_init_value": config.logit_scale,
        "initializer_range": config.initializer_range,
        "init_codebook": isinstance(codebook, DalleEncoder),
        "image_config": tower
        | {
            "num_hidden_layers": config.image_layers,
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "vocab_size": config.codes,
        },
        "text_config": tower
        | {
            "num_hidden_layers": config.text_layers,
            "vocab_size": config.vocabulary,
            "max_position_embeddings": config.positions,
            "type_vocab_size": config.token_types,
        },
        "multimodal_config": tower | {"num_hidden_layers": config.multimodal_layers},
    }
    told[OURS] = ours = dict[str, Any](config=vars(config))
    if tokenizer is not None:
        ours["tokenizer_sha256"] = tokenizer.sha256
    if isinstance(codebook, RandomQuantizer):
        ours["random_quantizer"] = codebook.settings
    if isinstance(codebook, DalleEncoder):
        shapes = {name: value.shape for name, value in codebook.state_dict().items()}
        told["image_codebook_config"] = {
            "hidden_size": shapes["blocks.input.weight"][0],
            "vocab_size": shapes["blocks.output.conv.weight"][0],
        }
    return told
