"""Compiles the kernels for one device and prints the result: `compile_matching.py 90 232448`."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from samplers.kernels import matching_triton  # noqa: E402
from samplers.kernels.matching_triton import _match_kernel, _push_kernel  # noqa: E402
from samplers.kernels.nag_triton import _nag_kernel  # noqa: E402

INSTRUCTIONS = ("wgmma.mma", "mma.sync", "mfma", "v_wmma")
TYPES = {
    "inverse": "*fp32",
    "keys": "*i64",
    "score": "*fp32",
    "index": "*i64",
    "alpha": "fp32",
    "threshold": "fp32",
    "epsilon": "fp32",
    "scale": "fp32",
    "tau": "fp32",
    "tiny": "fp32",
}


def compiled(target: GPUTarget, kernel: triton.JITFunction, types: dict[str, str], constants: dict) -> dict:
    constants = dict(constants)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages") if name in constants}
    constants |= {p.name: p.default for p in kernel.params if p.has_default and p.name not in constants}
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else types.get(n) or TYPES.get(n) or "i32" for n in names}
    # As at launch, where sizes and addresses are multiples of 16.
    even = [n for n in names if signature[n].startswith("*") or signature[n] == "i32"]
    source = ASTSource(
        kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in even},
    )
    found = triton.compile(source, target=target, options=options)
    assembly = found.asm["ptx" if target.backend == "cuda" else "amdgcn"]
    return {
        "shared": found.metadata.shared,
        "instructions": [name.removeprefix("v_") for name in INSTRUCTIONS if name in assembly],
        "copies_tiles": "cp.async.bulk.tensor" in assembly,
        "spilled": ".local" in assembly,
    }


def kernels(target: GPUTarget, tiles: dict[int, dict]) -> Iterator[dict]:
    for dtype, bits in (("bf16", 16), ("fp32", 32)):
        operands = dict.fromkeys(("tokens", "reference", "out"), f"*{dtype}")
        for flag in (False, True):
            constants = {"MASKED": flag, "EVEN": not flag, "DESCRIPTORS": False} | tiles[bits]
            types = operands | {"allowed": "*u8" if flag else "*fp32"}
            found = compiled(target, _match_kernel, types, constants)
            yield {"kernel": "match", "dtype": dtype, "bits": bits, "descriptors": False, **found}
            if bits == 16 and target.backend == "cuda" and target.arch >= 90:
                blocks = {"tokens": tiles[bits]["BLOCK_N"], "reference": tiles[bits]["BLOCK_M"]}
                for name, block in blocks.items():
                    types[name] = f"tensordesc<{dtype}[{block}, {tiles[bits]['BLOCK_C']}]>"
                found = compiled(target, _match_kernel, types, constants | {"DESCRIPTORS": True})
                yield {"kernel": "match", "dtype": dtype, "bits": bits, "descriptors": True, **found}
            types = operands | ({} if flag else {"out": "*fp32"})
            found = compiled(target, _push_kernel, types, {"PUSH": flag} | matching_triton._PUSH)
            yield {"kernel": "push", "dtype": dtype, "bits": bits, "descriptors": False, **found}
        types = dict.fromkeys(("positive", "negative", "out"), f"*{dtype}")
        found = compiled(target, _nag_kernel, types, {"BLOCK_C": 4096, "num_warps": 4})
        yield {"kernel": "nag", "dtype": dtype, "bits": bits, "descriptors": False, **found}


def main(device: str, shared: str) -> None:
    if device.startswith("gfx"):
        target = GPUTarget("hip", device, 64 if device.startswith("gfx9") else 32)
    else:
        target = GPUTarget("cuda", int(device), 32)
    large = target.backend == "cuda" and int(shared) >= matching_triton.LARGE
    json.dump(list(kernels(target, matching_triton.LARGE_TILES if large else matching_triton.TILES)), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
