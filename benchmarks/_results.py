"""The results of `bench device`: printed as they come, kept as JSON and Markdown, and made into a page of docs/."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import comfyui_version
import torch

from ._table import print_row, unbroken

DOCS = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "device.md"
MEMORY_LIMIT = 1.10  # of the peak without the node

ROW_HEADER = (
    "| network | latent | node | cfg, batch | step without | with | ratio (pairs) | predictions | launches | stalls "
    "| peak memory | target |"
)
KERNEL_HEADER = (
    "| token matching | version | time | of dense | TFLOP | MB | of the product rate | of the copy rate | target |"
)


def about_machine(device: torch.device) -> dict[str, Any]:
    cuda = device.type == "cuda"
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(device) if cuda else f"CPU, {torch.get_num_threads()} threads",
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "ComfyUI": comfyui_version.__version__,
        "command": " ".join(["python", "-m", "guidekit.benchmarks.device", *sys.argv[1:]]),
    }
    if cuda:
        import triton

        memory = torch.cuda.get_device_properties(device).total_memory
        found |= {"CUDA": torch.version.cuda, "triton": triton.__version__, "memory": f"{memory / 2**30:.0f} GiB"}
    return found


class Results:
    """Collects and prints. `spent()`: whether the time is over, so that nothing more is to be started."""

    def __init__(self, machine: dict, seconds: float):
        self._end = time.monotonic() + seconds
        self.found: dict[str, Any] = {"machine": machine, "kernels": [], "rows": [], "failed": [], "left_out": []}
        self._headers: set[str] = set()

    def __enter__(self) -> "Results":
        print(machine_sentence(self.found["machine"]), flush=True)
        return self

    def __exit__(self, *_error) -> None:
        for name, what in (("failed", "Failed"), ("left_out", "Left out, as the time was used up")):
            if self.found[name]:
                print(f"\n{what}: " + "; ".join(self.found[name]) + ".")
        print("\n" + summary(self.found), flush=True)
        self._keep()

    def spent(self) -> bool:
        return time.monotonic() > self._end

    def add_ceilings(self, ceilings: dict) -> None:
        self.found["ceilings"] = ceilings
        print("\n" + ceilings_sentence(ceilings), flush=True)

    def add_kernel(self, row: dict) -> None:
        self.found["kernels"].append(row)
        self._print(KERNEL_HEADER, kernel_row(row))

    def add_row(self, row: dict) -> None:
        self.found["rows"].append(row)
        self._print(ROW_HEADER, node_row(row))

    def failed(self, name: str, error: BaseException) -> None:
        sentence = str(error).strip().split("\n")[0]
        self.found["failed"].append(f"{name} ({type(error).__name__}: {sentence})")
        print(f"{name} failed: {type(error).__name__}: {sentence}", flush=True)
        self._keep()

    def left_out(self, *names: str) -> None:
        self.found["left_out"] += names

    def _print(self, header: str, row: str) -> None:
        if header not in self._headers:
            self._headers.add(header)
            print("\n" + ruled(header))
        print_row(row)
        self._keep()

    def _keep(self) -> None:
        """Saves after each row, so that a stopped run leaves its results."""
        if folder := os.environ.get("OUT"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            _replace(Path(folder) / "device.json", json.dumps(self.found, indent=1))
            _replace(Path(folder) / "device.md", tables(self.found))


def _replace(path: Path, text: str) -> None:
    """Replaces a file at once, so that it is never incomplete."""
    new = path.with_suffix(".new")
    new.write_text(text, "utf-8")
    new.replace(path)


def ruled(header: str) -> str:
    return header + "\n" + "|---" * (header.count("|") - 1) + "|"


def machine_sentence(machine: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in machine.items() if name not in ("date", "command")) + "."


def ceilings_sentence(ceilings: dict) -> str:
    return (
        f"Ceilings, measured here: {ceilings['product'] / 1e12:.3g} TFLOP/s in a product of large {ceilings['dtype']} "
        f"matrices, {ceilings['copy'] / 1e9:.3g} GB/s in a large copy (read and written)."
    )


def judged(limit: str, met: bool) -> str:
    return f"{limit}: {'met' if met else 'MISSED'}"


def kernel_targets(row: dict) -> list[str]:
    texts = {"faster_than_dense": ">= {:g} x dense", "share_of_product": ">= {:.0%} of the product rate"}
    return [judged(texts[name].format(limit), row[name] >= limit) for name, limit in row["limits"].items()]


def kernel_row(row: dict) -> str:
    return (
        f"| {row['what']}: {row['images']} x {row['tokens']} x {row['channels']} | {row['version']} "
        f"| {1e3 * row['seconds']:.3f} ms | {1 / row['faster_than_dense']:.2f} | {row['operations'] / 1e12:.3g} "
        f"| {row['bytes'] / 1e6:.3g} | {row['share_of_product']:.0%} | {row['share_of_copy']:.0%} "
        f"| {'; '.join(kernel_targets(row))} |"
    )


def memory_ratio(row: dict) -> float | None:
    before, after = row["plain"]["peak"], row["with_node"]["peak"]
    return None if not before or after is None else after / before


def row_targets(row: dict) -> list[str]:
    found = []
    if row["limit"] is not None:
        value = row.get("of_run", row["ratio"])
        found.append(judged(f"{'run ' if 'of_run' in row else ''}<= {row['limit']:g}", value <= row["limit"]))
    memory = memory_ratio(row)
    if memory is not None and memory > MEMORY_LIMIT:
        found.append(judged(f"memory <= {MEMORY_LIMIT:g}", False))
    return found


def _beside(row: dict, name: str) -> str:
    before, after = row["plain"][name], row["with_node"][name]
    return "-" if before is None or after is None else f"{after} ({after - before:+d})"


def node_row(row: dict) -> str:
    memory = memory_ratio(row)
    more = "" if memory is None else f"{(row['with_node']['peak'] - row['plain']['peak']) / 2**20:+.0f} MiB"
    ratio = f"{row['ratio']:.3f} ({min(row['ratios']):.3f} to {max(row['ratios']):.3f})"
    if "of_run" in row:
        ratio += f"; acts in {row['share']:.0%} of a run, of which {row['of_run']:.4f}"
    return (
        f"| {row['network']} | {row['latent']} | {row['node']} | {row['cfg']:g}, {row['batch']} "
        f"| {1e3 * row['plain_seconds']:.2f} ms | {1e3 * row['seconds']:.2f} ms | {ratio} "
        f"| {_beside(row, 'predictions')} | {_beside(row, 'launches')} | {_beside(row, 'stalls')} "
        f"| {'-' if memory is None else f'{memory:.3f} ({more})'} | {'; '.join(row_targets(row))} |"
    )


def summary(found: dict) -> str:
    """Every target and whether it is met."""
    met, missed = 0, []
    for row in found["kernels"]:
        for each in kernel_targets(row):
            met += each.endswith(": met")
            if each.endswith("MISSED"):
                missed.append(f"matching {row['images']} x {row['tokens']} x {row['channels']} {each}")
    for row in found["rows"]:
        for each in row_targets(row):
            met += each.endswith(": met")
            if each.endswith("MISSED"):
                value = row.get("of_run", row["ratio"])
                where = f"{row['network']} cfg {row['cfg']:g} batch {row['batch']}"
                missed.append(f"{where} {row['node']} {each} ({value:.4f})")
    if not met and not missed:
        return "No targets: they are for a GPU."
    return f"Targets: {met} met, {len(missed)} missed." + "".join(f"\n- {each}" for each in missed)


def tables(found: dict) -> str:
    parts = []
    if "ceilings" in found:
        parts.append(ceilings_sentence(found["ceilings"]))
    for header, name, row in ((KERNEL_HEADER, "kernels", kernel_row), (ROW_HEADER, "rows", node_row)):
        if found[name]:
            parts.append("\n".join([ruled(header), *(unbroken(row(each)) for each in found[name])]))
    for name, what in (("failed", "Failed"), ("left_out", "Left out, as the time was used up")):
        if found[name]:
            parts.append(f"{what}: " + "; ".join(found[name]) + ".")
    parts.append(summary(found))
    return "\n\n".join(parts) + "\n"


EXPLAINED = """\
# On a GPU

What the nodes cost in time and memory on a card, with networks of real size and random weights in bfloat16, through
ComfyUI's own sampling (euler, `simple`). A row is a node at one cfg and batch beside the same model without it, in the
same process, in alternating runs.

- step without, with: the median over steps, on the card's clock; the first step of each run is left out.
- ratio: the median over pairs of runs, and the smallest and largest pair.
- predictions, launches, stalls: of one step with the node, and beside that without it. A launch is whatever runs on the
  card (kernels, copies, fills); a stall is a call that makes the processor wait for the card, as torch counts them.
- peak memory: of a run, with the weights, beside that of a run without the node.
- LoRA on the negative: rank 16 on all linear layers of the blocks. A merged one costs what none costs.

This page is written by `python dev.py python -m guidekit.benchmarks.device --docs device.json`, from what
`python dev.py bench device` leaves in the folder that `$OUT` names.
"""


NOT_YET = "Not measured yet.\n"


def write_docs(files: list[Path]) -> None:
    """Writes the page from the results of one or several runs."""
    parts = [EXPLAINED] if files else [EXPLAINED, NOT_YET]
    for file in files:
        found = json.loads(file.read_text("utf-8"))
        machine = found["machine"]
        parts.append(
            f"## {machine['device']}, {machine['date']}\n\n{machine_sentence(machine)} `{machine['command']}`\n\n"
            + tables(found)
        )
    DOCS.parent.mkdir(parents=True, exist_ok=True)
    DOCS.write_text("\n".join(parts), "utf-8")
    print(f"{DOCS} written.")
