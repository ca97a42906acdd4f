"""Token matching: the definition against numpy, the stripes and the fused kernel against the definition.

On a machine without CUDA the kernel runs in Triton's interpreter (conftest.py).
"""

import subprocess

import numpy as np
import pytest
import torch

from guidekit.tests.maths.memory import PeakMemory
from samplers.kernels import choice, matching
from samplers.kernels.matching import best_match, match_chunked, match_dense, push_away, push_chunked, push_dense

triton = pytest.importorskip("triton")
from samplers.kernels import matching_triton  # noqa: E402
from samplers.kernels.matching_triton import match_fused, push_fused  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float16, torch.float32] + [torch.bfloat16] * torch.cuda.is_available()  # not in the interpreter
# (samples, tokens, reference tokens, channels): not multiples of any tile, one smaller than a tile, one token.
SHAPES = {
    "uneven": (2, 70, 90, 40),
    "several tiles": (1, 150, 200, 70),
    "several groups of tiles": (1, 580, 130, 32),
    "tiny": (3, 5, 4, 3),
    "one": (1, 1, 1, 1),
}
VERSIONS = {"chunked": push_chunked, "fused": push_fused}

every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
every_version = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)


def tokens(count, channels, seed, samples=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((samples, count, channels), generator=generator).to(DEVICE, dtype)


def by_hand(h, r, alpha, threshold, mask=None):
    """One sample, one token at a time, in float64."""
    h, r = (t.double().cpu().numpy() for t in (h, r))
    allowed = np.arange(len(r)) if mask is None else np.flatnonzero(mask.cpu().numpy())
    out, scores, places = h.copy(), [], []
    for i, token in enumerate(h):
        lengths = np.linalg.norm(r[allowed], axis=1) * np.linalg.norm(token)
        cosine = (r[allowed] @ token) / np.maximum(lengths, 1e-12)
        j = allowed[cosine.argmax()]
        scores.append(cosine.max())
        places.append(j)
        if cosine.max() > threshold:
            out[i] = (1 + alpha) * token - alpha * r[j]
    return out, np.array(scores), np.array(places)


@pytest.fixture(autouse=True)
def _small_stripes(monkeypatch):
    monkeypatch.setattr(matching, "STRIPE", 500)


@every_shape
@pytest.mark.parametrize("masked", [False, True])
def test_the_definition(shape, masked):
    samples, n, m, c = shape
    h, r = tokens(n, c, 1, samples), tokens(m, c, 2, samples)
    mask = (torch.arange(m, device=DEVICE) % 3 != 1) if masked else None
    pushed = push_dense(h, r, 0.9, 0.3, mask)
    for i in range(samples):
        out, score, index = by_hand(h[i], r[i], 0.9, 0.3, mask)
        assert np.allclose(pushed.tokens[i].cpu(), out, rtol=1e-5, atol=1e-5)
        assert np.allclose(pushed.score[i].cpu(), score, atol=1e-6)
        assert (pushed.best[i].cpu().numpy() == index).all()


@every_shape
@every_version
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_versions_agree(version, shape, masked, shared, dtype):
    """The index to the bit; scores and tokens to rounding. In 16 bits products are exact in float32, sums are not."""
    samples, n, m, c = shape
    h, r = tokens(n, c, 1, samples, dtype), tokens(m, c, 2, 1 if shared else samples, dtype)
    mask = (torch.arange(m, device=DEVICE) % 3 != 1) if masked else None
    wanted, found = push_dense(h, r, 0.9, 0.2, mask), version(h, r, 0.9, 0.2, mask)
    assert found.tokens.dtype == dtype
    assert torch.equal(found.best, wanted.best)
    assert torch.allclose(found.score, wanted.score, atol=1e-6)
    # Both step away in float32 and round once: sums in another order may fall on either side of the middle between two
    # numbers of the type, which are `eps` apart, or less, beside their own size.
    tolerance = 1e-5 if dtype == torch.float32 else 1.01 * torch.finfo(dtype).eps
    assert torch.allclose(found.tokens.float(), wanted.tokens.float(), rtol=tolerance, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("shape", [(2, 70, 90, 40), (3, 200, 300, 136), (1, 129, 1, 8)], ids=str)
def test_tiles_that_the_hardware_copies(shape, masked, shared, monkeypatch):
    """A tile may reach into the next sample, or beyond the last."""
    monkeypatch.setattr(matching_triton, "_copies_tiles", lambda tokens: True)
    samples, n, m, c = shape
    h, r = (tokens(count, c, seed, of, torch.float16) for count, seed, of in ((n, 1, samples), (m, 2, samples)))
    r = r[:1] if shared else r
    mask = (torch.arange(m, device=DEVICE) % 3 != 1) if masked else None
    wanted, found = push_dense(h, r, 0.9, 0.2, mask), push_fused(h, r, 0.9, 0.2, mask)
    assert torch.equal(found.best, wanted.best)
    assert torch.allclose(found.score, wanted.score, atol=1e-6)
    assert torch.allclose(found.tokens.float(), wanted.tokens.float(), rtol=2e-3, atol=2e-3)


def test_the_hardware_copies_tiles_of_samples_that_lie_apart(monkeypatch):
    """As image tokens do behind those of the text."""
    monkeypatch.setattr(matching_triton, "_copies_tiles", lambda tokens: True)
    h, r = (tokens(200, 24, seed, 3, torch.float16)[:, 7:147] for seed in (1, 2))
    wanted, found = push_dense(h, r, 0.9, 0.2), push_fused(h, r, 0.9, 0.2)
    assert torch.equal(found.best, wanted.best)
    assert torch.allclose(found.score, wanted.score, atol=1e-6)


def test_what_the_hardware_cannot_copy_is_read_by_itself():
    whole = tokens(60, 24, 1, 3, torch.float16)
    assert matching_triton._is_matrix(whole[:, 7:47])
    assert matching_triton._is_matrix(whole[:1].transpose(0, 1).contiguous().transpose(0, 1))
    assert not matching_triton._is_matrix(whole.transpose(0, 1).contiguous().transpose(0, 1))  # samples side by side
    assert not matching_triton._is_matrix(whole[..., :20].contiguous())  # rows of 40 bytes
    assert not matching_triton._is_matrix(whole[:, :, 4:])  # begins within 16 bytes
    other = torch.as_strided(whole, (2, 5, 16), (100, 24, 1))
    assert not matching_triton._is_matrix(other)  # samples are not whole rows apart


@every_version
def test_a_best_score_may_be_negative(version):
    h = tokens(20, 8, 1)
    lengths = 1 + torch.arange(20, device=DEVICE)
    r = -h[:, :1] * torch.tensor([1.0, 3.0], device=DEVICE)[None, :, None]
    found = version(h[:, :1] * lengths[None, :, None], r, 0.9, -2.0)
    assert torch.allclose(found.score, torch.full_like(found.score, -1.0), atol=1e-6)
    # Nothing in common, with either sign of zero: the first products are too small to be told from it.
    h = torch.tensor([[[-1e-25, 0.0]]], device=DEVICE)
    r = torch.tensor([[[1.0, 1e25], [0.0, 1.0]]], device=DEVICE).repeat_interleave(200, 1)
    found = version(h, r, 0.9, -1.0)
    assert (found.score == 0).all()
    assert (found.best == 0).all()


@every_version
def test_each_sample_may_have_a_mask_of_its_own(version):
    h, r = tokens(70, 40, 1, 3), tokens(90, 40, 2)
    masks = torch.stack([torch.arange(90, device=DEVICE) % 3 != i for i in range(3)], 1).T  # not in order in memory
    found = version(h, r, 0.9, 0.1, masks)
    for i in range(3):
        one = push_dense(h[i : i + 1], r, 0.9, 0.1, masks[i])
        assert torch.equal(found.best[i : i + 1], one.best)
        assert torch.allclose(found.tokens[i : i + 1], one.tokens, atol=1e-5)


@pytest.mark.parametrize("match", [match_dense, match_chunked, match_fused, best_match])
def test_of_equal_scores_the_lowest_index_counts(match):
    """Small whole numbers, for which every product and sum is exact: equal columns give equal scores."""
    generator = torch.Generator().manual_seed(5)
    r = torch.randint(-3, 4, (1, 40, 16), generator=generator).float().to(DEVICE).repeat(1, 5, 1)
    h = torch.randint(-3, 4, (1, 100, 16), generator=generator).float().to(DEVICE)
    wanted = match_dense(h, r[:, :40])
    assert torch.equal(match(h, r).best, wanted.best)
    assert torch.equal(match(h, r.flip(1)).best, match_dense(h, r[:, :40].flip(1)).best)


@every_version
def test_zero_tokens_and_zero_references_match_nothing(version):
    h, r = tokens(20, 8, 1), tokens(30, 8, 2)
    h[0, 3], r[0, 5] = 0, 0
    pushed = version(h, r, 0.9, 0.0)
    assert pushed.score[0, 3] == 0
    assert torch.equal(pushed.tokens[0, 3], h[0, 3])
    assert torch.isfinite(pushed.tokens).all()
    nothing = version(h, torch.zeros_like(r), 0.9, 0.0)
    assert torch.equal(nothing.tokens, h)


@every_version
def test_an_empty_mask_leaves_everything(version):
    h, r = tokens(20, 8, 1), tokens(30, 8, 2)
    pushed = version(h, r, 0.9, -1.0, torch.zeros(30, dtype=torch.bool, device=DEVICE))
    assert torch.equal(pushed.tokens, h)
    assert (pushed.score == -torch.inf).all()


@every_version
def test_the_threshold_is_strict(version):
    h = torch.eye(4, device=DEVICE)[None]
    assert torch.equal(version(h, h, 0.9, 1.0).tokens, h)
    r = torch.tensor([[[3.0, 4.0, 0.0, 0.0]]], device=DEVICE)
    score = float(version(h, r, 0.9, 0.0).score[0, 0])
    assert torch.equal(version(h, r, 0.9, score).tokens[0, 0], h[0, 0])
    assert not torch.equal(version(h, r, 0.9, score - 1e-6).tokens[0, 0], h[0, 0])


@every_version
def test_rows_may_lie_apart(version):
    """Tokens that are a part of a longer sequence, and channels that are not next to each other."""
    whole = tokens(60, 24, 1, 2)
    r = tokens(30, 24, 2)
    part = whole[:, 7:47]
    assert not part.is_contiguous()
    wanted = push_dense(part.contiguous(), r, 0.9, 0.1)
    for layout in (part, part.transpose(1, 2).contiguous().transpose(1, 2)):
        assert torch.allclose(version(layout, r, 0.9, 0.1).tokens, wanted.tokens, atol=1e-5)


def test_stripes_need_memory_in_proportion_to_the_tokens(monkeypatch):
    """No piece of the similarity matrix is larger than the stripe, or one row of it."""
    sizes = []
    original = matching.match_dense

    def watched(h, r, mask=None):
        sizes.append(len(h) * h.shape[1] * r.shape[1])
        return original(h, r, mask)

    monkeypatch.setattr(matching, "match_dense", watched)
    match_chunked(tokens(100, 4, 1, 2), tokens(90, 4, 2, 2))
    assert max(sizes) <= 500
    assert sum(sizes) == 2 * 100 * 90


def test_a_row_that_is_longer_than_the_stripe(monkeypatch):
    monkeypatch.setattr(matching, "STRIPE", 50)
    h, r = tokens(7, 4, 1, 2), tokens(90, 4, 2, 2)
    found, wanted = match_chunked(h, r), match_dense(h, r)
    assert torch.equal(found.best, wanted.best)
    assert torch.allclose(found.score, wanted.score, atol=1e-6)


@pytest.mark.skipif(DEVICE == "cuda", reason="`bench kernels` measures it there")
def test_the_kernel_needs_hardly_any_memory():
    """Beyond its results; no copy of the reference in float32 either."""
    h, r = tokens(512, 256, 1, dtype=torch.float16), tokens(512, 256, 2, dtype=torch.float16)
    extra = {}
    for version in (push_dense, push_fused):
        with PeakMemory() as memory:
            pushed = version(h, r, 0.9, 0.2)
        extra[version] = memory.peak - sum(each.nbytes for each in pushed)
    assert extra[push_dense] > 512 * 512 * 4
    assert extra[push_fused] <= 0.01 * extra[push_dense]


def test_double_precision_is_kept():
    h, r = tokens(20, 8, 1).double(), tokens(30, 8, 2).double()
    pushed = push_away(h, r, 0.9, 0.0)
    assert pushed.score.dtype == torch.float64
    out, score, _ = by_hand(h[0], r[0], 0.9, 0.0)
    assert np.allclose(pushed.tokens[0].cpu(), out, rtol=1e-12)
    assert np.allclose(pushed.score[0].cpu(), score, rtol=1e-12)


@pytest.fixture
def chosen(monkeypatch):
    """push_away as on a device that the kernel is for; here it runs in the interpreter. What it called."""
    called = []

    def watched(*arguments):
        called.append("fused")
        return push_fused(*arguments)

    monkeypatch.setattr(choice, "_in_torch", {})
    monkeypatch.setattr(matching, "_has_matrix_units", lambda tokens: True)
    monkeypatch.setattr(matching_triton, "push_fused", watched)
    return called


def test_the_kernel_is_used_where_it_can_be(chosen):
    h, r = tokens(20, 8, 1), tokens(30, 8, 2)
    assert torch.allclose(push_away(h, r, 0.9, 0.0).tokens, push_dense(h, r, 0.9, 0.0).tokens, atol=1e-6)
    assert chosen == ["fused"]
    push_away(h.double(), r.double(), 0.9, 0.0)
    assert chosen == ["fused"]


@pytest.mark.skipif(DEVICE == "cuda", reason="has them, unless it is older than Ampere")
def test_a_processor_has_no_matrix_units():
    assert not matching._has_matrix_units(tokens(1, 1, 1))


def test_without_triton_it_runs_in_stripes_and_says_so_once(chosen, monkeypatch, caplog):
    import builtins

    real = builtins.__import__

    def without(name, globals=None, locals=None, fromlist=(), level=0):
        if "matching_triton" in (fromlist or ()):
            raise ImportError("no triton here")
        return real(name, globals, locals, fromlist, level)

    caplog.set_level("INFO")
    monkeypatch.setattr(builtins, "__import__", without)
    h, r = tokens(20, 8, 1), tokens(30, 8, 2)
    for _again in range(2):
        assert torch.equal(push_away(h, r, 0.9, 0.0).tokens, push_chunked(h, r, 0.9, 0.0).tokens)
    push_away(h.half(), r.half(), 0.9, 0.0)
    assert chosen == []
    assert len(caplog.records) == 1
    assert caplog.text.count("in torch.float32 runs in torch: no triton here") == 1


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler.\nPlease specify"),
        subprocess.CalledProcessError(1, ["cc"]),
        FileNotFoundError("ptxas"),
        triton.errors.TritonError("no such target"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_where_the_kernel_cannot_be_compiled_it_runs_in_stripes(chosen, error, monkeypatch, caplog):
    class Broken:
        def __getitem__(self, grid):
            raise error

    caplog.set_level("INFO")
    h, r = tokens(20, 8, 1), tokens(30, 8, 2)
    with monkeypatch.context() as broken:
        broken.setattr(matching_triton, "_match_kernel", Broken())
        for _again in range(2):
            assert torch.equal(push_away(h, r, 0.9, 0.0).tokens, push_chunked(h, r, 0.9, 0.0).tokens)
    assert chosen == ["fused"]  # tried once
    assert [record.getMessage() for record in caplog.records] == [
        f"Token matching on {h.device} in torch.float32 runs in torch: "
        f"{type(error).__name__}: {str(error).split(chr(10))[0]}"
    ]
    push_away(h.half(), r.half(), 0.9, 0.0)
    assert chosen == ["fused"] * 2  # another dtype is another kernel
