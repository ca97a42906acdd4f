"""NASA and NAG against the formulas token by token, and their properties."""

import pytest
import torch

from guidekit.samplers.attention.nasa import nag, nag_in_torch, nasa

SHAPES = [(2, 5, 8), (1, 2, 3, 4, 6)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where the kernel runs; on a CPU in Triton's interpreter


def two(shape=(2, 5, 8), dtype=torch.float64):
    generator = torch.Generator().manual_seed(4)
    positive, negative = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return positive.to(dtype), negative.to(dtype)


def naive_nag(positive, negative, phi, tau, alpha):
    out = torch.empty_like(positive)
    for i, (z, far) in enumerate(zip(positive.flatten(0, -2), negative.flatten(0, -2))):
        pushed = [a + phi * (a - b) for a, b in zip(z.tolist(), far.tolist())]
        ratio = sum(map(abs, pushed)) / sum(map(abs, z.tolist()))
        pushed = [p * min(ratio, tau) / ratio for p in pushed]
        out.view(-1, z.shape[-1])[i] = torch.tensor([alpha * p + (1 - alpha) * a for p, a in zip(pushed, z.tolist())])
    return out


@pytest.mark.parametrize("shape", SHAPES)
def test_nasa_is_the_paper_s_difference(shape):
    positive, negative = two(shape)
    for alpha in (0.1, 0.5, -0.3, 1.5):
        assert torch.allclose(nasa(positive, negative, alpha), positive - alpha * negative, rtol=1e-13)
    assert torch.equal(nasa(positive, negative, 0.0), positive)
    # The same text on both sides leaves 1 - alpha of it.
    assert torch.allclose(nasa(positive, positive, 0.3), 0.7 * positive, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tau", [1.0, 1.2, 2.5, 100.0])
@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_nag_is_the_formula_token_by_token(shape, tau, alpha):
    positive, negative = two(shape)
    for scale in (2.0, 5.0):
        wanted = naive_nag(positive, negative, scale - 1, tau, alpha)
        assert torch.allclose(nag(positive, negative, scale, tau, alpha), wanted, atol=1e-5)


def test_nag_without_guidance_is_the_positive():
    positive, negative = two(dtype=torch.float32)
    assert torch.equal(nag(positive, negative, 1.0, 2.5, 0.25), positive)
    assert torch.equal(nag(positive, negative, 5.0, 2.5, 0.0), positive)
    assert torch.equal(nag(positive, positive, 5.0, 2.5, 0.25), positive)


@pytest.mark.parametrize("scale", [2.0, 5.0, 50.0])
def test_nag_bounds_the_length_of_a_token(scale):
    positive, negative = two()
    tau, alpha = 1.5, 0.5

    def length(z):
        return z.abs().sum(-1)

    out = nag(positive, 10 * negative, scale, tau, alpha)
    assert (length(out) <= (alpha * tau + 1 - alpha) * length(positive) * (1 + 1e-5)).all()


def test_nag_at_its_limits_is_plain_extrapolation():
    positive, negative = two(dtype=torch.float32)
    wide = 1e6
    assert torch.allclose(nag(positive, negative, 3.0, wide, 1.0), positive + 2 * (positive - negative), atol=1e-5)
    assert torch.allclose(nag(positive, negative, 0.0, wide, 1.0), negative, atol=1e-6)


def test_nag_scales_with_its_inputs():
    positive, negative = two(dtype=torch.float32)
    once = nag(positive, negative, 5.0, 1.5, 0.25)
    assert torch.allclose(nag(8 * positive, 8 * negative, 5.0, 1.5, 0.25), 8 * once, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nag_adds_up_lengths_in_float32(dtype):
    """In float16 the length of a wide token is beyond its range."""
    positive, negative = (60 * z for z in two((1, 2, 4096), torch.float32))
    out = nag(positive.to(dtype), negative.to(dtype), 5.0, 1.2, 0.25)
    assert out.dtype == dtype
    assert torch.allclose(out.float(), nag(positive, negative, 5.0, 1.2, 0.25), rtol=0.02, atol=1.0)


def test_nag_of_a_zero_token_is_finite():
    """A token without any positive output has no length to go by."""
    zero, some = torch.zeros(1, 2, 4), torch.ones(1, 2, 4)
    for pair in ((zero, zero), (zero, some), (some, 1.25 * some)):
        assert torch.isfinite(nag(*pair, 5.0, 2.5, 0.25)).all()
    assert torch.equal(nag(zero, some, 5.0, 2.5, 0.25), zero)
    # Z~ = 0 where the negative is Z+ scale / (scale - 1).
    assert torch.equal(nag(some, 1.25 * some, 5.0, 2.5, 0.25), 0.75 * some)


def test_tokens_are_independent():
    positive, negative = two(dtype=torch.float32)
    for f in (lambda a, b: nasa(a, b, 0.3), lambda a, b: nag(a, b, 5.0, 1.2, 0.5)):
        whole = f(positive, negative)
        assert torch.equal(torch.stack([f(a, b) for a, b in zip(positive, negative)]), whole)
        assert torch.equal(f(positive[:, :2], negative[:, :2]), whole[:, :2])


@pytest.fixture
def nag_fused():
    pytest.importorskip("triton")
    from guidekit.samplers.kernels.nag_triton import nag_fused

    return nag_fused


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 8), (1, 3, 100), (3, 1, 1)], ids=str)
def test_the_kernel_of_nag_is_the_definition(nag_fused, shape, dtype):
    positive, negative = (z.to(DEVICE) for z in two(shape, dtype))
    positive[0, 0] = 0  # a token without a length
    tolerance = 1e-6 if dtype == torch.float32 else 2e-3
    for scale, tau, alpha in ((5.0, 2.5, 0.25), (5.0, 1.0, 1.0), (2.0, 100.0, 0.5), (0.5, 1.5, 0.5)):
        wanted = nag_in_torch(positive, negative, scale, tau, alpha)
        found = nag_fused(positive, negative, scale, tau, alpha)
        assert found.dtype == dtype
        assert torch.allclose(found, wanted, rtol=tolerance, atol=tolerance)
    assert torch.equal(nag_fused(positive, negative, 1.0, 2.5, 0.25), positive)


def test_the_kernel_of_nag_takes_rows_that_lie_apart(nag_fused):
    whole, other = (z.to(DEVICE) for z in two((2, 9, 24), torch.float32))
    part, negative = whole[:, 2:7], other[:, 2:7].transpose(1, 2).contiguous().transpose(1, 2)
    wanted = nag_in_torch(part, negative, 5.0, 2.5, 0.25)
    assert torch.allclose(nag_fused(part, negative, 5.0, 2.5, 0.25), wanted, atol=1e-6)


def test_more_channels_than_the_kernel_keeps_are_for_torch(nag_fused):
    from guidekit.samplers.kernels.choice import KernelError

    wide = torch.ones(1, 1, (1 << 14) + 1, device=DEVICE)
    with pytest.raises(KernelError, match="16385 channels"):
        nag_fused(wide, wide, 5.0, 2.5, 0.25)
