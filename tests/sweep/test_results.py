"""What a sweep leaves behind: names, table, contact sheet, grid; failures; and that data stays data."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from guidekit.sweep import StoppedError, Sweep
from guidekit.sweep.command import main
from guidekit.tests.sweep.servers import counted, finished, made, new_server, shown, wait_for


def table(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_settings_are_multiplied_zipped_and_in_names_and_table(server, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat, sitting\n\n  ein Hündchen  \n", "utf-8")
    settings = [f"TestCounted.note=@{prompts}", 'Count v1.5.kind="fancy, really",plain']
    zipped = [["1.value=5,7", "1.strength=0.5..0.75..0.25"]]
    summary = Sweep(counted(tmp_path), tmp_path / "out", settings, zipped, servers=[server.url]).run()
    assert (summary.count, summary.done, summary.failed) == (8, 8, 0)
    rows = [row.settings for row in Sweep({}, tmp_path / "out").rows()]
    notes, kinds = ("a cat, sitting", "ein Hündchen"), ("fancy, really", "plain")
    pairs = ((5, 0.5), (7, 0.75))
    names = ["TestCounted.note", "Count v1.5.kind", "1.value", "1.strength"]
    assert rows == [dict(zip(names, (note, kind, *pair))) for note in notes for kind in kinds for pair in pairs]
    assert [line["TestCounted.note"] for line in table(tmp_path / "out")][::4] == list(notes)
    assert (
        sorted(shown(tmp_path / "out"))[5]
        == "00006_note=ein_Hündchen_kind=fancy,_really_value=7_strength=0.75_made_1.png"
    )
    assert sorted(made(tmp_path)) == [5] * 4 + [7] * 4


def test_the_same_prompt_is_one_job_and_a_folder_grows(server, tmp_path):
    def run(**settings):
        return Sweep(counted(tmp_path), tmp_path / "out", servers=[server.url], **settings).run()

    assert run(settings={"TestCounted.value": [3, 3, 1]}).count == 2
    assert run(settings={"1.value": range(5)}).count == 5
    assert sorted(made(tmp_path)) == [0, 1, 2, 3, 4]
    assert sorted(shown(tmp_path / "out").values()) == [0, 1, 2, 3, 4]


def test_a_grid_shows_each_image_in_its_place(server, tmp_path):
    grid = ["TestCounted.value=200,40,120", "1.loud=*"]
    out = tmp_path / "out"
    Sweep(counted(tmp_path), out, {"1.kind": ["plain", "3"]}, grid=grid, servers=[server.url]).run()
    assert sorted(path.name for path in (out / "grids").iterdir()) == ["made_kind=3.png", "made_kind=plain.png"]
    sheet = Image.open(out / "grids" / "made_kind=3.png").convert("L")
    # The tiles are the only wide stretches of one grey.
    for y in (sheet.height - 20, sheet.height - 160):
        line = [sheet.getpixel((x, y)) for x in range(sheet.width)]
        assert [grey for grey in dict.fromkeys(line) if grey < 255 and line.count(grey) > 100] == [40, 120, 200]
    labels = sheet.crop((0, 0, sheet.width, sheet.height - 2 * 134))
    assert labels.getextrema()[0] < 100  # something is written above


def test_one_axis_has_the_other_settings_as_rows(server, tmp_path):
    out = tmp_path / "out"
    Sweep(counted(tmp_path), out, {"1.strength": [0, 1, 2]}, grid=["1.value=50,90"], servers=[server.url]).run()
    [sheet] = [Image.open(path) for path in (out / "grids").iterdir()]
    assert sheet.height > 3 * 128


def test_a_job_that_fails_keeps_node_and_sentence(server, tmp_path, capsys):
    workflow = tmp_path / "workflow.json"
    workflow.write_text(json.dumps(counted(tmp_path, fails_at=3)))
    call = [str(workflow), "--set", "TestCounted.value=1..5", "--servers", server.url, "-o", str(tmp_path / "out")]
    assert main(call) == 1
    assert "4 of 5 jobs done, 1 failed" in capsys.readouterr().out
    lines = table(tmp_path / "out")
    assert [line["state"] for line in lines] == ["done", "done", "failed", "done", "done"]
    assert lines[2]["node"] == "1 (TestCounted)"
    assert lines[2]["error"] == "ValueError: 3 is not to be had <b>"
    assert sorted(shown(tmp_path / "out").values()) == [1, 2, 4, 5]
    assert main(call) == 1
    assert made(tmp_path).count(3) == 1  # it would fail again
    assert main([*call, "--retry"]) == 1
    assert made(tmp_path).count(3) == 2
    assert sorted(made(tmp_path)) == [1, 2, 3, 3, 4, 5]


def test_a_prompt_with_an_invalid_branch_fails_as_a_whole(server, tmp_path):
    workflow = counted(tmp_path)
    workflow["3"] = {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}
    sweep = Sweep(workflow, tmp_path / "out", servers=[server.url])
    assert sweep.run().failed == 1
    [row] = sweep.rows()
    assert row.node == "3 (SaveImage)"
    assert row.error == "Required input is missing: images"


def test_dry_run_does_the_first_job(server, tmp_path, capsys):
    workflow = tmp_path / "workflow.json"
    workflow.write_text(json.dumps(counted(tmp_path)))
    call = [str(workflow), "--set", "TestCounted.value=1..40", "--servers", server.url, "-o", str(tmp_path / "out")]
    for _ in range(2):
        assert main([*call, "--dry-run"]) == 0
        said = capsys.readouterr().out.splitlines()
        assert said[:-1] == [f"TestCounted.value={value}" for value in range(1, 41)]
        assert re.fullmatch(r"40 jobs; one took 0\.\d s, so 0:0\d for those that are left", said[-1])
        assert made(tmp_path) == [1]
    assert main(call) == 0
    assert sorted(made(tmp_path)) == list(range(1, 41))


EVIL = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)> & \"quotes\" 'more'",
    "../../etc/passwd",
    "..\\..\\CON.",
    "=cmd|' /C calc'!A0",
    "\x1b[31mred\u202e\u2028\x07 \U0001f600",
    "a" * 5000,
    "-->",
]


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)


def test_prompts_and_titles_are_data(server, tmp_path):
    out = tmp_path / "out" / "in"
    workflow = counted(tmp_path)
    workflow["1"]["_meta"]["title"] = EVIL[0]
    workflow["3"] = {"class_type": "TestSays", "inputs": {"text": "", "filename": "", "image": ["1", 0]}}
    workflow["3"]["_meta"] = {"title": "../<b>says"}
    settings = {f"{EVIL[0]}.note": EVIL, "3.text": ["<script>alert(2)</script>"]}
    assert Sweep(workflow, out, settings, grid={"1.value": [1, 2]}, servers=[server.url]).run().done == len(EVIL) * 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["in"]
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["files", "grids"]
    files = list((out / "files").iterdir())
    assert len(files) == 4 * len(EVIL)  # an image and a text each
    for path in files:
        assert re.fullmatch(r"\d{5}_[\w\-+=,.]+_\d+\.(png|txt)", path.name)
        assert len(path.name.encode()) < 200
        assert path.is_file()
    page = (out / "index.html").read_text("utf-8")
    expected = ["html", "head", "meta", "meta", "meta", "title", "style", "body", "header", "h1", "div", "div", "main"]
    assert Page(page).tags == [*expected, "button", "script", "script", "script"]
    assert "alert(1)>" not in page
    assert page.count("</script>") == 3
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    notes = [row["settings"][0] for row in data["rows"][::2]]
    assert notes == [text if len(text) < 2000 else f"{text[:1997]}..." for text in EVIL]
    assert all(href.startswith("files/") and "<" not in href for row in data["rows"] for _, href in row["files"])
    first_column = [line[f"{EVIL[0]}.note"] for line in table(out)][::2]
    assert first_column[4] == "'" + EVIL[4]
    assert first_column[0] == EVIL[0]
    assert {line["text"] for line in table(out)} == {"<script>alert(2)</script>"}


@pytest.mark.parametrize("filename", ["../../up.png", "/etc/passwd", "nowhere.html"])
def test_a_file_that_cannot_be_had_is_the_jobs_end(server, tmp_path, filename):
    workflow = {"3": {"class_type": "TestSays", "inputs": {"text": "hello", "filename": filename}}}
    sweep = Sweep(workflow, tmp_path / "out", servers=[server.url])
    assert sweep.run().failed == 1
    [row] = sweep.rows()
    assert row.node == "3 (TestSays)"
    assert "cannot be had: status 4" in row.error
    assert list((tmp_path / "out" / "files").iterdir()) == []


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
from guidekit.sweep.command import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit for the size of a file")
def test_a_disk_that_is_full_stops_the_sweep(server, tmp_path):
    workflow = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 0}},
        "2": {"class_type": "SaveImage", "inputs": {"filename_prefix": "made", "images": ["1", 0]}},
        "3": {
            "class_type": "ImageScaleBy",
            "inputs": {"upscale_method": "bicubic", "scale_by": 1.0, "image": ["1", 0]},
        },
    }
    workflow["4"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 1024, "height": 1024, "batch_size": 1}}
    workflow["5"] = {"class_type": "SaveLatent", "inputs": {"filename_prefix": "latent", "samples": ["4", 0]}}
    (tmp_path / "workflow.json").write_text(json.dumps(workflow))
    call = [sys.executable, "-c", FULL, str(tmp_path / "workflow.json"), "--set", "EmptyImage.color=1..50"]
    ended = subprocess.run(
        [*call, "--servers", server.url, "-o", str(tmp_path / "out")], capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert re.search(r"cannot be written: (File too large|.*full|.*I/O)", ended.stderr)
    assert "Traceback" not in ended.stderr
    assert server.get("/queue") == {"queue_running": [], "queue_pending": []}
    sweep = Sweep(workflow, tmp_path / "out", {"EmptyImage.color": range(1, 51)}, servers=[server.url])
    assert sweep.run().done == 50  # with more room


def test_no_server_answers_any_more(server, tmp_path):
    raised = []
    with new_server() as killed:
        sweep = Sweep(
            counted(tmp_path, free=5), tmp_path / "out", {"1.value": range(9)}, servers=[killed.url], patience=1
        )

        def run():
            try:
                sweep.run()
            except StoppedError as error:
                raised.append(str(error))

        running = threading.Thread(target=run)
        running.start()
        wait_for(lambda: 6 in made(tmp_path) and finished(tmp_path / "out") == 6)
        killed.process.process.kill()
        running.join(300)
    assert "No server has answered for 0:01" in raised[0]
    assert "3 jobs are left" in raised[0]
