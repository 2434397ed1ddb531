"""The laws of flava_model/codebook.py: codes are those of the published encoder, and are never learned."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

from flava_model.codebook import Codebook, DalleEncoder, RandomQuantizer
from flava_model.errors import WrongInput
from tests.bench.images import photo

WIDTH, CODES = 16, 61


def view(seed: int, *, side: int = 112) -> Tensor:
    """What a codebook sees of a photo: 3SS, uint8."""
    with Image.open(io.BytesIO(photo(seed, 160, 120))) as image:
        return torch.from_numpy(np.array(image.resize((side, side)))).permute(2, 0, 1)


def test_codes_are_those_of_transformers() -> None:
    their = FlavaImageCodebook(FlavaImageCodebookConfig(hidden_size=WIDTH, vocab_size=CODES)).eval()
    with torch.no_grad():
        chance = torch.Generator().manual_seed(6)
        for parameter in their.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=chance) / 2)
    our = DalleEncoder(codes=CODES, width=WIDTH)
    our.load_state_dict(their.state_dict())
    pixels = torch.stack([view(seed) for seed in range(3)])
    scaled = 0.8 * pixels.float() / 255 + 0.1
    logits, expected = our.logits(pixels.float() / 255), their.blocks(scaled)
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()
    codes = our.codes(pixels)
    assert codes.shape == (3, 196) and codes.dtype == torch.int64 and len(codes.unique()) > 5
    assert (codes == their.get_codebook_indices(scaled).flatten(1)).float().mean() > 0.999


def test_the_published_encoder_has_these_parameters() -> None:
    with torch.device("meta"):
        our, their = DalleEncoder(), FlavaImageCodebook(FlavaImageCodebookConfig())
    shapes = {name: value.shape for name, value in our.state_dict().items()}
    assert shapes == {name: value.shape for name, value in their.state_dict().items()}
    assert sum(parameter.numel() for parameter in our.parameters()) == 53_786_240


@pytest.mark.parametrize("codebook", [RandomQuantizer(), DalleEncoder(codes=CODES, width=WIDTH)])
def test_codes_are_the_same_within_autocast_and_carry_no_gradient(codebook: Codebook) -> None:
    pixels = torch.stack([view(seed) for seed in range(2)])
    plain = codebook.train().codes(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codebook.codes(pixels), plain)
    assert torch.equal(codebook.codes(pixels.float() / 255), plain)
    assert not plain.requires_grad and not [one for one in codebook.parameters() if one.requires_grad]
    assert not codebook.training or isinstance(codebook, RandomQuantizer)
    plain += 1  # an ordinary tensor, not one of inference mode


def test_random_codes_follow_from_the_seed_and_use_what_there_is() -> None:
    pixels = torch.stack([view(seed) for seed in range(20)])
    codes = RandomQuantizer(seed=1).codes(pixels)
    assert torch.equal(codes, RandomQuantizer(seed=1).codes(pixels))
    assert (codes != RandomQuantizer(seed=2).codes(pixels)).float().mean() > 0.99
    share = codes.flatten().bincount(minlength=8192).float() / codes.numel()
    assert (share > 0).sum() > 1_000 and share.max() < 0.05, "no code is all there is"


def test_a_random_code_says_what_is_there_and_not_how_bright() -> None:
    codebook = RandomQuantizer()
    pixels = view(4).float()[None] / 255 * 0.5 + 0.2
    codes = codebook.codes(pixels)
    assert (codebook.codes(pixels * 0.8 + 0.1) == codes).float().mean() > 0.9
    # And each patch speaks for itself.
    moved = torch.roll(pixels, 8, dims=3)
    assert torch.equal(codebook.codes(moved).view(14, 14)[:, 1:], codes.view(14, 14)[:, :-1])


@pytest.mark.parametrize("shape", [(3, 112, 112), (2, 1, 112, 112), (2, 3, 100, 112)])
def test_pixels_that_make_no_patches_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(WrongInput, match="expected B, 3 and two multiples of 8, given"):
        RandomQuantizer().codes(torch.zeros(shape))
