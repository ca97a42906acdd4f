"""Reductions over all but the batch, against sums of numpy vectors, one sample at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from guidekit.samplers.reductions import cosine, dot, norm, parallel_coefficient, rms, std, wide_dtype
from guidekit.tests.maths.problems import DTYPES, SHAPES, exact, latents, non_contiguous, samples

BINARY = {
    "dot": (dot, lambda a, b: math.fsum(a * b)),
    "cosine": (cosine, lambda a, b: math.fsum(a * b) / math.sqrt(math.fsum(a * a) * math.fsum(b * b))),
    "parallel_coefficient": (parallel_coefficient, lambda a, b: math.fsum(a * b) / math.fsum(b * b)),
}
UNARY = {
    "norm": (norm, lambda a: math.sqrt(math.fsum(a * a))),
    "rms": (rms, lambda a: math.sqrt(math.fsum(a * a) / len(a))),
    "std": (std, lambda a: math.sqrt(math.fsum((a - math.fsum(a) / len(a)) ** 2) / len(a))),
}
# Of the sum of the magnitudes that are added, whatever the precision of the input: float32 and float64 accumulation.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}


def expected(name: str, *tensors: torch.Tensor) -> np.ndarray:
    formula = {**BINARY, **UNARY}[name][1]
    return np.array([formula(*vectors) for vectors in zip(*map(samples, tensors))])


def inputs(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    return [latents(shape, seed, dtype) for seed in range(2 if name in BINARY else 1)]


def scale_of(name: str, tensors: list[torch.Tensor]) -> np.ndarray:
    """The reference for the tolerance: the result if all terms had one sign."""
    return np.abs(expected("rms" if name == "std" else name, *(t.abs() for t in tensors)))


@pytest.mark.parametrize("accumulate", TOLERANCE, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", [*BINARY, *UNARY])
def test_equals_the_sum_over_each_sample(name, shape, dtype, accumulate):
    tensors = inputs(name, shape, dtype)
    result = {**BINARY, **UNARY}[name][0](*tensors, accumulate)
    assert result.shape == (shape[0], *[1] * (len(shape) - 1))
    assert result.dtype == accumulate
    error = np.abs(exact(result).ravel() - expected(name, *tensors))
    assert (error <= TOLERANCE[accumulate] * scale_of(name, tensors)).all()


@pytest.mark.parametrize("name", [*BINARY, *UNARY])
def test_any_rank(name):
    """A sample is a bag of numbers: how they are arranged does not matter, down to one dimension or none."""
    function = {**BINARY, **UNARY}[name][0]
    flat = inputs(name, (3, 24), torch.float64)
    for rest in [(24,), (2, 12), (2, 3, 4), (1, 2, 3, 4), (2, 1, 2, 3, 2)]:
        result = function(*(t.reshape(3, *rest) for t in flat), torch.float64)
        assert result.shape == (3, *[1] * len(rest))
        np.testing.assert_allclose(exact(result).ravel(), expected(name, *flat), rtol=1e-14)
    scalars = inputs(name, (3, 1), torch.float64)
    np.testing.assert_allclose(exact(function(*scalars, torch.float64)).ravel(), expected(name, *scalars), rtol=1e-14)


@pytest.mark.parametrize("name", [*BINARY, *UNARY])
def test_accumulates_in_float32_unless_told(name):
    result = {**BINARY, **UNARY}[name][0](*inputs(name, (2, 8), torch.float64))
    assert result.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_widened_before_it_is_multiplied(dtype):
    """300^2 is beyond float16, and 10^4 equal terms are beyond what bfloat16 can count."""
    a = torch.full((1, 10_000), 300.0, dtype=dtype)
    each = float(a[0, 0])
    assert dot(a, a).item() == pytest.approx(10_000 * each**2, rel=1e-6)
    assert rms(a).item() == pytest.approx(each, rel=1e-6)
    assert cosine(a, -a).item() == pytest.approx(-1, rel=1e-6)


def test_accumulates_in_the_precision_asked_for():
    """10^12 + 3 - 10^12: the 3 is below the resolution of float32."""
    a, b = torch.tensor([[1e6, 1.0, 1e6]]), torch.tensor([[1e6, 3.0, -1e6]])
    assert dot(a, b, torch.float64).item() == 3
    assert dot(a, b).item() == 0


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", [*BINARY, *UNARY])
def test_no_sample_sees_another(name, shape):
    function = {**BINARY, **UNARY}[name][0]
    tensors = inputs(name, shape, torch.float32)
    together = function(*tensors)
    for i in range(shape[0]):
        alone = function(*(t[i : i + 1] for t in tensors))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-6, atol=0)
    spoiled = [t.clone() for t in tensors]
    for t in spoiled:
        t[1] = torch.nan
    torch.testing.assert_close(function(*spoiled)[[0, 2]], together[[0, 2]], rtol=0, atol=0)


@pytest.mark.parametrize("name", [*BINARY, *UNARY])
def test_memory_layout_does_not_matter(name):
    function = {**BINARY, **UNARY}[name][0]
    tensors = inputs(name, SHAPES["video"], torch.float64)
    wanted = function(*tensors, torch.float64)
    for layout in non_contiguous(tensors[0]):
        views = [non_contiguous(t)[layout] for t in tensors]
        torch.testing.assert_close(function(*views, torch.float64), wanted, rtol=1e-14, atol=0, msg=layout)


def test_rms_does_not_grow_with_resolution():
    small = latents((2, 4, 6, 5), 1)
    large = small.repeat(1, 1, 4, 4)
    torch.testing.assert_close(rms(large), rms(small), rtol=1e-6, atol=0)
    torch.testing.assert_close(norm(large), 4 * norm(small), rtol=1e-6, atol=0)


def test_zero_vectors():
    """A direction of length 0 has no parallel part and no angle: 0, not NaN, and only in the samples it concerns."""
    a = latents((3, 4, 5), 1)
    direction = latents((3, 4, 5), 2)
    direction[1] = 0
    zero = torch.zeros_like(a)
    for function in (cosine, parallel_coefficient):
        result = function(a, direction).flatten()
        assert result[1] == 0
        assert (result[[0, 2]] != 0).all()
        assert torch.equal(function(zero, direction).flatten(), torch.zeros(3))
        assert torch.equal(function(zero, zero).flatten(), torch.zeros(3))
    assert torch.equal(norm(zero).flatten(), torch.zeros(3))


def test_wide_dtype():
    assert wide_dtype(torch.device("cpu")) == torch.float64
    assert wide_dtype(torch.device("cuda")) == torch.float64
    assert wide_dtype(torch.device("mps")) == torch.float32


# Multiples of 1/8: exact in float64, zeros and equal vectors are common, nothing underflows.
EIGHTHS = st.integers(-80, 80).map(lambda n: n / 8)
PAIRS = hnp.array_shapes(min_dims=2, max_dims=5, max_side=4).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.float64, shape, elements=EIGHTHS)] * 2)
)


@settings(deadline=None, derandomize=True)
@given(PAIRS)
def test_projection_and_angle(pair):
    """What makes c the projection: nothing of the direction is left in a - c d; and cos^2 is the share it explains."""
    a, direction = map(torch.from_numpy, pair)
    c = parallel_coefficient(a, direction, torch.float64)
    angle = cosine(a, direction, torch.float64).numpy().ravel()
    rest = a - c * direction
    for i, (vector, d, left) in enumerate(zip(samples(a), samples(direction), samples(rest))):
        size = np.linalg.norm(vector) * np.linalg.norm(d)
        assert abs(np.dot(left, d)) <= 1e-13 * size
        assert np.linalg.norm(left) <= np.linalg.norm(vector) * (1 + 1e-14)
        assert -1 - 1e-14 <= angle[i] <= 1 + 1e-14
        if size > 0:
            # Relative to the squares, whose small difference is left when the angle is small.
            square = np.dot(vector, vector)
            assert np.dot(left, left) == pytest.approx(square * (1 - angle[i] ** 2), abs=1e-12 * square)
