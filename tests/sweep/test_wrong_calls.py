"""Wrong calls: one sentence each, status 2, and nothing is queued."""

from __future__ import annotations

import http.server
import json
import re
import socket
import threading

import pytest

from guidekit.sweep.command import main
from guidekit.tests.sweep.servers import counted

FILES = {
    "utf16": "a cat\n".encode("utf-16"),
    "latin1": "Über\n".encode("latin-1"),
    "empty": b"",
    "blank": b" \n\n\t\n",
    "zero": b"a\0b\n",
    "many": b"a cat\n" * 100_000,
    "bom": b"\xef\xbb\xbf\n",
    "words": b"1\ntwo\n",
}
NODE = "TestCounted"
WRONG = {
    # names
    "no node": (["--set", "TestCount.value=1"], "no node 'TestCount'.*similar ones are 'TestCounted'"),
    "no node, title": (["--set", "Count v1.6.value=1"], "no node 'Count v1.6'.*'Count v1.5'"),
    "no input": (["--set", f"{NODE}.valu=1"], "no input 'valu'.*similar ones are 'value'"),
    "a link": (["--set", "SaveImage.images=1"], "'images' of 'SaveImage' comes by a link from node '1'"),
    "no name": (["--set", "=1"], "is not NODE.input"),
    "only an input": (["--set", "value=1"], "is not NODE.input"),
    "nothing after the dot": (["--set", "1.=1"], "is not NODE.input"),
    # syntax
    "no equals": (["--set", f"{NODE}.value"], "is not NODE.input=VALUES"),
    "no value": (["--set", f"{NODE}.value="], "was given"),
    "a missing value": (["--set", f"{NODE}.value=1,,2"], "empty value"),
    "an open quote": (["--set", f'{NODE}.note="a cat'], "cannot be read"),
    "a range downwards": (["--set", f"{NODE}.value=5..1"], "holds no value"),
    "a step of zero": (["--set", f"{NODE}.strength=0..1..0"], "holds no value"),
    "half a range": (["--set", f"{NODE}.value=1.."], "takes whole numbers, not '1..'"),
    "three grids": (["--grid", "1.value=1", "--grid", "1.free=1", "--grid", "1.loud=*"], "two axes, and 3"),
    "unequal zip": (["--zip", "1.value=1..3", "1.free=1..4"], "'1.value' has 3, '1.free' has 4"),
    "twice": (["--set", "1.value=1..3", "--set", f"{NODE}.value=4"], "set 'value' of node '1' twice"),
    # types and ranges
    "text for a number": (["--set", f"{NODE}.value=one"], "takes whole numbers, not 'one'"),
    "a fraction": (["--set", f"{NODE}.value=1.5"], "takes whole numbers, not '1.5'"),
    "fractions": (["--set", f"{NODE}.value=1..2..0.5"], "takes whole numbers, not '1.5'"),
    "not finite": (["--set", f"{NODE}.strength=nan"], "takes numbers, not 'nan'"),
    "digits": (["--set", f"{NODE}.value={'9' * 5000}"], "takes whole numbers|is at most"),
    "too small": (["--set", f"{NODE}.value=-1"], "is at least 0, not -1"),
    "too large": (["--set", f"{NODE}.strength=0..3"], "is at most 2.0, not 3.0"),
    "no choice": (["--set", f"{NODE}.kind=plane"], "no choice 'plane'.*similar ones are 'plain'"),
    "neither true nor false": (["--set", f"{NODE}.loud=maybe"], "takes true and false, not 'maybe'"),
    # files
    "no file": (["--set", f"{NODE}.note=@nowhere.txt"], "'nowhere.txt'.* cannot be read"),
    "a folder": (["--set", f"{NODE}.note=@."], "cannot be read"),
    "UTF-16": (["--set", f"{NODE}.note=@utf16"], "not UTF-8"),
    "Latin-1": (["--set", f"{NODE}.note=@latin1"], "not UTF-8 .byte 0."),
    "an empty file": (["--set", f"{NODE}.note=@empty"], "no line with something in it"),
    "blank lines": (["--set", f"{NODE}.note=@blank"], "no line with something in it"),
    "a mark alone": (["--set", f"{NODE}.note=@bom"], "no line with something in it"),
    "a zero": (["--set", f"{NODE}.note=@zero"], "not a text"),
    "100,000 lines": (["--set", f"{NODE}.note=@many"], "100000 lines, more than the 20000"),
    "words for numbers": (["--set", f"{NODE}.value=@words"], "takes whole numbers, not 'two'"),
    # too many
    "a huge range": (["--set", f"{NODE}.free=1..99999999999"], "more values than the 20000"),
    "a huge product": (["--set", "1.value=1..1000", "--set", "1.free=1..1000"], "makes 1000000 jobs; --limit"),
    "over the limit": (["--set", "1.value=1..11", "--limit", "10"], "more values than the 10"),
    # servers and folders
    "no URL": (["--servers", "ftp://here"], "not the URL of a server"),
    "no port": (["--servers", "127.0.0.1:99999"], "not the URL of a server"),
    "no server": (["--servers", ","], "No server was named"),
    "a file for a folder": (["-o", "words/out"], "cannot be made"),
    "an unknown option": (["--sett", "1.value=1"], "unrecognized arguments"),
}


def call(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as stopped:  # of argparse
        return stopped.code


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the files and the workflow, to be in."""
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "workflow.json").write_text(json.dumps(counted(tmp_path)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls_get_a_sentence(case, server, here, capsys):
    arguments, sentence = WRONG[case]
    before = server.get("/history")
    assert call(["workflow.json", "--servers", server.url, *arguments]) == 2
    out, said = capsys.readouterr()
    assert out == ""
    answer = said.splitlines()[-1]
    assert re.search(sentence, answer), answer
    assert len(answer) < 700
    assert "Traceback" not in said
    assert not list(here.glob("out/files/*"))
    assert server.get("/history") == before
    assert server.get("/queue") == {"queue_running": [], "queue_pending": []}


WORKFLOWS = {
    "missing": (None, "cannot be read"),
    "not JSON": ("{", "is not JSON"),
    "not UTF-8": ("\udcff", "is not UTF-8"),
    "nested": ("[" * 100_000, "nested too deeply|is not JSON"),
    "a list": ("[1]", "has no nodes"),
    "empty": ("{}", "has no nodes"),
    "other JSON": ('{"a": {"b": 1}}', "has no class_type"),
    "no inputs": ('{"1": {"class_type": "SaveImage"}}', "has no inputs"),
    "an unknown class": ('{"1": {"class_type": "NoSuchNode", "inputs": {}}}', "no node of class 'NoSuchNode'"),
    "a loose link": (
        '{"1": {"class_type": "SaveImage", "inputs": {"images": ["7", 0]}}}',
        "takes 'images' from node '7'",
    ),
    "no output": ('{"1": {"class_type": "EmptyImage", "inputs": {}}}', "saves and shows nothing"),
    "an editor's without nodes": ('{"nodes": [], "links": []}', "has no nodes"),
    "an editor's that is broken": ('{"nodes": [{"id": 1}], "links": 5}', "cannot be converted"),
}


@pytest.mark.parametrize("case", WORKFLOWS)
def test_files_that_are_no_workflows(case, server, here, capsys):
    content, sentence = WORKFLOWS[case]
    if content is not None:
        (here / "other.json").write_text(content, "utf-8", errors="surrogateescape")
    assert call(["other.json", "--servers", server.url]) == 2
    answer = capsys.readouterr().err.splitlines()[-1]
    assert re.search(sentence, answer), answer
    assert not (here / "out").exists()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Stranger(http.server.BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, *_):
        pass


def test_no_server_or_another_program_at_a_port(server, here, capsys):
    nobody = f"http://127.0.0.1:{free_port()}"
    assert call(["workflow.json", "--servers", f"{server.url},{nobody}"]) == 2
    assert f"No ComfyUI answers at {nobody}" in capsys.readouterr().err
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as stranger:
        threading.Thread(target=stranger.serve_forever, daemon=True).start()
        assert call(["workflow.json", "--servers", f"{server.url},127.0.0.1:{stranger.server_port}"]) == 2
        stranger.shutdown()
    assert "it is not ComfyUI" in capsys.readouterr().err


def test_a_folder_holds_one_workflow(server, here, capsys):
    assert call(["workflow.json", "--servers", server.url]) == 0
    (here / "workflow.json").write_text(json.dumps(counted(here, strength=0.5)))
    assert call(["workflow.json", "--servers", server.url]) == 2
    assert "holds the results of another workflow" in capsys.readouterr().err


def test_passwords_are_not_written_down(server, here, capsys):
    with_password = server.url.replace("://", "://me:secret@")
    assert call(["workflow.json", "--servers", with_password]) == 0
    said = capsys.readouterr()
    written = b"".join(path.read_bytes() for path in here.glob("out/*") if path.is_file())
    assert "secret" not in said.out + said.err
    assert b"secret" not in written
