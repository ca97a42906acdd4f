"""Files are written whole or not at all: whoever else writes, whatever ends the writing, wherever it cannot be."""

import errno
import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
import threading
import time

import folder_paths
import pytest
import torch
from safetensors import safe_open

from guidekit.nodes.host.files import folders as files
from guidekit.nodes.host.files import whole_file
from guidekit.nodes.host.files.checksum import checksum

TENSORS = {"a": torch.arange(6.0)}
LARGE = {"a": torch.arange(2.0**19)}  # 2 MiB


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """models/guidekit of this test."""
    folder = tmp_path / "guidekit"
    put(monkeypatch, folder)
    return folder


def put(monkeypatch, folder):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "guidekit", ([str(folder)], set()))


def save(name="kept", tensors=TENSORS):
    return files.MODELS.save(name, tensors, {"it": "is ours"})


def load(name="kept.safetensors"):
    tensors, description = files.MODELS.load(name, ("a",))
    assert description == {"it": "is ours"}
    return tensors["a"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Where it cannot be


def refused(sentence, folder, end=".*An earlier file was kept"):
    """What a second, larger file is answered with, where it cannot be; the first one is still there."""
    with pytest.raises(
        ValueError, match=rf"^kept.safetensors cannot be saved in models/guidekit: (Error .*)?{sentence}{end}\.$"
    ) as error:
        save(tensors=LARGE)
    assert "\n" not in str(error.value)
    assert names(folder) == ["kept.safetensors"]
    assert torch.equal(load(), TENSORS["a"])


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """One of 1 MiB, as models/guidekit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small disk cannot be mounted here")
    put(monkeypatch, disk)
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk(disk):
    save()
    refused("No space left on device", disk)


def test_a_disk_that_is_read_only(disk):
    save()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    refused("the folder disk may not be written to", disk, "")


def test_a_limit_on_the_size_of_files(folder):
    resource = pytest.importorskip("resource")
    save()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        refused("File too large", folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to(folder):
    save()
    folder.chmod(0o555)
    refused("the folder guidekit may not be written to", folder, "")
    folder.chmod(0o755)


def test_what_is_seen_only_in_writing(folder, monkeypatch):
    """Where rights are not told beforehand, as on Windows and disks of other computers."""
    save()
    monkeypatch.setattr(os, "access", lambda *_: True)
    monkeypatch.setattr(files.Path, "replace", denied)
    refused("Permission denied", folder)


def denied(*_):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_folders_and_files_in_the_way(folder):
    (folder / "kept.safetensors").mkdir(parents=True)
    with pytest.raises(ValueError, match="kept.safetensors cannot be saved in models/guidekit: a folder has this name"):
        save()
    (folder / "kept.safetensors").rmdir()
    folder.rmdir()
    folder.write_text("mine")
    with pytest.raises(ValueError, match="cannot be saved in models/guidekit: guidekit is a file and no folder"):
        save()
    assert folder.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        *(
            (name, "a device on Windows")
            for name in ("CON", "nul", "Com1", "lpt9", "COM¹", "aux.1", "prn .x", "con.safetensors")
        ),
        *((name, "does not end with a space or dot") for name in ("a.", "a ", "a. .", ".", " ", "a..safetensors")),
        *((name, "may have up to 100 letters") for name in ("a" * 101, "", "-a", "a\n", "a\0b", "a:b", "a/b", "a\\b")),
        *((name, "has 2.. bytes with its ending. Disks take up to 255") for name in ("蚂" * 82, "𐐀" * 61)),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_names_that_some_disk_does_not_take(name, sentence, folder):
    with pytest.raises(ValueError, match=f"The file name is .*{sentence}"):
        save(name)
    assert not folder.exists()


@pytest.mark.parametrize(
    "name",
    ["a" * 100, "蚂" * 81, "𐐀" * 60, "a.b.c", "console", "com10", "a con", "ä ö-ü_1", "con-1"],
    ids=lambda value: ascii(value)[:20],
)
def test_names_that_every_disk_takes(name, folder):
    assert save(name) == f"{name}.safetensors"
    assert torch.equal(load(f"{name}.safetensors"), TENSORS["a"])


# Rights


@pytest.mark.skipif(os.name == "nt", reason="rights are others on this system")
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_rights_are_those_of_the_process(folder, mask):
    before = os.umask(mask)
    try:
        save()
        save()
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "kept.safetensors").stat().st_mode) == 0o666 & ~mask


# Writers that were ended, and others at work

# Without the host, which takes long to import.
WRITER = """
import os, pathlib, runpy
import numpy
from safetensors.numpy import save_file

whole_file = runpy.run_path(os.environ["MODULE"])["whole_file"]
tensors = {"a": numpy.arange(2**23, dtype=numpy.float64)}
print("ready", flush=True)
while True:
    with whole_file(pathlib.Path(os.environ["FOLDER"], "kept.safetensors")) as path:
        save_file(tensors, path)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9")
def test_what_a_killed_writer_leaves_is_cleared_by_the_next(folder):
    save()
    first = (folder / "kept.safetensors").stat().st_size
    environment = os.environ | {"FOLDER": str(folder), "MODULE": whole_file.__file__}
    for _ in range(20):
        process = subprocess.Popen([sys.executable, "-c", WRITER], stdout=subprocess.PIPE, env=environment)
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.1)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        left = [name for name in names(folder) if name != "kept.safetensors"]
        if left:
            break
    else:
        pytest.skip("the writer was never met at work")
    assert files.MODELS.names() == ["kept.safetensors"]
    # Whole, the old one or a new one.
    assert (folder / "kept.safetensors").stat().st_size == first or len(
        load_anyhow(folder / "kept.safetensors")
    ) == 2**23
    save()
    assert names(folder) == ["kept.safetensors"]


def load_anyhow(path):
    with safe_open(path, "pt") as file:
        return file.get_tensor("a")


def part(folder, host, pid, age=0.0):
    path = folder / f".guidekit.{host}.{pid}.{secrets.token_hex(8)}.part"
    path.mkdir()
    (path / ".tmpAbCdEf").write_bytes(b"half")
    os.utime(path, (time.time() - age,) * 2)
    return path


def dead():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_whose_parts_are_cleared(folder):
    """Those of writers that are gone: on this computer at once, on others after a day. And nothing else."""
    folder.mkdir()
    host = "".join(c if c.isascii() and c.isalnum() else "-" for c in socket.gethostname())[:60]
    day = 24 * 3600
    kept = [part(folder, host, os.getpid()), part(folder, "elsewhere", 1), part(folder, "elsewhere", 2, day - 600)]
    for name in (".guidekit.mine.part", ".tmpAbCdEf", ".kept.safetensors.12.part"):
        (folder / name).write_bytes(b"")
        os.utime(folder / name, (0, 0))
        kept.append(folder / name)
    gone = [
        part(folder, host, dead()),
        part(folder, host, os.getpid(), 100 * day),  # of a process that had this number before
        part(folder, "elsewhere", 2, day + 600),
    ]
    save()
    assert [path.name for path in kept if not path.exists()] == []
    assert [path.name for path in gone if path.exists()] == []


def test_writers_of_one_name_at_one_time(folder):
    """In one process, as in two containers where both are process 1."""
    failed = []

    def write(value):
        try:
            for _ in range(10):
                save(tensors={"a": torch.full((2**16,), float(value))})
        except (OSError, ValueError) as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert names(folder) == ["kept.safetensors"]
    assert len(load().unique()) == 1


def test_a_copy_is_made_only_of_what_shares_memory():
    whole = torch.arange(12.0).reshape(3, 4)
    apart = files._apart({"a": whole, "b": whole[1], "c": whole.T, "d": torch.ones(2)})
    assert apart["a"].data_ptr() == whole.data_ptr()
    assert len({tensor.untyped_storage().data_ptr() for tensor in apart.values()}) == 4


def test_what_a_checksum_tells_apart():
    """Files with the same bytes in the same order."""
    zeros = torch.zeros(2, 3)
    same = [
        ("x", {"a": zeros}),
        ("y", {"a": zeros}),
        ("x", {"b": zeros}),
        ("x", {"a": zeros.int()}),
        ("x", {"a": zeros.T}),
        ("x", {"a": zeros[0], "b": zeros[1]}),
        ("x", {"a": zeros[0], "c": zeros[1]}),
        ("x", {"a": torch.zeros(2, 3, 1)}),
    ]
    assert len({checksum(*each) for each in same}) == len(same)
    assert checksum("x", {"a": zeros, "b": zeros + 1}) == checksum("x", {"b": zeros + 1, "a": zeros})
    assert checksum("x", {"a": zeros, "b": zeros + 1}) != checksum("x", {"a": zeros + 1, "b": zeros})
