"""A taste is taught in the page: votes by mouse and keyboard, the training as it is seen, the LoRA as it is used."""

import json
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("guidekit.tests.browser.frontend")

from guidekit.templates.files import WORKFLOWS
from guidekit.tests.browser.voting import (
    ALL_SHOWN,
    SAID,
    TAB,
    card,
    click,
    delete_all,
    look_at,
    open_tab,
    press,
    press_on,
    type_text,
    vote,
)

VOTES, TRAINING = (f"Teach it your taste ({name}) - demo model" for name in ("votes", "Train Preference LoRA"))
TRAINER = "GuidekitTrainPreference"
SIZE, STEPS, EVERY = 6, 20, 10
# The image that a person sees in the trainer while it runs: its width and height.
SEEN = f"""(() => {{
  const node = app.graph.nodes.find((each) => each.type === "{TRAINER}")
  const own = document.querySelector(`[data-node-id="${{node.id}}"] img`)
  const image = own ?? node.imgs?.[0]
  return image?.complete && image.naturalWidth > 0 && [image.naturalWidth, image.naturalHeight]
}})()"""
USED = """(() => {
  const find = (type) => app.graph.nodes.filter((each) => each.type === type)
  const [demo] = find("GuidekitDemoModel")
  const loader = LiteGraph.createNode("LoraLoaderModelOnly")
  loader.pos = [demo.pos[0], demo.pos[1] + demo.size[1] + 60]
  app.graph.add(loader)
  const name = loader.widgets.find((each) => each.name === "lora_name")
  const choices = name.options.values
  name.value = (typeof choices === "function" ? choices() : choices).find((each) => each.includes("by hand"))
  const slot = (node) => node.inputs.findIndex((each) => each.name === "model")
  demo.connect(0, loader, slot(loader))
  for (const node of [...find("KSampler"), ...find("GuidekitVote")]) loader.connect(0, node, slot(node))
  return name.value
})()"""


@pytest.fixture(autouse=True)
def nothing_is_left(server):
    yield
    delete_all(server)


def opened(frontend, title: str) -> None:
    workflow = json.loads((WORKFLOWS / f"{title}.json").read_text("utf-8"))
    frontend.load(workflow, title)
    frontend.page.until(f"app.graph.nodes.length === {len(workflow['nodes'])}")


def by_hand(frontend) -> dict[str, int]:
    """Votes on the images of both nodes: with the mouse on those of the first, with keys on those of the second."""
    page = frontend.page
    page.until(f"({ALL_SHOWN}).every((images) => images.length === {SIZE})")
    first, second = ([each["id"] for each in images] for images in page.run(ALL_SHOWN))
    labels = dict(zip((*first, *second), (1, -1) * SIZE))
    look_at(frontend)
    vote(frontend, {each: labels[each] for each in first})
    look_at(frontend, which=1)
    click(frontend, f"{card(second[0])} img")
    for each in second:
        press_on(frontend, ":focus", "+" if labels[each] > 0 else "-")
        if each != second[-1]:
            page.press("ArrowRight")
    wanted = [["liked", "disliked"] * (SIZE // 2)] * 2
    page.until(
        f"JSON.stringify(({ALL_SHOWN}).map((all) => all.map(({{ vote }}) => vote))) === '{json.dumps(wanted)}'".replace(
            ", ", ","
        )
    )
    return labels


def test_a_taste_is_taught_and_used(frontend, look):
    page, server = frontend.page, frontend.server
    opened(frontend, VOTES)
    frontend.set("EmptyLatentImage", batch_size=SIZE)
    frontend.set("KSampler", steps=6)
    frontend.run()
    labels = by_hand(frontend)
    frontend.shoot("taught, the votes")
    open_tab(frontend)
    page.until(f"({TAB}).length === {2 * SIZE}")
    type_text(frontend, ".guidekit-taste [placeholder]", "by hand")
    press(frontend, "Tag these")
    page.until(f"({SAID}) === '{2 * SIZE} images have the tag by hand now.'")
    page.run("app.extensionManager.sidebarTab.toggleSidebarTab('guidekit-taste')")

    # The template, with these votes in the place of the rule's.
    opened(frontend, TRAINING)
    frontend.shoot("taught, the template")
    page.run(
        "app.graph.nodes.filter(({ type }) => /VoteByRule|Score/.test(type)).forEach((each) => each.graph.remove(each))"
    )
    frontend.set("GuidekitVotes", tag="by hand", hold_out=0)
    frontend.set(TRAINER, name="by hand", steps=STEPS, preview_every=EVERY, resume=False)
    frontend.set("KSampler", steps=6)
    look_at(frontend, TRAINER, scale=0.6)
    frontend.queue()
    small, _ = page.until(SEEN, 120)
    seen = page.until(f"({SEEN})?.[1] > 500 && ({SEEN})", 120)
    frontend.shoot("taught, while it trains")
    frontend.finish(240)
    look_at(frontend, TRAINER, scale=0.6)
    frontend.shoot("taught, the trainer")
    page.run("app.canvas.ds.scale = 0.5, app.canvas.ds.offset = [-1200, 100], app.canvas.setDirty(true, true), null")
    time.sleep(1)
    frontend.shoot("taught, at the end")
    assert small == seen[0] == 640
    said = frontend.texts()[frontend.node(TRAINER)]
    assert said.startswith("guidekit/by hand.safetensors: KTO on "), said
    assert f"{STEPS} steps" in said
    file = server.models / "loras" / "guidekit" / "by hand.safetensors"
    assert file.stat().st_size > 1000
    plain, taught = (image_of(server, name) for name in ("1_plain", "2_taught"))
    assert abs(taught - plain).max() > 2

    # The file, in the list of core's loader; what it makes can be voted on again.
    opened(frontend, VOTES)
    frontend.command("Comfy.RefreshNodeDefinitions")
    page.until(f"/by hand/.test(({USED}))")
    frontend.set("EmptyLatentImage", batch_size=SIZE)
    frontend.set("KSampler", steps=6)
    frontend.run()
    shown = page.until(f"(({ALL_SHOWN}).every((images) => images.length === {SIZE})) && {ALL_SHOWN}")
    again = {each["id"] for images in shown for each in images}
    assert not again & labels.keys()
    look_at(frontend)
    frontend.shoot("taught, used")


def image_of(server, name: str) -> np.ndarray:
    path = max((server.process.output / "guidekit").glob(f"{name}_*.png"), key=lambda each: each.stat().st_mtime)
    return np.asarray(Image.open(path)).astype(int)
