"""Votes without a page: over the routes, by rule, in folders; what is refused, and that it changes nothing."""

import contextlib
import csv
import http.client
import io
import json
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from guidekit.demo.server import Server
from guidekit.sweep import PromptError, ServerError

FILTER = {"tag": "", "model_name": "", "lora_name": "", "last_days": 0, "from_date": "", "to_date": ""}
CHOICE = {**FILTER, "balance": "off", "hold_out": 0.25, "random_seed": 0}
TEXT = "a large ball on grass <b>&amp;"


@pytest.fixture(scope="module")
def server():
    nodes, cors = [Path(__file__).parent / "scoring_nodes"], ["--enable-cors-header", "http://elsewhere.example"]
    with Server(extra_nodes=nodes, options=cors) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_left(server):
    yield
    while ids := [image["id"] for image in server.get("/guidekit/votes")["images"]]:
        assert post(server, {"do": "delete", "ids": ids})[0] == 200


def graph(batch: int = 8, seed: int = 7, **last) -> dict:
    """Images, and a node that shows them as `last`."""
    sampler = {"steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    links = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0]}
    nodes = {
        "1": ("GuidekitDemoModel", {"family": "unet"}),
        "2": ("CLIPTextEncode", {"clip": ["1", 1], "text": TEXT}),
        "3": ("CLIPTextEncode", {"clip": ["1", 1], "text": ""}),
        "4": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": batch}),
        "5": ("KSampler", {**sampler, **links, "seed": seed, "latent_image": ["4", 0]}),
        "6": ("VAEDecode", {"samples": ["5", 0], "vae": ["1", 2]}),
        "7": (last.pop("kind", "GuidekitVote"), {"images": ["6", 0], "samples": ["5", 0], **links, "tag": "", **last}),
    }
    return {node_id: {"class_type": kind, "inputs": inputs} for node_id, (kind, inputs) in nodes.items()}


def one(kind: str, **inputs) -> dict:
    return {"1": {"class_type": kind, "inputs": inputs}}


def offered(server, **settings) -> list[str]:
    return [image["id"] for image in server.run(graph(**settings))["7"]["guidekit_votes"]]


def post(server, body, **headers) -> tuple[int, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
    return answer(urllib.request.Request(f"{server.url}/guidekit/votes", data, headers))


def answer(request) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(request) as found:
            return found.status, json.load(found)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def counts(server, **wanted) -> dict:
    query = "&".join(f"{name}={value}" for name, value in wanted.items())
    return server.get(f"/guidekit/votes?{query}")["counts"]


def test_shown_voted_loaded(server):
    ids = offered(server, batch=12)
    assert counts(server) == {"liked": 0, "disliked": 0, "undecided": 12}
    status, found = post(server, {"do": "vote", "ids": ids[:6], "vote": 1})
    assert (status, [image["vote"] for image in found["images"]]) == (200, [1] * 6)
    post(server, {"do": "vote", "ids": ids[6:11], "vote": -1})
    image = server.get("/guidekit/votes?votes=liked")["images"][0]
    wanted = {"text": TEXT, "negative_text": "", "seed": "7", "sampler": "euler", "steps": 2, "cfg": 3.0}
    assert wanted.items() <= image.items()
    assert image["model"] == "GuidekitDemoModel unet"
    with urllib.request.urlopen(f"{server.url}/guidekit/votes?image={ids[0]}") as found:
        assert found.headers["Content-Type"] == "image/png"
        assert found.headers["X-Content-Type-Options"] == "nosniff"
        assert np.asarray(Image.open(io.BytesIO(found.read()))).shape == (64, 64, 3)
    report = server.run(one("GuidekitVotes", **CHOICE) | {"2": shown("1", 1)})["2"]["text"][0]
    assert report.startswith("6 likes and 5 dislikes, ")
    assert "5 pairs within a prompt." in report
    assert "Warning" not in report
    # What a vote node shows again is what it is by now.
    again = server.run(graph(batch=12))["7"]["guidekit_votes"]
    assert [each["vote"] for each in again] == [1] * 6 + [-1] * 5 + [0]


def shown(node: str, slot: int) -> dict:
    return {"class_type": "PreviewAny", "inputs": {"source": [node, slot]}}


UNKNOWN = "0" * 64


@pytest.mark.parametrize(
    ("body", "headers", "status", "sentence"),
    [
        ({"do": "vote", "ids": [UNKNOWN], "vote": 1}, {}, 404, "1 of 1 ids are of no image that was shown here"),
        ({"do": "vote", "ids": ["OWN", UNKNOWN], "vote": 1}, {}, 404, "1 of 2 ids"),
        ({"do": "delete", "ids": ["../../votes.sqlite"]}, {}, 404, "There is an id that this server has never given"),
        ({"do": "vote", "ids": [7], "vote": 1}, {}, 404, "There is an id that this server has never given"),
        ({"do": "vote", "ids": [], "vote": 1}, {}, 400, "ids is not a list of 1 to 500 ids"),
        ({"do": "vote", "ids": [UNKNOWN] * 501, "vote": 1}, {}, 400, "ids is not a list of 1 to 500 ids"),
        ({"do": "vote", "ids": "OWN", "vote": 1}, {}, 400, "ids is not a list"),
        ({"do": "vote", "ids": ["OWN"], "vote": 2}, {}, 400, "vote is not 1 (like)"),
        ({"do": "vote", "ids": ["OWN"], "vote": True}, {}, 400, "vote is not 1 (like)"),
        ({"do": "tag", "ids": ["OWN"], "tag": "x" * 101}, {}, 400, "tag is not a text of up to 100"),
        ({"do": "sing", "ids": ["OWN"]}, {}, 400, "do is not one of vote, tag, delete and export"),
        ({"do": "export", "votes": ["liked"]}, {}, 400, "A filter of an export is not a text"),
        ({"do": "export", "votes": "best"}, {}, 400, "votes is 'best'"),
        ([], {}, 400, "not a JSON object"),
        (b"{", {}, 400, "not JSON"),
        (b'{"do": "vote", "do": "delete"}', {}, 400, "names something twice"),
        (b"\xff\xfe", {}, 400, "not JSON"),
        (b"[" * 60_000, {}, 400, "nested too deeply"),
        (b" " * 70_000, {}, 413, "longer than 65536 bytes"),
        ({"do": "vote", "ids": ["OWN"], "vote": 1}, {"Content_Type": "text/plain"}, 415, "application/json"),
        ({"do": "vote", "ids": ["OWN"], "vote": 1}, {"Origin": "http://elsewhere.example"}, 403, "another origin"),
        ({"do": "vote", "ids": ["OWN"], "vote": 1}, {"Origin": "null"}, 403, "another origin"),
        ({"do": "vote", "ids": ["OWN"], "vote": 1}, {"Sec_Fetch_Site": "same-site"}, 403, "another origin"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_refused_requests_say_why_and_change_nothing(server, body, headers, status, sentence):
    ids = offered(server, batch=2)
    post(server, {"do": "vote", "ids": ids[:1], "vote": -1})
    if isinstance(body, dict) and "ids" in body:
        own = ids[0]
        given = body["ids"]
        body = {**body, "ids": own if given == "OWN" else [own if each == "OWN" else each for each in given]}
    found, said = post(server, body, **headers)
    assert (found, [*said]) == (status, ["error"])
    assert sentence in said["error"]
    assert counts(server) == {"liked": 0, "disliked": 1, "undecided": 1}


def test_pages_of_this_server_and_other_programs_may_vote(server):
    [own] = offered(server, batch=1)
    body = {"do": "vote", "ids": [own], "vote": 1}
    assert post(server, body)[0] == 200
    assert post(server, body, Origin=server.url)[0] == 200
    assert post(server, body, Origin=server.url, Sec_Fetch_Site="same-origin")[0] == 200


@pytest.mark.parametrize(
    ("query", "status", "sentence"),
    [
        ("image=..%2Fvotes.sqlite", 404, "There is an id that this server has never given"),
        (f"image={UNKNOWN}", 404, "of no image that was shown here"),
        ("votes=best", 400, "votes is 'best'"),
        ("from_date=now", 400, "from_date is 'now'"),
        ("to_date=2026-02-30", 400, "to_date is '2026-02-30'"),
        ("after=1", 400, "after is not the `next` of an earlier answer"),
    ],
)
def test_refused_questions(server, query, status, sentence):
    found, said = answer(urllib.request.Request(f"{server.url}/guidekit/votes?{query}"))
    assert found == status
    assert sentence in said["error"]


def test_pages_from_elsewhere_see_nothing(server):
    [own] = offered(server, batch=1)
    for query in ("", f"image={own}", "workflow=w&node=7"):
        address = f"{server.url}/guidekit/votes?{query}"
        status, said = answer(urllib.request.Request(address, headers={"Sec-Fetch-Site": "cross-site"}))
        assert (status, "another origin" in said["error"]) == (403, True)


def test_what_is_text_stays_text(server):
    """In JSON, as it was given; a tag without markup, and without what steers a terminal."""
    [own] = offered(server, batch=1)
    post(server, {"do": "tag", "ids": [own], "tag": "<b>\x1b[31m"})
    [image] = server.get("/guidekit/votes")["images"]
    assert "<" not in image["tag"]
    assert "\x1b" not in image["tag"]


def test_eight_clients_at_once(server):
    """On one image, and on 500: nothing lost, nothing double."""
    ids = [image_id for seed in range(4) for image_id in offered(server, batch=125, seed=seed)]
    assert len(set(ids)) == 500
    with ThreadPoolExecutor(8) as clients:
        own = [(each, 1 if i % 3 else -1) for i, each in enumerate(ids)]
        on_all = clients.map(lambda vote: post(server, {"do": "vote", "ids": [vote[0]], "vote": vote[1]})[0], own)
        assert set(on_all) == {200}
        on_one = clients.map(lambda vote: post(server, {"do": "vote", "ids": ids[:1], "vote": vote})[0], [1, -1] * 20)
        assert set(on_one) == {200}
    found = counts(server)
    assert found["undecided"] == 0
    assert found["liked"] + found["disliked"] == 500
    disliked = len([None for i in range(1, 500) if i % 3 == 0])
    assert found["disliked"] - disliked in (0, 1)


@pytest.mark.skipif(not hasattr(psutil, "RLIMIT_FSIZE"), reason="there is no limit of this kind")
def test_a_full_disk(server):
    """A sentence for the page and one for the graph; then all goes on."""
    ids = offered(server, batch=2)
    post(server, {"do": "vote", "ids": ids, "vote": 1})
    # Sampled before, since the sampler's progress bar would find no room in the log.
    post(server, {"do": "delete", "ids": offered(server, batch=1, seed=99)})
    process = server.process.process
    before = process.rlimit(psutil.RLIMIT_FSIZE)
    try:
        process.rlimit(psutil.RLIMIT_FSIZE, (1000, before[1]))
        status, said = post(server, {"do": "vote", "ids": ids, "vote": -1})
        assert status == 507
        assert "Make room on the disk. What was there is as it was." in said["error"]
        with pytest.raises(PromptError, match="The image cannot be saved in .* What was there is as it was"):
            server.run(graph(batch=1, seed=99))
    finally:
        process.rlimit(psutil.RLIMIT_FSIZE, before)
    assert counts(server) == {"liked": 2, "disliked": 0, "undecided": 0}
    assert post(server, {"do": "vote", "ids": ids, "vote": -1})[0] == 200
    assert len(offered(server, batch=1, seed=99)) == 1


def test_a_server_that_is_killed_while_clients_vote_and_images_are_saved(tmp_path):
    """Every vote that was answered is there, and every image that is there is whole."""
    options, answered = ["--user-directory", str(tmp_path)], {}

    def vote(each: str) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):  # the server is gone
            if post(running, {"do": "vote", "ids": [each], "vote": 1})[0] == 200:
                answered[each] = 1

    def show() -> None:
        with contextlib.suppress(ServerError):
            running.run(graph(batch=500, seed=1))

    with Server(options=options) as running, ThreadPoolExecutor(8) as clients:
        ids = offered(running, batch=200)
        shows = clients.submit(show)
        votes = [clients.submit(vote, each) for each in ids]
        while len(answered) < 20:
            votes[len(answered)].result()
        running.process.process.kill()
        wait([shows, *votes])
    assert 20 <= len(answered) < len(ids)
    with Server(options=options) as again:
        liked = everything(again, votes="liked")
        assert {*answered} <= {image["id"] for image in liked}
        assert len(liked) - len(answered) <= 8  # in the middle of which it was
        for image in everything(again, votes="all"):
            with urllib.request.urlopen(f"{again.url}/guidekit/votes?image={image['id']}") as found:
                assert np.asarray(Image.open(io.BytesIO(found.read()))).shape == (64, 64, 3)
        assert post(again, {"do": "vote", "ids": ids, "vote": -1})[0] == 200


def everything(server, **wanted) -> list[dict]:
    found, after = [], ""
    while after is not None:
        page = server.get("/guidekit/votes?" + urllib.parse.urlencode({**wanted, "after": after}))
        found, after = found + page["images"], page["next"]
    return found


def test_by_rule_exported_imported(server):
    """A taste in one workflow, without a page; then as a folder, and back."""
    rule = {"threshold": 0.5, "likes": "above the threshold", "margin": 0.05, "score": ["0", 0]}
    prompt = graph(batch=6, kind="GuidekitVoteByRule", **rule)
    prompt["0"] = {"class_type": "TestScores", "inputs": {"values": "0.9\n0.1\n0.8\n0.2\n0.5\n0.7"}}
    prompt["8"] = {"class_type": "GuidekitVotes", "inputs": {**CHOICE, "after": ["7", 0]}}
    prompt["9"] = shown("8", 1)
    prompt["10"] = {"class_type": "GuidekitExportVotes", "inputs": {**FILTER, "name": "mine", "after": ["7", 0]}}
    found = server.run(prompt)
    assert found["7"]["text"] == ["3 liked, 2 disliked, 1 without a vote."]
    assert found["9"]["text"][0].startswith("3 likes and 2 dislikes")
    assert found["10"]["text"] == ["3 likes, 2 dislikes and 2 pairs are in output/guidekit/mine."]
    before = server.get("/guidekit/votes?votes=decided")["images"]

    folder = server.process.output / "guidekit" / "mine"
    assert len([*(folder / "liked").glob("*.png")]) == 3
    [text] = {path.read_text() for path in folder.rglob("*.txt")}
    assert text == TEXT
    rows = [*csv.reader((folder / "pairs.csv").open())]
    assert rows[0] == ["prompt", "chosen", "rejected"]
    assert len(rows) == 3
    assert all((folder / path).is_file() for row in rows[1:] for path in row[1:])
    assert [[path.split("/")[0] for path in row[1:]] for row in rows[1:]] == [["liked", "disliked"]] * 2
    lines = [json.loads(line) for line in (folder / "votes.jsonl").read_text().splitlines()]
    assert sorted(line["label"] for line in lines) == [-1, -1, 1, 1, 1]
    assert all(line["noise"]["seed"] == line["seed"] == 7 and line["cfg"] == 3.0 for line in lines)
    assert json.loads(Image.open(folder / lines[0]["file"]).text["prompt"]) == prompt

    # Known ones are kept once; of a server that knows none, they come back as they were, but for what is no file.
    report = server.run(one("GuidekitImportVotes", folder="output/guidekit/mine", tag=""))["1"]["text"][0]
    assert report == "3 likes and 2 dislikes were taken from output/guidekit/mine; 0 of the images are new."
    post(server, {"do": "delete", "ids": [image["id"] for image in server.get("/guidekit/votes")["images"]]})
    server.run(one("GuidekitImportVotes", folder="output/guidekit/mine", tag=" "))
    again = server.get("/guidekit/votes?votes=decided")["images"]
    keep = ("id", "vote", "text", "seed", "cfg", "model")
    assert sorted([each[key] for key in keep] for each in again) == sorted([e[key] for key in keep] for e in before)

    # Their latents and prompts are encoded again.
    with pytest.raises(PromptError, match=r"5 votes are left out: they came without a latent \(connect the VAE\)"):
        server.run(one("GuidekitVotes", **CHOICE) | {"2": shown("1", 1)})
    demo = {"0": {"class_type": "GuidekitDemoModel", "inputs": {"family": "unet"}}}
    loader = one("GuidekitVotes", **CHOICE, vae=["0", 2], clip=["0", 1])
    report = server.run(demo | loader | {"2": shown("1", 1)})["2"]["text"][0]
    assert report.startswith("3 likes and 2 dislikes")
