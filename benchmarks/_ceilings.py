"""What a device can do at most, measured, and how much of it token matching gets."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ..samplers.kernels.matching import Pushed, push_chunked, push_dense

ROUNDS = 7
# (what, images to match, tokens, channels): one attention layer, against a reference of its own size.
MATCHINGS = (
    ("Flux, 1024 x 1024", 1, 4096, 3072),
    ("Flux, 1024 x 1024", 3, 4096, 3072),
    ("SDXL, 64 x 64", 1, 4096, 640),
    ("SDXL, 64 x 64", 3, 4096, 640),
)


@dataclass(frozen=True)
class Ceilings:
    """`product`: operations per second of a large matrix product in `dtype`; `copy`: bytes per second, read and
    written, of a large copy."""

    dtype: str
    product: float
    copy: float


def seconds_of(call: Callable[[], object], device: torch.device, often: int = 10) -> float:
    """Time of one call, on the device's clock if it has one: the median of several rounds; the first call compiles."""
    if device.type != "cuda":
        call()
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    call()
    found = []
    for _round in range(ROUNDS):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(often):
            call()
        last.record()
        last.synchronize()
        found.append(first.elapsed_time(last) / 1e3 / often)
    return sorted(found)[ROUNDS // 2]


def measured_ceilings(device: torch.device) -> Ceilings:
    cuda = device.type == "cuda"
    dtype, side, elements = (torch.bfloat16, 8192, 1 << 29) if cuda else (torch.float32, 1024, 1 << 24)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    product = 2 * side**3 / seconds_of(lambda: torch.mm(a, b, out=out), device)
    source = torch.zeros(elements, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = 2 * elements / seconds_of(lambda: target.copy_(source), device)
    return Ceilings(str(dtype).removeprefix("torch."), product, copy)


def versions(device: torch.device) -> dict[str, Callable[..., Pushed]]:
    """The versions of token matching that run on this device."""
    found = {"dense": push_dense, "stripes": push_chunked}
    if device.type == "cuda":
        from ..samplers.kernels.matching_triton import push_fused

        found["fused"] = push_fused
    return found


def matching_rows(device: torch.device, ceilings: Ceilings) -> Iterator[dict]:
    """Each version's time, its operations and the bytes it cannot do without, and their shares of the ceilings."""
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    for what, images, count, channels in MATCHINGS if cuda else (("small", 1, 512, 64),):
        tokens = torch.randn(images, count, channels, device=device, dtype=dtype)
        reference = torch.randn(1, count, channels, device=device, dtype=dtype)
        operations = 2 * images * count * count * channels
        moved = 2 * tokens.nbytes + reference.nbytes + images * count * (8 + 4)
        dense = None
        for name, version in versions(device).items():
            seconds = seconds_of(lambda: version(tokens, reference, 0.9, 0.65), device)  # noqa: B023  called at once
            dense = dense or seconds
            wanted = cuda and name == "fused" and channels == 3072
            yield {
                "what": what,
                "images": images,
                "tokens": count,
                "channels": channels,
                "version": name,
                "seconds": seconds,
                "faster_than_dense": dense / seconds,
                "operations": operations,
                "bytes": moved,
                "share_of_product": operations / seconds / ceilings.product,
                "share_of_copy": moved / seconds / ceilings.copy,
                "limits": {"faster_than_dense": 3.0, "share_of_product": 0.6} if wanted else {},
            }
