"""Time and memory of token matching: dense, in stripes, and fused; and which tiles are best on this device:
`python dev.py bench kernels`.

On a CPU the fused kernel does not run; the other two are compared at a batch of one.
"""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import torch
from torch import Tensor

from ..samplers.kernels.matching import Pushed
from . import FAMILIES as _  # noqa: F401  reads the command line before the host does
from ._ceilings import Ceilings, measured_ceilings, seconds_of, versions
from ._results import ceilings_sentence
from ._table import print_row

# (tokens, channels) of one image in one attention layer.
SHAPES = {"SDXL, 64 x 64": (4096, 640), "Flux, 1024 x 1024": (4096, 3072), "Flux, 2048 x 2048": (16384, 3072)}
ROUNDS = 5
SWEEP_SECONDS = 35.0
# Tokens, reference tokens and channels of a tile, warps, stages.
TILES = (
    (128, 256, 64, 8, 3),
    (128, 128, 64, 4, 3),
    (128, 128, 64, 8, 3),
    (256, 128, 64, 8, 3),
    (128, 256, 64, 8, 4),
    (128, 128, 64, 4, 4),
    (256, 128, 64, 8, 4),
    (128, 128, 128, 8, 3),
    (128, 256, 32, 8, 4),
    (64, 256, 64, 4, 3),
    (128, 64, 64, 4, 4),
)


def measure(version: Callable[..., Pushed], tokens: Tensor, reference: Tensor) -> tuple[float, float]:
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


def table(device: torch.device, dtype: torch.dtype, batch: int) -> None:
    print("| tokens x channels | version | time | of dense | memory | of dense |\n" + "|---" * 6 + "|")
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


class Sweep:
    """The first of the fused kernels, in bfloat16, with various tiles; with pointers, and with descriptors by which the
    hardware copies tiles. All are compiled side by side at first, as far as that works."""

    def __init__(self, device: torch.device, ceilings: Ceilings):
        self.ceilings = ceilings
        shapes = {"Flux, 1 image": (1, 4096, 3072), "Flux, 3 images": (3, 4096, 3072), "SDXL, 3 images": (3, 4096, 640)}
        self.operands = {
            name: [torch.randn(of, *shape[1:], device=device, dtype=torch.bfloat16) for of in (shape[0], 1)]
            for name, shape in shapes.items()
        }

    def calls(self, tiles: tuple[int, ...], descriptors: bool) -> Iterator[tuple[str, Callable[..., object], int]]:
        """(name, call, operations) for each shape; `call` with `warmup` only compiles."""
        from ..samplers.kernels.matching_triton import _match_kernel, match_call

        named = dict(zip(("BLOCK_N", "BLOCK_M", "BLOCK_C", "num_warps", "num_stages"), tiles))
        for name, (tokens, reference) in self.operands.items():
            match = match_call(tokens, reference, None, named, descriptors)

            def call(warmup: bool = False, match=match) -> object:
                if warmup:
                    return _match_kernel.warmup(*match.arguments, grid=match.grid, **match.constants)
                return _match_kernel[match.grid](*match.arguments, **match.constants)

            yield name, call, 2 * tokens.numel() * reference.shape[1]

    def compile(self) -> None:
        import triton

        with (
            ThreadPoolExecutor(os.cpu_count()) as threads,
            triton.AsyncCompileMode(threads, ignore_errors=True),
        ):
            for tiles, descriptors in product(TILES, (False, True)):
                for _name, call, _operations in self.calls(tiles, descriptors):
                    call(warmup=True)

    def row(self, tiles: tuple[int, ...], descriptors: bool) -> float:
        """Prints it; returns the share of the product rate for one image of Flux's size."""
        cells = []
        for _name, call, operations in self.calls(tiles, descriptors):
            seconds = seconds_of(call, torch.device("cuda"))
            cells.append((seconds, operations / seconds / self.ceilings.product))
        *blocks, warps, stages = tiles
        print_row(
            f"| {' x '.join(map(str, blocks))}, {warps} warps, {stages} stages "
            f"| {'descriptors' if descriptors else 'pointers'} |"
            + "|".join(f" {1e3 * seconds:.3f} ms, {share:.0%} " for seconds, share in cells)
            + "|"
        )
        return cells[0][1]

    def run(self) -> None:
        print("\nThe matching alone, with various tiles, beside the product rate.")
        print(ceilings_sentence(vars(self.ceilings)) + "\n")
        print("| tile | operands | " + " | ".join(self.operands) + " |\n" + "|---" * (2 + len(self.operands)) + "|")
        found, end = {}, time.monotonic() + SWEEP_SECONDS
        from triton.errors import TritonError

        failures = (TritonError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError, OSError)
        try:
            self.compile()
        except failures as error:
            print(f"Not compiled side by side: {type(error).__name__}: {str(error).splitlines()[:1]}")
        for tiles, descriptors in product(TILES, (True, False)):
            if time.monotonic() > end:
                print("The rest was left out, as the time was used up.")
                break
            try:
                found[tiles, descriptors] = self.row(tiles, descriptors)
            except failures as error:
                print(f"{tiles}, descriptors {descriptors}: {type(error).__name__}: {str(error).splitlines()[:1]}")
        if found:
            best = max(found, key=found.get)
            print(f"\nBest for one image of Flux: {best[0]}, descriptors {best[1]}: {found[best]:.0%}.")


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, batch = (torch.bfloat16, 4) if device.type == "cuda" else (torch.float32, 1)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, {str(dtype).removeprefix('torch.')}, {batch} images against a reference of their own size.\n")
    with torch.inference_mode():
        table(device, dtype, batch)
        if device.type == "cuda":
            Sweep(device, measured_ceilings(device)).run()


if __name__ == "__main__":
    main()
