"""Adaptive Projected Guidance against Algorithm 1 of the paper, written out in numpy for one flat sample at a time."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from guidekit.samplers.guidance.apg import apg
from guidekit.samplers.guidance.cfg import effective_scale
from guidekit.tests.maths.parameterization import from_eps, from_v, from_velocity, to_eps, to_v, to_velocity
from guidekit.tests.maths.problems import DTYPES, SHAPES, exact, latents, non_contiguous, rounding, samples

SCALES = (0.0, 1.0, 1.5, 7.5, 15.0)
ETAS = (-1.0, 0.0, 0.3, 1.0)
THRESHOLDS = (0.0, 3.0, 20.0, 1e4)  # off; bites in every sample of `latents`, in some, in none
MOMENTA = (0.0, -0.5, 0.75)
PRODUCT = tuple(itertools.product(SCALES, ETAS, THRESHOLDS, MOMENTA))
SPACES = {"eps": (to_eps, from_eps), "v": (to_v, from_v), "velocity": (to_velocity, from_velocity)}


def algorithm_1(cond, uncond, scale, eta, norm_threshold, momentum, running):
    """One sample: flat float64 vectors in, (guided, buffer, size of all that was added up) out."""
    buffer = cond - uncond
    if running is not None:
        buffer = buffer + momentum * running
    update = buffer
    if norm_threshold > 0:
        length = math.sqrt(math.fsum(update * update))
        if length > norm_threshold:
            update = update * (norm_threshold / length)
    parallel = np.zeros_like(cond)
    if cond.any():
        parallel = cond * (math.fsum(update * cond) / math.fsum(cond * cond))
    orthogonal = update - parallel
    guided = cond + (scale - 1) * (orthogonal + eta * parallel)
    size = np.abs(cond) + abs(scale - 1) * (np.abs(update) + 2 * np.abs(parallel))
    return guided, buffer, size


def check(result, cond, uncond, scale, eta, norm_threshold, momentum, running):
    """The guided prediction and the buffer, to the rounding of the output and of the arithmetic in between."""
    denoised, after = result
    wide = torch.promote_types(cond.dtype, torch.float32)
    assert denoised.dtype == cond.dtype
    assert after.dtype == wide
    assert denoised.shape == after.shape == cond.shape
    arithmetic = 16 * rounding(wide)
    previous = samples(running) if running is not None else [None] * len(cond)
    for *vectors, before, got, buffer in zip(*map(samples, (cond, uncond)), previous, *map(samples, result)):
        wanted, wanted_buffer, size = algorithm_1(*vectors, scale, eta, norm_threshold, momentum, before)
        assert (np.abs(got - wanted) <= rounding(cond.dtype) * np.abs(wanted) + arithmetic * size).all()
        summands = sum(np.abs(v) for v in (*vectors, before if before is not None else 0))
        assert (np.abs(buffer - wanted_buffer) <= 4 * rounding(wide) * summands).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_is_algorithm_1(shape, dtype):
    cond, uncond = latents(shape, 1, dtype), latents(shape, 2, dtype)
    before = latents(shape, 3, torch.promote_types(dtype, torch.float32))
    for (scale, eta, threshold, momentum), running in itertools.product(PRODUCT, (None, before)):
        result = apg(cond, uncond, scale, eta=eta, norm_threshold=threshold, momentum=momentum, running=running)
        check(result, cond, uncond, scale, eta, threshold, momentum, running)


# Multiples of 1/8: exact in float64, zero and equal vectors are common, nothing underflows.
EIGHTHS = st.integers(-80, 80).map(lambda n: n / 8)
PROBLEMS = hnp.array_shapes(min_dims=2, max_dims=5, max_side=3).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.float64, shape, elements=EIGHTHS)] * 3)
)


@settings(deadline=None, derandomize=True)
@given(
    PROBLEMS,
    st.booleans(),
    st.floats(0, 30),
    st.floats(-1, 1),
    st.one_of(st.just(0.0), st.floats(0.01, 50)),
    st.floats(-0.95, 0.95),
)
def test_is_algorithm_1_on_anything(problem, first_step, scale, eta, threshold, momentum):
    cond, uncond, running = map(torch.from_numpy, problem)
    running = None if first_step else running
    result = apg(cond, uncond, scale, eta=eta, norm_threshold=threshold, momentum=momentum, running=running)
    check(result, cond, uncond, scale, eta, threshold, momentum, running)


# T1: neutral settings


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("space", SPACES)
def test_neutral_settings_are_cfg_of_the_raw_outputs(space, shape):
    """In the space of the outputs of each model type, with plain CFG written out there."""
    to, back = SPACES[space]
    x, raw_cond, raw_uncond = (latents(shape, seed) for seed in (1, 2, 3))
    sigma = torch.tensor([0.05, 0.5, 0.97], dtype=torch.float64)
    for scale in SCALES:
        denoised, _ = apg(back(x, raw_cond, sigma), back(x, raw_uncond, sigma), scale, eta=1)
        wanted = scale * raw_cond + (1 - scale) * raw_uncond
        torch.testing.assert_close(to(x, denoised, sigma), wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_neutral_settings_are_cfg_in_every_precision(shape, dtype):
    cond, uncond = latents(shape, 1, dtype), latents(shape, 2, dtype)
    for scale in SCALES:
        denoised, _ = apg(cond, uncond, scale, eta=1)
        wanted = scale * exact(cond) + (1 - scale) * exact(uncond)
        size = np.abs(scale * exact(cond)) + np.abs((1 - scale) * exact(uncond)) + np.abs(exact(cond))
        arithmetic = 8 * rounding(torch.promote_types(dtype, torch.float32))
        error = np.abs(exact(denoised) - wanted)
        assert (error <= rounding(dtype) * np.abs(wanted) + arithmetic * size).all(), scale


# T2: scale 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_scale_1_is_cond_to_the_bit(shape, dtype):
    cond, uncond, running = (latents(shape, seed, dtype) for seed in (1, 2, 3))
    for _, eta, threshold, momentum in PRODUCT:
        options = {"eta": eta, "norm_threshold": threshold, "momentum": momentum, "running": running.float()}
        assert torch.equal(apg(cond, uncond, 1, **options)[0], cond), options


# T3: the projection


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_eta_0_adds_at_a_right_angle(shape, dtype):
    """<D - D_c, D_c> = 0 and Pythagoras, whatever was limited or remembered before the projection."""
    cond, uncond, running = (latents(shape, seed, dtype) for seed in (1, 2, 3))
    precision = 1e-5 if dtype == torch.float32 else 1e-12
    for scale, _, threshold, momentum in PRODUCT:
        options = {"norm_threshold": threshold, "momentum": momentum, "running": running}
        denoised, _ = apg(cond, uncond, scale, eta=0, **options)
        for i, (d, c, u, m) in enumerate(zip(*map(samples, (denoised, cond, uncond, running)))):
            added = d - c
            assert abs(added @ c) <= precision * np.linalg.norm(added) * np.linalg.norm(c), (i, scale, options)
            # The length of the orthogonal part from the sine of the angle, with no projection.
            buffer = c - u + momentum * m
            length = min(np.linalg.norm(buffer), threshold or math.inf)
            cosine = buffer @ c / (np.linalg.norm(buffer) * np.linalg.norm(c))
            wanted = c @ c + (scale - 1) ** 2 * length**2 * (1 - cosine**2)
            assert d @ d == pytest.approx(wanted, rel=precision), (i, scale, options)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_parallel_part_is_a_gain(shape):
    """What eta changes is the length of D_c only: D(eta) - D(0) is a multiple of D_c, linear in eta."""
    cond, uncond = latents(shape, 1), latents(shape, 2)
    none, half, full = (exact(apg(cond, uncond, 8, eta=eta)[0]) for eta in (0, 0.5, 1))
    for i in range(shape[0]):
        gain = (full[i] - none[i]) / exact(cond)[i]
        np.testing.assert_allclose(gain, gain.flat[0], rtol=1e-9)
        assert abs(gain.flat[0]) > 1e-3
        np.testing.assert_allclose(half[i] - none[i], (full[i] - none[i]) / 2, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_projects_in_float64(dtype):
    """<D_c, D_c> and <D, D_c> are beyond the range of the input's precision, the result is not."""
    shape = SHAPES["image"]
    cond, uncond = latents(shape, 1, dtype), latents(shape, 2, dtype)
    factor = 2.0**8 if dtype == torch.float16 else 2.0**80
    for eta in (0, 0.3):
        plain, large = (apg(k * cond, k * uncond, 4, eta=eta)[0] for k in (1, factor))
        # A power of two changes no rounding, so nothing may differ at all.
        assert torch.equal(large, factor * plain)


# T4: the limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_threshold_limits_what_is_added(shape, dtype):
    cond, uncond, running = (latents(shape, seed, dtype) for seed in (1, 2, 3))
    for scale, eta, momentum, threshold in itertools.product(SCALES, ETAS, MOMENTA, (1e-30, 1e-3, 3.0, 20.0, 1e4)):
        options = {"eta": eta, "norm_threshold": threshold, "momentum": momentum, "running": running}
        denoised, _ = apg(cond, uncond, scale, **options)
        for d, c in zip(*map(samples, (denoised, cond))):
            storing = 2 * rounding(dtype) * (np.linalg.norm(c) + np.linalg.norm(d))
            limit = abs(scale - 1) * threshold * (1 + 16 * rounding(dtype))
            assert np.linalg.norm(d - c) <= limit + storing, (scale, options)


def test_the_threshold_is_reached_and_not_more():
    """It shortens each sample that is too long to exactly the threshold and leaves the others as they are."""
    cond, uncond = latents(SHAPES["image"], 1), latents(SHAPES["image"], 2)
    lengths = [np.linalg.norm(c - u) for c, u in zip(*map(samples, (cond, uncond)))]
    threshold = sorted(lengths)[1] * 1.01
    limited, _ = apg(cond, uncond, 3, eta=1, norm_threshold=threshold)
    free, _ = apg(cond, uncond, 3, eta=1)
    added = [np.linalg.norm(d - c) / 2 for d, c in zip(*map(samples, (limited, cond)))]
    np.testing.assert_allclose(added, np.minimum(lengths, threshold), rtol=1e-12)
    assert [torch.equal(a, b) for a, b in zip(limited, free)] == [length < threshold for length in lengths]


# T5: momentum


@pytest.mark.parametrize("momentum", [-0.95, -0.5, 0.0, 0.75])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_buffer_is_a_weighted_sum(shape, momentum):
    """After k steps sum_j beta^(k - j) Delta_j: neither shortened nor projected, whatever the other settings."""
    steps = [(latents(shape, 2 * k), latents(shape, 2 * k + 1)) for k in range(5)]
    for scale, eta, threshold in [(1, 1, 0), (8, 0, 0), (8, 0.3, 3.0)]:
        running = None
        for k, (cond, uncond) in enumerate(steps):
            options = {"eta": eta, "norm_threshold": threshold, "momentum": momentum}
            _, running = apg(cond, uncond, scale, **options, running=running)
            wanted = sum(momentum ** (k - j) * (exact(c) - exact(u)) for j, (c, u) in enumerate(steps[: k + 1]))
            np.testing.assert_allclose(exact(running), wanted, rtol=0, atol=1e-12)


def test_constant_guidance_settles():
    """At Delta / (1 - beta), so that a negative momentum lowers the effective scale, from the second step on."""
    cond, uncond = latents(SHAPES["image"], 1), latents(SHAPES["image"], 2)
    for momentum in (-0.75, -0.5, 0.5):
        running, found = None, []
        for _ in range(100):
            denoised, running = apg(cond, uncond, 5, eta=1, momentum=momentum, running=running)
            found.append(effective_scale(denoised, cond, uncond)[0].item())
        gain = [1, 1 + momentum, 1 + momentum + momentum**2]
        np.testing.assert_allclose(found[:3], [1 + 4 * g for g in gain], rtol=1e-6)
        assert found[-1] == pytest.approx(1 + 4 / (1 - momentum), rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_first_step_is_a_step_after_zero(dtype):
    cond, uncond = latents(SHAPES["image"], 1, dtype), latents(SHAPES["image"], 2, dtype)
    zero = torch.zeros_like(cond, dtype=torch.promote_types(dtype, torch.float32))
    for scale, eta, threshold, momentum in PRODUCT:
        options = {"eta": eta, "norm_threshold": threshold, "momentum": momentum}
        first, second = (apg(cond, uncond, scale, **options, running=running) for running in (None, zero))
        assert all(map(torch.equal, first, second)), (scale, options)


def test_nothing_is_written_into():
    """The predictions belong to the host, the buffer to the caller, who may need the one before (heun)."""
    cond, uncond, running = (latents(SHAPES["video"], seed, torch.float32) for seed in (1, 2, 3))
    kept = [t.clone() for t in (cond, uncond, running)]
    for scale, eta, threshold, momentum in PRODUCT:
        options = {"eta": eta, "norm_threshold": threshold, "momentum": momentum, "running": running}
        denoised, after = apg(cond, uncond, scale, **options)
        denoised.fill_(torch.nan)
        after.fill_(torch.nan)
        assert all(map(torch.equal, (cond, uncond, running), kept)), (scale, options)


# T6: invariances


def test_effective_scale():
    """omega_e = 1 + (w - 1)(1 - cos^2(Delta, D_c)) for eta 0 without limit and memory: below the nominal scale."""
    for shape, scale in itertools.product(SHAPES.values(), SCALES):
        cond, uncond = latents(shape, 1), latents(shape, 2)
        found = effective_scale(apg(cond, uncond, scale, eta=0)[0], cond, uncond)
        for i, (c, u) in enumerate(zip(*map(samples, (cond, uncond)))):
            cosine = (c - u) @ c / (np.linalg.norm(c - u) * np.linalg.norm(c))
            assert 0.01 < cosine**2 < 0.99
            assert found[i].item() == pytest.approx(1 + (scale - 1) * (1 - cosine**2), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_no_sample_sees_another(shape, dtype):
    """A batch equals its samples one by one; NaN in one does not spread."""
    cond, uncond, running = (latents(shape, seed, dtype) for seed in (1, 2, 3))
    running = running.to(torch.promote_types(dtype, torch.float32))
    spoiled = cond.clone()
    spoiled[1] = torch.nan
    for scale, eta, threshold, momentum in PRODUCT:
        options = {"eta": eta, "norm_threshold": threshold, "momentum": momentum}
        together = apg(cond, uncond, scale, **options, running=running)
        broken = apg(spoiled, uncond, scale, **options, running=running)
        for i in range(shape[0]):
            alone = apg(cond[i : i + 1], uncond[i : i + 1], scale, **options, running=running[i : i + 1])
            for batch, single, other in zip(together, alone, broken):
                error = (batch[i] - single[0]).abs().max()
                assert error <= 2 * torch.finfo(dtype).eps * batch[i].abs().max(), (i, scale, options)
                assert i == 1 or torch.equal(batch[i], other[i]), (i, scale, options)


def test_scale_equivariance():
    """D(k D_c, k D_u; k r) = k D(D_c, D_u; r), to the bit where k is a power of two."""
    cond, uncond, running = (latents(SHAPES["video"], seed, torch.float32) for seed in (1, 2, 3))
    for (scale, eta, threshold, momentum), k in itertools.product(PRODUCT, (2.0**-20, 0.5, 2.0**12)):
        options = {"eta": eta, "momentum": momentum}
        plain = apg(cond, uncond, scale, **options, norm_threshold=threshold, running=running)
        scaled = apg(k * cond, k * uncond, scale, **options, norm_threshold=k * threshold, running=k * running)
        for a, b in zip(scaled, plain):
            assert torch.equal(a, k * b), (k, scale, threshold, options)


def test_rotation_equivariance():
    """Lengths and angles are all that counts: turning all vectors turns the result."""
    cond, uncond, running = (latents((3, 24), seed) for seed in (1, 2, 3))
    turn = torch.from_numpy(np.linalg.qr(exact(latents((24, 24), 4)))[0])
    for scale, eta, threshold, momentum in PRODUCT:
        options = {"eta": eta, "norm_threshold": threshold, "momentum": momentum}
        plain = apg(cond, uncond, scale, **options, running=running)
        turned = apg(cond @ turn, uncond @ turn, scale, **options, running=running @ turn)
        for a, b in zip(turned, plain):
            torch.testing.assert_close(a, b @ turn, rtol=0, atol=1e-13 * b.abs().max().item())


def test_rank_does_not_matter():
    cond, uncond, running = (latents((3, 24), seed) for seed in (1, 2, 3))
    for scale, eta, threshold, momentum in PRODUCT:
        options = {"eta": eta, "norm_threshold": threshold, "momentum": momentum}
        flat = apg(cond, uncond, scale, **options, running=running)
        for rest in [(4, 6), (2, 3, 4), (1, 2, 3, 4), (2, 1, 2, 3, 2)]:
            c, u, m = (t.reshape(3, *rest) for t in (cond, uncond, running))
            shaped = apg(c, u, scale, **options, running=m)
            for a, b in zip(shaped, flat):
                torch.testing.assert_close(a.reshape(3, 24), b, rtol=0, atol=1e-13 * b.abs().max().item())


@pytest.mark.parametrize("layout", ["every other", "last dimension first", "batch last"])
def test_memory_layout_does_not_matter(layout):
    plain = [latents(SHAPES["video"], seed, torch.float32) for seed in (1, 2, 3)]
    cond, uncond, running = (non_contiguous(t)[layout] for t in plain)
    for scale, eta, threshold, momentum in PRODUCT:
        options = {"eta": eta, "norm_threshold": threshold, "momentum": momentum}
        wanted = apg(*plain[:2], scale, **options, running=plain[2])
        for a, b in zip(apg(cond, uncond, scale, **options, running=running), wanted):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_one_uncond_for_the_whole_batch():
    """An expanded tensor, all of whose samples are one piece of memory."""
    cond, uncond = latents(SHAPES["image"], 1), latents(SHAPES["image"], 2)[:1].expand(3, -1, -1, -1)
    for a, b in zip(apg(cond, uncond, 7, eta=0.3), apg(cond, uncond.clone(), 7, eta=0.3)):
        assert torch.equal(a, b)


# Degenerate predictions


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_predictions_need_no_guidance(dtype):
    cond = latents(SHAPES["image"], 1, dtype)
    for scale, eta, threshold, momentum in PRODUCT:
        denoised, running = apg(cond, cond.clone(), scale, eta=eta, norm_threshold=threshold, momentum=momentum)
        assert torch.equal(denoised, cond)
        assert not running.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_cond_of_zero_has_no_parallel_part(dtype):
    """In the samples with cond 0 the whole update is orthogonal, whatever eta."""
    cond, uncond = latents(SHAPES["image"], 1, dtype), latents(SHAPES["image"], 2, dtype)
    cond[1] = 0
    for scale, eta in itertools.product(SCALES, ETAS):
        denoised, _ = apg(cond, uncond, scale, eta=eta)
        wanted = (1 - scale) * exact(uncond)[1]
        assert (np.abs(exact(denoised)[1] - wanted) <= 2 * rounding(dtype) * np.abs(wanted)).all()
        assert torch.isfinite(denoised).all()


def test_an_uncond_of_zero():
    """All of the update is parallel: eta 0 leaves cond, eta 1 multiplies it by the scale."""
    cond = latents(SHAPES["image"], 1)
    for scale in SCALES:
        none, full = (apg(cond, torch.zeros_like(cond), scale, eta=eta)[0] for eta in (0, 1))
        torch.testing.assert_close(none, cond, rtol=0, atol=1e-13)
        torch.testing.assert_close(full, scale * cond, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_widened_before_the_difference(dtype):
    """float16 ends at 65504 and resolves 1/16 at 100: the difference of the predictions is beyond both."""
    cond = torch.tensor([[40000.0, 100.0, 0.0]]).to(dtype)
    uncond = torch.tensor([[-40000.0, 99.0, 0.0625]]).to(dtype)
    denoised, running = apg(cond, uncond, 1.25, eta=1)
    assert torch.equal(running, cond.float() - uncond.float())
    wanted = exact(cond) + 0.25 * (exact(cond) - exact(uncond))
    assert (np.abs(exact(denoised) - wanted) <= 2 * rounding(dtype) * np.abs(wanted)).all()


# The package


def test_the_mathematics_needs_no_comfyui():
    """Nor any module that is slow to import: importing `guidekit.samplers` imports torch and nothing more."""
    program = (
        "import importlib, pkgutil, sys, guidekit.samplers as samplers, guidekit.samplers.guidance.apg\n"
        "for module in pkgutil.walk_packages(samplers.__path__, 'guidekit.samplers.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(*sorted(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "guidekit.samplers.guidance.apg" in loaded
    roots = {name.partition(".")[0] for name in loaded}
    assert not roots & {"comfy", "comfy_api", "comfy_extras", "nodes", "folder_paths", "execution", "torchvision"}


def test_equal_predictions_below_any_threshold():
    """0 / 0 is not a limit: nothing to add is cond, however small the threshold."""
    cond = latents((2, 4, 8), 1, torch.float32)
    assert torch.equal(apg(cond, cond.clone(), 3.0, norm_threshold=1e-46)[0], cond)
