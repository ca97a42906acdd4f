"""Votes in the page: with mouse and keyboard, on the node and in the tab, and there again after a reload. The tab
filters, tags, exports and hands on to a trainer."""

import csv
import json
import shutil
import sqlite3
import time
from datetime import datetime, timedelta

import pytest

pytest.importorskip("guidekit.tests.browser.frontend")

from guidekit.demo.server import PACK
from guidekit.tests.browser.voting import (
    ADDED,
    COUNTS,
    DISLIKE,
    LIKE,
    SAID,
    SHOWN,
    TAB,
    card,
    choose,
    click,
    delete_all,
    empty_date,
    look_at,
    open_tab,
    press,
    press_on,
    type_date,
    type_text,
    vote,
    votes_of,
)


@pytest.fixture(autouse=True)
def nothing_is_left(server):
    yield
    delete_all(server)


def test_votes_in_the_node_and_in_the_tab(frontend, look):
    page = frontend.page
    page.run(ADDED)
    frontend.run()
    look_at(frontend)
    shown = page.until(f"(({SHOWN}).every(({{ seen }}) => seen) && ({SHOWN}).length === 6) ? {SHOWN} : null")
    first, second, third, *_ = ids = [each["id"] for each in shown]
    assert all(each["seen"] for each in shown)
    nodes = page.run("app.graph.nodes.length")

    page.screenshot(frontend._screenshots / "images to vote on.png")

    # Mouse: like, dislike, take back.
    vote(frontend, {first: 1, second: -1})
    click(frontend, f"{card(first)} {LIKE}")
    page.until(f"({SHOWN})[0].vote === 'undecided'")

    # Keyboard: from the first to the third, and back.
    press_on(frontend, card(first), "+")
    page.until(f"({SHOWN})[0].vote === 'liked'")
    for _ in range(2):
        page.press("ArrowRight")
    assert page.run("document.activeElement.dataset.id") == third
    press_on(frontend, ":focus", "-")
    page.until(f"({SHOWN})[2].vote === 'disliked'")
    press_on(frontend, ":focus", "0")
    page.until(f"({SHOWN})[2].vote === 'undecided'")
    press_on(frontend, ":focus", "+")
    page.until(f"({SHOWN})[2].vote === 'liked'")
    page.press("Delete")  # which is the graph's, but not here
    assert page.run("app.graph.nodes.length") == nodes
    page.screenshot(frontend._screenshots / "votes in the node.png")

    # The tab: the same votes; another one there is seen in the node.
    open_tab(frontend)
    page.until(f"({TAB}).length === 3")
    assert votes_of(frontend, TAB) == {first: "liked", second: "disliked", third: "liked"}
    assert page.run(COUNTS) == "2 liked, 1 disliked, 3 without a vote"
    click(frontend, f"{card(third, '.guidekit-taste')} {DISLIKE}")
    page.until(f"({SHOWN})[2].vote === 'disliked'")
    page.until(f"({COUNTS}).startsWith('1 liked, 2 disliked')")
    page.screenshot(frontend._screenshots / "the tab Taste.png")
    choose(frontend, "votes", "liked")
    page.until(f"({TAB}).length === 1")
    assert not page.run("!!window.hacked")

    # Delete, at the second press.
    remove = f"{card(first, '.guidekit-taste')} button[aria-label^=Delete]"
    click(frontend, remove)
    assert len(page.run(SHOWN)) == 6
    click(frontend, remove)
    page.until(f"({SHOWN}).length === 5")
    page.until(f"({COUNTS}).startsWith('0 liked, 2 disliked')")

    # Train from these: the loader, with the filter.
    choose(frontend, "votes", "decided")
    choose(frontend, "model", "GuidekitDemoModel unet")
    page.until(f"({TAB}).length === 2")  # below which the button comes to lie
    press(frontend, "Train from these")
    name = """app.graph.nodes.find((each) => each.type === "GuidekitVotes")?.widgets
      .find((each) => each.name === "model_name").value"""
    assert page.until(name) == "GuidekitDemoModel unet"

    # There again.
    page.run("app.extensionManager.sidebarTab.toggleSidebarTab('guidekit-taste')")
    time.sleep(2)  # for the frontend to keep what is open
    frontend.reload()
    page.until(f"({SHOWN}).length === 5")
    look_at(frontend)
    again = votes_of(frontend)
    assert again == {image_id: "disliked" if image_id in (second, third) else "undecided" for image_id in ids[1:]}
    assert "guidekit_votes" not in page.run("JSON.stringify(app.graph.serialize())")
    # Again with the same noise: votes are as they are by now, and what was deleted is shown anew.
    page.run("app.graph.nodes.find((each) => each.type === 'KSampler').widgets[0].value = 0")
    frontend.run()
    page.until(f"({SHOWN}).length === 6")
    assert votes_of(frontend) == {**again, first: "undecided"}


WITH_LORA = """(() => {
  const find = (type) => app.graph.nodes.find((each) => each.type === type)
  const [demo, sampler, vote] = ["GuidekitDemoModel", "KSampler", "GuidekitVote"].map(find)
  const loader = LiteGraph.createNode("LoraLoaderModelOnly")
  loader.pos = [350, 700]
  app.graph.add(loader)
  loader.widgets.find((each) => each.name === "lora_name").value = "one/soft.safetensors"
  const slot = (node) => node.inputs.findIndex((each) => each.name === "model")
  demo.connect(0, loader, slot(loader))
  for (const node of [sampler, vote]) loader.connect(0, node, slot(node))
  sampler.widgets.find((each) => each.name === "seed").value = 1
})()"""
# Pairs of nodes that lie over each other.
OVER = """(() => {
  const box = ({ pos, size }) => [pos[0], pos[1] - 30, pos[0] + size[0], pos[1] + size[1]]
  const over = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]
  const nodes = app.graph.nodes.filter(({ type }) => /Votes|Train/.test(type))
  return nodes.flatMap((one) => app.graph.nodes.filter((other) => one !== other && over(box(one), box(other))))
    .map(({ type }) => type)
})()"""
# Whether the loader and the trainer are seen whole, beside the tab.
INSIDE = """(() => {
  const tab = document.querySelector(".guidekit-taste").getBoundingClientRect()
  const { ds, canvas } = app.canvas
  const all = canvas.getBoundingClientRect()
  return app.graph.nodes.filter(({ type }) => /Votes|Train/.test(type)).every(({ pos, size }) => {
    const [left, top] = [0, 1].map((i) => (pos[i] + ds.offset[i]) * ds.scale)
    const [right, bottom] = [left + size[0] * ds.scale, top + size[1] * ds.scale]
    return left + all.left >= tab.right && right <= all.width && top >= 30 * ds.scale && bottom <= all.height
  })
})()"""
LOADER = """(() => {
  const loader = app.graph.nodes.find((each) => each.type === "GuidekitVotes")
  if (!loader) return null
  const link = app.graph.links.get?.(loader.outputs[0].links?.[0]) ?? app.graph.links[loader.outputs[0].links?.[0]]
  const values = Object.fromEntries(loader.widgets.map(({ name, value }) => [name, value]))
  return { values, to: app.graph.getNodeById(link?.target_id)?.type }
})()"""


@pytest.fixture
def lora(server):
    """A file of core's folder, so that there is a LoRA to filter by."""
    path = server.models / "loras" / "one" / "soft.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((PACK / "demo" / "weights" / "liked_unet.safetensors").read_bytes())
    return str(path.relative_to(server.models / "loras"))


def images_in(server) -> dict[str, tuple[int, str]]:
    """In the database, by id: the vote and the tag."""
    with sqlite3.connect(database(server)) as connection:
        return {key: (label, tag) for key, label, tag in connection.execute("SELECT id, label, tag FROM images")}


def database(server):
    return server.models.parent / "user" / "__guidekit" / "votes" / "votes.sqlite"


def test_the_tab_filters_tags_exports_and_hands_on(lora, frontend, look):
    page, server = frontend.page, frontend.server
    page.run(ADDED)
    frontend.run()
    look_at(frontend)
    seen = f"({SHOWN}).length === 6 && ({SHOWN}).every(({{ seen }}) => seen)"
    plain = [each["id"] for each in page.until(f"{seen} && {SHOWN}")]
    vote(frontend, dict(zip(plain, (1, -1, 1, -1))))
    page.run(WITH_LORA)
    frontend.run()
    look_at(frontend)
    changed = [each["id"] for each in page.until(f"({SHOWN})[0]?.id !== {plain[0]!r} && {seen} && {SHOWN}")]
    vote(frontend, dict(zip(changed, (-1, 1, 1, -1, -1))))
    page.until(f"({SHOWN})[4].vote === 'disliked'")
    ids, labels = {*plain[:4]}, dict(zip((*plain, *changed), (1, -1, 1, -1, 0, 0, -1, 1, 1, -1, -1, 0)))
    assert images_in(server) == {each: (label, "") for each, label in labels.items()}
    today = datetime.now()
    before, between, after = (f"{today - timedelta(days=days):%Y-%m-%d}" for days in (4, 2, 0))
    with sqlite3.connect(database(server)) as connection:
        earlier = (today - timedelta(days=4)).replace(hour=12).timestamp()
        connection.execute(f"UPDATE images SET voted = ? WHERE id IN ({','.join('?' * 4)})", (earlier, *ids))

    # Each filter by itself, and then none again.
    def shown(wanted: set[str]) -> None:
        page.until(f"({TAB}).map((each) => each.id).sort().join() === {','.join(sorted(wanted))!r}")

    open_tab(frontend)
    with_lora = {*changed[:5]}
    shown(ids | with_lora)
    choose(frontend, "lora", lora)
    shown(with_lora)
    choose(frontend, "lora", "")
    shown(ids | with_lora)
    type_date(frontend, "to_date", between)
    shown(ids)
    empty_date(frontend, "to_date")
    type_date(frontend, "from_date", between)
    shown(with_lora)
    assert page.run(COUNTS) == "2 liked, 3 disliked, 3 without a vote"
    empty_date(frontend, "from_date")
    for name, label in (("liked", 1), ("disliked", -1), ("undecided", 0)):
        choose(frontend, "votes", name)
        shown({each for each, given in labels.items() if given == label})
    frontend.shoot("the tab Taste, without a vote")

    # Tag what is seen: no more and no less is tagged, and the tag can be chosen at once.
    choose(frontend, "votes", "liked")
    choose(frontend, "lora", lora)
    liked = {changed[1], changed[2]}
    shown(liked)
    type_text(frontend, ".guidekit-taste [placeholder]", " best <b>")
    press(frontend, "Tag these")
    page.until(f"({SAID}).startsWith('2 images have the tag')")
    tags = {key for key, (_, tag) in images_in(server).items() if tag}
    assert tags == liked
    [tag] = {tag for _, tag in images_in(server).values() if tag}
    choose(frontend, "lora", "")
    choose(frontend, "votes", "all")
    choose(frontend, "tag", tag)
    shown(liked)
    choose(frontend, "tag", "")
    choose(frontend, "votes", "decided")

    # Export: what is chosen, whole.
    type_date(frontend, "to_date", between)
    shown(ids)
    press(frontend, "Export")
    page.until(f"({SAID}) === '2 likes, 2 dislikes and 2 pairs are in output/guidekit/taste.'")
    frontend.shoot("exported from the tab Taste")
    check_export(server.process.output / "guidekit" / "taste", {each: labels[each] for each in ids})
    empty_date(frontend, "to_date")
    choose(frontend, "votes", "liked")
    choose(frontend, "lora", lora)
    shown(liked)
    press(frontend, "Export")
    page.until(f"({SAID}) === '2 likes, 0 dislikes and 0 pairs are in output/guidekit/taste 2.'")
    check_export(server.process.output / "guidekit" / "taste 2", dict.fromkeys(liked, 1))
    type_date(frontend, "to_date", between)
    shown(set())
    press(frontend, "Export")
    page.until(f"({SAID}) === 'There is no vote to export.'")
    assert {path.name for path in (server.process.output / "guidekit").iterdir()} == {"taste", "taste 2"}
    [refused] = frontend.errors
    assert "status of 400" in refused
    frontend.page.errors.clear()

    # Train from these: every filter, but that for the vote, which is said.
    type_date(frontend, "from_date", before)
    type_date(frontend, "to_date", after)
    choose(frontend, "model", "GuidekitDemoModel unet")
    choose(frontend, "tag", tag)
    shown(liked)
    press(frontend, "Train from these")
    loader = page.until(LOADER)
    wanted = {"tag": tag, "model_name": "GuidekitDemoModel unet", "lora_name": lora}
    wanted |= {"from_date": before, "to_date": after, "last_days": 0}
    assert wanted.items() <= loader["values"].items()
    assert loader["to"] == "GuidekitTrainPreference"
    time.sleep(1)  # for the view to move
    assert page.run(OVER) == []
    assert page.run(INSIDE) is True
    assert page.run(SAID).endswith("The filter Vote is not passed on, since training takes likes and dislikes.")
    frontend.shoot("trained from the tab Taste")
    choose(frontend, "votes", "decided")
    press(frontend, "Train from these")
    page.until(f"({SAID}).endsWith('Connect the model.')")

    # A tag is taken off again.
    type_text(frontend, ".guidekit-taste [placeholder]", "")
    press(frontend, "Tag these")
    page.until(f"({SAID}) === '2 images have no tag now.'")
    assert images_in(server) == {each: (label, "") for each, label in labels.items()}
    assert not page.run("!!window.hacked")
    for folder in ("taste", "taste 2"):
        shutil.rmtree(server.process.output / "guidekit" / folder)


def check_export(folder, labels: dict[str, int]) -> None:
    for name, label in (("liked", 1), ("disliked", -1)):
        wanted = {each for each, given in labels.items() if given == label}
        assert {path.stem for path in (folder / name).glob("*.png")} == wanted
        assert {path.stem for path in (folder / name).glob("*.txt")} == wanted
    lines = [json.loads(line) for line in (folder / "votes.jsonl").read_text("utf-8").splitlines()]
    assert {line["id"]: line["label"] for line in lines} == labels
    assert all(line["model_name"] == "GuidekitDemoModel unet" for line in lines)
    with (folder / "pairs.csv").open(encoding="utf-8", newline="") as file:
        pairs = [*csv.DictReader(file)]
    both = min([*labels.values()].count(1), [*labels.values()].count(-1))
    assert len({row["chosen"] for row in pairs}) == len({row["rejected"] for row in pairs}) == both
    for row in pairs:
        assert (folder / row["chosen"]).parent.name == "liked"
        assert (folder / row["rejected"]).parent.name == "disliked"
