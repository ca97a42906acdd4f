"""Identity attention against the dense masked map in float64."""

import pytest
import torch

from guidekit.samplers.attention.pag import identity_attention
from guidekit.tests.maths.problems import DTYPES, rounding

TOKENS, DIM = 40, 8
PLACES = {
    "image only": slice(0, 40),
    "text first": slice(7, 40),
    "reference last": slice(0, 31),
    "both": slice(7, 31),
    "much text": slice(36, 40),
    "no image": slice(3, 3),
}


def tokens(seed: int, dtype=torch.float64, count: int = TOKENS) -> torch.Tensor:
    return torch.randn((3, 2, count, DIM), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def dense(q, k, v, image, scale, bias=None):
    """The whole map with all but the diagonal of its image part forbidden."""
    q, k, v = q.double(), k.double(), v.double()
    logits = scale * q @ k.transpose(-1, -2)
    if bias is not None:
        logits = logits + bias
    forbidden = torch.zeros(q.shape[2], q.shape[2], dtype=torch.bool)
    forbidden[image, image] = True
    forbidden.fill_diagonal_(False)
    return (logits.masked_fill(forbidden, -torch.inf).softmax(-1) @ v)[:, :, image]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("image", PLACES.values(), ids=PLACES)
def test_is_the_dense_map(image, dtype):
    q, k, v = (tokens(seed, dtype) for seed in (1, 2, 3))
    found = identity_attention(q, k, v, image, 0.4)
    assert found.shape == (3, 2, image.stop - image.start, DIM)
    assert found.dtype == dtype
    tolerance = max(1e-6, 30 * rounding(dtype))
    torch.testing.assert_close(found.double(), dense(q, k, v, image, 0.4), rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["bool", "added"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (3, 2, TOKENS), (1, 1, TOKENS)], ids=str)
@pytest.mark.parametrize("image", [PLACES["text first"], PLACES["both"], PLACES["much text"]], ids=str)
def test_a_mask_is_kept(image, shape, kind):
    q, k, v = (tokens(seed) for seed in (1, 2, 3))
    generator = torch.Generator().manual_seed(4)
    if kind == "bool":
        mask = torch.rand((*shape, TOKENS), generator=generator) > 0.4
        mask[..., image] = True  # no token without anything to attend to
        bias = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -torch.inf)
    else:
        mask = bias = torch.randn((*shape, TOKENS), generator=generator, dtype=torch.float64)
    found = identity_attention(q, k, v, image, 0.4, mask)
    torch.testing.assert_close(found, dense(q, k, v, image, 0.4, bias), rtol=0, atol=1e-6)


def test_without_text_it_is_v():
    q, k, v = (tokens(seed) for seed in (1, 2, 3))
    assert torch.equal(identity_attention(q, k, v, slice(0, TOKENS), 0.4), v)


def test_image_tokens_do_not_see_each_other():
    q, k, v = (tokens(seed) for seed in (1, 2, 3))
    image, before = slice(7, 40), None
    before = identity_attention(q, k, v, image, 0.4)
    k[:, :, 20] += 5
    v[:, :, 20] += 5
    changed = (identity_attention(q, k, v, image, 0.4) != before).any(-1).any(0).any(0)
    assert changed.nonzero().flatten().tolist() == [20 - 7]


def test_memory_grows_with_the_tokens_not_with_their_square():
    """The largest tensor made is no larger than the queries."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                Largest.size = max(Largest.size, out.numel())
            return out

    q, k, v = (tokens(seed, torch.float32, 3000) for seed in (1, 2, 3))
    with Largest():
        identity_attention(q, k, v, slice(500, 3000), 0.4)
    assert Largest.size <= q.numel()
