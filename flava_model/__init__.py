"""FLAVA: the model, its trainer and its evaluation, over the shards that `pmd` writes.

model = flava_model.load("flava-full")
model.encode_image(pixels), model.encode_text(tokens), model.encode_multimodal(pixels, tokens)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flava_model.models.flava import Flava

__all__ = ["load"]


def load(path: str | Path) -> Flava:
    """A model from a folder that `flava` or transformers wrote, or a file of weights; see weights.py."""
    # torch takes seconds to import, and `flava --help` should not.
    from flava_model import weights

    return weights.load(path)
