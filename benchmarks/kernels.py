"""Time and memory of token matching: dense, in stripes, and fused: `python dev.py bench kernels`.

On a CPU the fused kernel does not run; the other two are compared at a batch of one.
"""

import time
from collections.abc import Callable

import torch

from ..samplers.kernels.matching import Pushed, push_chunked, push_dense
from . import FAMILIES as _  # noqa: F401  reads the command line before the host does
from ._table import print_row

# (tokens, channels) of one picture in one attention layer.
SHAPES = {"SDXL, 64 x 64": (4096, 640), "Flux, 1024 x 1024": (4096, 3072), "Flux, 2048 x 2048": (16384, 3072)}
ROUNDS = 5


def versions(device: torch.device) -> dict[str, Callable[..., Pushed]]:
    found = {"dense": push_dense, "stripes": push_chunked}
    if device.type == "cuda":
        from ..samplers.kernels.matching_triton import push_fused

        found["fused"] = push_fused
    return found


def measure(version: Callable[..., Pushed], tokens: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """(seconds, MiB at the peak beyond what is given and what comes out; NaN on a CPU). The median of some rounds."""
    cuda = tokens.is_cuda
    times = []
    for _round in range(ROUNDS + 1):  # the first compiles
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        start = time.perf_counter()
        pushed = version(tokens, reference, 0.9, 0.65)
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        results = sum(each.nbytes for each in pushed)
        del pushed
    peak = (torch.cuda.max_memory_allocated() - before - results) / 2**20 if cuda else float("nan")
    return sorted(times[1:])[ROUNDS // 2], peak


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, batch = (torch.bfloat16, 4) if device.type == "cuda" else (torch.float32, 1)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, {str(dtype).removeprefix('torch.')}, {batch} pictures against a reference of their own size.\n")
    print("| tokens x channels | version | time | of dense | memory | of dense |\n" + "|---" * 6 + "|")
    with torch.inference_mode():
        for label, (count, channels) in SHAPES.items():
            if device.type == "cpu" and count > 4096:
                continue
            tokens = torch.randn(batch, count, channels, device=device, dtype=dtype)
            reference = torch.randn(1, count, channels, device=device, dtype=dtype)
            dense = None
            for version, function in versions(device).items():
                seconds, memory = measure(function, tokens, reference)
                dense = dense or (seconds, memory)
                print_row(
                    f"| {label}: {count} x {channels} | {version} | {1e3 * seconds:.2f} ms | {seconds / dense[0]:.2f} "
                    f"| {memory:.0f} MiB | {memory / dense[1]:.3f} |"
                )


if __name__ == "__main__":
    main()
