"""The command line: python -m guidekit.sweep WORKFLOW.json --set "KSampler.seed=1..64" --servers URL,URL -o out/

Exit status: 0 if every job is done, 1 if some have failed or the sweep stopped before its end, 2 if the call is wrong
(then nothing has been queued), 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

from .errors import StoppedError, SweepError
from .names import value_text
from .progress import Progress, duration
from .study import DEFAULT_LIMIT, DEFAULT_PATIENCE, DEFAULT_SERVER, Summary, Sweep
from .text import cut, plain

DESCRIPTION = "Run a ComfyUI workflow once for every combination of settings, on one server or many."
VALUES = """values:
  1..64             whole numbers, both ends included; 1..2..0.25 with a step
  3,6,9             a list; an entry with a comma stands in "double quotes"
  *                 every choice of the input
  @prompts.txt      the lines of a file that are not empty, in UTF-8
A text stays whole, commas and all, unless it begins with a double quote: several are written "one","two".
NODE is the title, the class or the id of a node. A second call with the same folder goes on where the first one
stopped."""
_EVERY = 10  # seconds between lines of progress, where no line can be redrawn


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m guidekit.sweep",
        description=DESCRIPTION,
        epilog=VALUES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    options.add_argument("workflow", metavar="WORKFLOW.json", help="as the editor saves it, or by Export (API)")
    setting = "NODE.input=VALUES"
    options.add_argument("--set", action="append", default=[], metavar=setting, help="an input and its values")
    options.add_argument(
        "--zip", action="append", nargs="+", default=[], metavar=setting, help="several inputs that advance together"
    )
    options.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar=setting,
        help="as --set, and an axis of a grid image: columns, rows",
    )
    options.add_argument(
        "--servers", default=DEFAULT_SERVER, metavar="URL,URL", help="running ComfyUIs (default: %(default)s)"
    )
    options.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="a scheduler of dask.distributed, or local:N for N workers here; each worker has a ComfyUI of its own",
    )
    options.add_argument("--comfyui", metavar="PATH", help="the checkout that each worker starts, with this pack")
    options.add_argument(
        "--comfyui-args",
        default="",
        metavar='"..."',
        help="further arguments for it, for instance --comfyui-args=--cpu",
    )
    options.add_argument("-o", "--out", default="out", metavar="FOLDER", help="for the results (default: %(default)s)")
    options.add_argument("--dry-run", action="store_true", help="list the jobs, and run the first one for the time")
    options.add_argument("--retry", action="store_true", help="do jobs again that failed in an earlier call")
    options.add_argument(
        "--limit", type=int, default=DEFAULT_LIMIT, metavar="N", help="refuse to make more jobs (default: %(default)s)"
    )
    options.add_argument(
        "--patience",
        type=float,
        default=DEFAULT_PATIENCE,
        metavar="SECONDS",
        help="how long no server at all may answer (default: %(default)s)",
    )
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    line = Line(sys.stderr)
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's way to end a program
        sweep = Sweep(
            given.workflow,
            given.out,
            settings=given.set,
            zipped=given.zip,
            grid=given.grid,
            servers=[url for url in given.servers.split(",") if url.strip()],
            limit=given.limit,
            retry=given.retry,
            patience=given.patience,
            dask=given.dask,
            comfyui=given.comfyui,
            arguments=shlex.split(given.comfyui_args),
        )
        summary = sweep.dry_run(show) if given.dry_run else sweep.run(line)
        line.end()
        report(summary, given)
        return 1 if summary.failed else 0
    except StoppedError as error:
        line.end()
        say(str(error))
        return 1
    except SweepError as error:
        line.end()
        say(str(error))
        return 2
    except KeyboardInterrupt:
        line.end()
        say("Stopped; what was queued has been taken back. The same call goes on from here.")
        return 130
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def show(settings: dict[str, Any]) -> None:
    print(
        ", ".join(f"{plain(name)}={cut(plain(value_text(value)), 80)}" for name, value in settings.items())
        or "as it is"
    )


def report(summary: Summary, given: argparse.Namespace) -> None:
    folder = plain(given.out)
    if given.dry_run:
        if summary.seconds is None:
            print(f"{summary.count} jobs; the first one did not end well: see {folder}/results.csv")
            return
        servers = len(given.servers.split(","))
        left = (summary.count - summary.done - summary.failed) * summary.seconds / servers
        print(f"{summary.count} jobs; one took {summary.seconds:.1f} s, so {duration(left)} for those that are left")
        return
    failed = f", {summary.failed} failed" if summary.failed else ""
    print(f"{summary.done} of {summary.count} jobs done{failed}: {folder}/index.html, {folder}/results.csv")


def say(sentence: str) -> None:
    print(f"sweep: {sentence}", file=sys.stderr)


class Line:
    """Progress on one line that is redrawn; where that cannot be, a line now and then."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._redrawn = stream.isatty()
        self._last = time.monotonic()
        self._drawn = False

    def __call__(self, progress: Progress) -> None:
        if self._redrawn:
            width = _width(self._stream)
            self._stream.write(f"\r{cut(str(progress), max(width - 1, 20))}\033[K")
            self._drawn = True
        elif time.monotonic() - self._last >= _EVERY:
            self._stream.write(f"{progress}\n")
        else:
            return
        self._last = time.monotonic()
        self._stream.flush()

    def end(self) -> None:
        if self._drawn:
            self._stream.write("\n")
            self._drawn = False


def _width(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except OSError:
        return 80
