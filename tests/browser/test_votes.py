"""Votes in the page: with mouse and keyboard, on the node and in the tab, and there again after a reload."""

import json
import time
import urllib.request

import pytest

pytest.importorskip("guidekit.tests.browser.frontend")

CLASS = "GuidekitVote"
# Of the node: each image's vote, and whether a person sees it.
SHOWN = """(() => {
  const node = app.graph.nodes.find((each) => each.type === "GuidekitVote")
  const element = node?.widgets?.find((each) => each.name === "guidekit_votes")?.element
  return [...(element?.children ?? [])].map((card) => {
    const { width, height } = card.getBoundingClientRect()
    const image = card.querySelector("img")
    const seen = width > 20 && height > 20 && image.complete && image.naturalWidth > 0
    return { id: card.dataset.id, vote: card.dataset.vote, seen }
  })
})()"""
TAB = """[...document.querySelectorAll(".guidekit-taste .guidekit-card")].map((card) =>
  ({ id: card.dataset.id, vote: card.dataset.vote }))"""
COUNTS = "document.querySelector('.guidekit-counts')?.textContent"
ADDED = """(() => {
  const add = (type, x, y) => {
    const node = LiteGraph.createNode(type)
    node.pos = [x, y]
    app.graph.add(node)
    return node
  }
  for (const node of [...app.graph.nodes]) app.graph.remove(node)
  const demo = add("GuidekitDemoModel", 0, 100)
  const [positive, negative] = [add("CLIPTextEncode", 350, 0), add("CLIPTextEncode", 350, 250)]
  const [empty, sampler] = [add("EmptyLatentImage", 350, 500), add("KSampler", 800, 0)]
  const [decoded, vote] = [add("VAEDecode", 800, 400), add("GuidekitVote", 1150, 0)]
  const set = (node, name, value) => (node.widgets.find((each) => each.name === name).value = value)
  set(positive, "text", "a large ball on grass by day <img src=x onerror='window.hacked = true'>")
  for (const name of ["width", "height"]) set(empty, name, 64)
  set(empty, "batch_size", 6)
  set(sampler, "seed", 0)
  set(sampler, "steps", 4)
  set(sampler, "cfg", 3)
  const to = (node, name) => node.inputs.findIndex((each) => each.name === name)
  const link = (from, slot, node, name) => from.connect(slot, node, to(node, name))
  for (const prompt of [positive, negative]) link(demo, 1, prompt, "clip")
  link(demo, 0, sampler, "model")
  link(positive, 0, sampler, "positive")
  link(negative, 0, sampler, "negative")
  link(empty, 0, sampler, "latent_image")
  link(sampler, 0, decoded, "samples")
  link(demo, 2, decoded, "vae")
  link(decoded, 0, vote, "images")
  link(sampler, 0, vote, "samples")
  link(demo, 0, vote, "model")
  link(positive, 0, vote, "positive")
  link(negative, 0, vote, "negative")
})()"""


def press_on(frontend, selector: str, key: str) -> None:
    """As a user does who has clicked there before: the key goes to what has the focus."""
    frontend.page.run(f"document.querySelector({selector!r}).focus()")
    frontend.page("Input.dispatchKeyEvent", type="keyDown", key=key, text=key if len(key) == 1 else "")
    frontend.page("Input.dispatchKeyEvent", type="keyUp", key=key)


def click(frontend, selector: str) -> None:
    """A real one, where it lies."""
    place = frontend.page.until(
        f"""(() => {{
          const box = document.querySelector({selector!r})?.getBoundingClientRect()
          return box?.width && {{ x: box.x + box.width / 2, y: box.y + box.height / 2 }}
        }})()"""
    )
    for kind in ("mousePressed", "mouseReleased"):
        frontend.page("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)


def look_at(frontend) -> None:
    frontend.page.run(
        f"""(() => {{
          const node = app.graph.nodes.find((each) => each.type === "{CLASS}")
          const {{ width }} = app.canvas.canvas.getBoundingClientRect()
          app.canvas.ds.scale = 1
          app.canvas.ds.offset = [width / 2 - node.pos[0] - node.size[0] / 2, 120 - node.pos[1]]
          app.canvas.setDirty(true, true)
        }})()"""
    )
    time.sleep(0.7)


def card(image_id: str, place: str = "") -> str:
    return f'{place} .guidekit-card[data-id="{image_id}"]'.strip()


def votes_of(frontend, where: str = SHOWN) -> dict[str, str]:
    return {each["id"]: each["vote"] for each in frontend.page.run(where)}


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
    like, dislike = (f'button[aria-label^="{word}"]' for word in ("Like", "Dislike"))
    click(frontend, f"{card(first)} {like}")
    page.until(f"({SHOWN})[0].vote === 'liked'")
    click(frontend, f"{card(second)} {dislike}")
    page.until(f"({SHOWN})[1].vote === 'disliked'")
    click(frontend, f"{card(first)} {like}")
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
    page.run("app.extensionManager.sidebarTab.toggleSidebarTab('guidekit-taste')")
    page.until(f"({TAB}).length === 3")
    assert votes_of(frontend, TAB) == {first: "liked", second: "disliked", third: "liked"}
    assert page.run(COUNTS) == "2 liked, 1 disliked, 3 without a vote"
    click(frontend, f"{card(third, '.guidekit-taste')} {dislike}")
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
    page.run("[...document.querySelectorAll('.guidekit-taste button')].at(-1).click()")
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
    delete_all(frontend.server, ids)


def choose(frontend, name: str, value: str) -> None:
    frontend.page.until(
        f"""(() => {{
          const select = document.querySelector(".guidekit-taste [name={name}]")
          if (![...select.options].some((each) => each.value === {value!r})) return false
          select.value = {value!r}
          select.dispatchEvent(new Event("change"))
          return true
        }})()"""
    )


def delete_all(server, ids) -> None:
    """For the next test, whose noise is the same."""
    body = json.dumps({"do": "delete", "ids": [*ids]}).encode()
    request = urllib.request.Request(f"{server.url}/guidekit/votes", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(request).close()
