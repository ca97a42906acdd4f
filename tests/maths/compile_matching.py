"""Compiles the kernel of token matching for one device and prints what came out: `compile_matching.py 90`."""

import itertools
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from samplers.kernels.matching_triton import TILES, _match_kernel  # noqa: E402

INSTRUCTIONS = ("wgmma.mma", "mma.sync", "mfma", "v_wmma")
POINTERS = ("tokens", "reference", "lengths", "allowed", "out", "score", "index")
NUMBERS = ("alpha", "threshold", "epsilon")
COUNTS = (
    "n",
    "m",
    "c",
    "tokens_batch",
    "tokens_row",
    "reference_batch",
    "reference_row",
    "lengths_batch",
    "allowed_batch",
)


def compiled(target: GPUTarget, dtype: str, masked: bool, push: bool) -> dict:
    bits = int(dtype[2:])
    tiles = dict(TILES[bits])
    options = {"num_warps": tiles.pop("num_warps")}
    constants = {"MASKED": masked, "PUSH": push} | tiles
    types = dict.fromkeys(POINTERS, f"*{dtype}") | dict.fromkeys(NUMBERS, "fp32") | dict.fromkeys(COUNTS, "i32")
    types |= {"lengths": "*fp32", "score": "*fp32", "index": "*i64", "allowed": "*u8" if masked else "*fp32"}
    types |= {} if push else {"out": "*fp32"}
    types |= dict.fromkeys(constants, "constexpr")
    names = list(types)
    assert names == _match_kernel.arg_names, names
    # As at launch, where sizes and addresses are multiples of 16.
    even = {(names.index(name),): [["tt.divisibility", 16]] for name in (*POINTERS, *COUNTS)}
    source = ASTSource(_match_kernel, types, {(names.index(name),): value for name, value in constants.items()}, even)
    found = triton.compile(source, target=target, options=options)
    assembly = found.asm["ptx" if target.backend == "cuda" else "amdgcn"]
    instructions = [name.removeprefix("v_") for name in INSTRUCTIONS if name in assembly]
    return {"dtype": dtype, "bits": bits, "shared": found.metadata.shared, "instructions": instructions}


def main(device: str) -> None:
    if device.startswith("gfx"):
        target = GPUTarget("hip", device, 64 if device.startswith("gfx9") else 32)
    else:
        target = GPUTarget("cuda", int(device), 32)
    kinds = itertools.product(("bf16", "fp32"), ((False, False), (True, True)))
    json.dump([compiled(target, dtype, *flags) for dtype, flags in kinds], sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
