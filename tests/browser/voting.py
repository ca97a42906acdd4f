"""Actions of a user who votes, and what they see of votes."""

import json
import time
import urllib.request
from contextlib import suppress

from guidekit.tests.browser.chromium import PageError

CLASS = "GuidekitVote"
# Of all such nodes, or the first: each image's vote, and whether a person sees it.
_BY_ID = "filter((each) => each.type === '{}').sort((one, other) => one.id - other.id)"  # a click reorders the nodes
_SHOWN_BY = (
    f"app.graph.nodes.{_BY_ID.format(CLASS)}"
    + """.map((node) => {
  const element = node?.widgets?.find((each) => each.name === "guidekit_votes")?.element
  return [...(element?.children ?? [])].map((card) => {
    const { width, height } = card.getBoundingClientRect()
    const image = card.querySelector("img")
    const seen = width > 20 && height > 20 && image.complete && image.naturalWidth > 0
    return { id: card.dataset.id, vote: card.dataset.vote, seen }
  })
})"""
)
SHOWN, ALL_SHOWN = f"({_SHOWN_BY})[0]", _SHOWN_BY
TAB = """[...document.querySelectorAll(".guidekit-taste .guidekit-card")].map((card) =>
  ({ id: card.dataset.id, vote: card.dataset.vote }))"""
COUNTS = "document.querySelector('.guidekit-counts')?.textContent"
SAID = "document.querySelector('.guidekit-said')?.textContent"
LIKE, DISLIKE = (f'button[aria-label^="{word}"]' for word in ("Like", "Dislike"))
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
    _click(frontend, f"document.querySelector({selector!r})")


def press(frontend, label: str) -> None:
    """A button of the tab."""
    buttons = "[...document.querySelectorAll('.guidekit-taste button')]"
    _click(frontend, f"{buttons}.find((each) => each.textContent === {label!r})")


def _click(frontend, element: str) -> None:
    place = frontend.page.until(
        f"""(async () => {{
          const element = {element}
          if (element?.closest(".guidekit-taste")) element.scrollIntoView({{ block: "nearest" }})
          const before = element?.getBoundingClientRect()
          for (let i = 0; i < 3; i++) await new Promise(requestAnimationFrame)
          const box = element?.getBoundingClientRect()
          if (!box?.width || box.x !== before.x || box.y !== before.y) return null  // not there, or moving
          const place = {{ x: box.x + box.width / 2, y: box.y + box.height / 2 }}
          const top = document.elementFromPoint(place.x, place.y)
          return (element.contains(top) || top?.contains(element)) && place
        }})()"""
    )
    for kind in ("mousePressed", "mouseReleased"):
        frontend.page("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)


def vote(frontend, labels: dict[str, int], place: str = "") -> None:
    """With the mouse, on images without a vote: 1 likes, -1 dislikes. As people do, presses again where nothing has
    come of it: a frontend that redraws the node between press and release loses a click."""
    for image_id, label in labels.items():
        said = "liked" if label > 0 else "disliked"
        shown = f"document.querySelector({card(image_id, place)!r}).dataset.vote"
        for _ in range(3):
            click(frontend, f"{card(image_id, place)} {LIKE if label > 0 else DISLIKE}")
            with suppress(PageError):
                frontend.page.until(f"{shown} !== 'undecided'", 10)
                break
        assert frontend.page.run(shown) == said


def open_tab(frontend) -> None:
    frontend.page.run("app.extensionManager.sidebarTab.toggleSidebarTab('guidekit-taste')")
    frontend.page.until(COUNTS)


def type_text(frontend, selector: str, text: str) -> None:
    """In the place of what is there."""
    click(frontend, selector)
    frontend.page.run(f"document.querySelector({selector!r}).select()")
    frontend.page("Input.dispatchKeyEvent", type="keyDown", key="Backspace", code="Backspace", windowsVirtualKeyCode=8)
    frontend.page("Input.dispatchKeyEvent", type="keyUp", key="Backspace", code="Backspace", windowsVirtualKeyCode=8)
    if text:
        frontend.page("Input.insertText", text=text)


def type_date(frontend, name: str, date: str) -> None:
    """Digit by digit, as people do: month, day and year."""
    field = f".guidekit-taste [name={name}]"
    frontend.page.run(f"document.querySelector({field!r}).value = ''")
    year, month, day = date.split("-")
    frontend.page.run(f"document.querySelector({field!r}).focus()")
    for digit in month + day + year:
        frontend.page("Input.dispatchKeyEvent", type="keyDown", key=digit, text=digit)
        frontend.page("Input.dispatchKeyEvent", type="keyUp", key=digit)
    assert frontend.page.run(f"document.querySelector({field!r}).value") == date


def empty_date(frontend, name: str) -> None:
    frontend.page.run(
        f"""(() => {{
          const field = document.querySelector(".guidekit-taste [name={name}]")
          field.value = ""
          field.dispatchEvent(new Event("change"))
        }})()"""
    )


def look_at(frontend, kind: str = CLASS, which: int = 0, scale: float = 1.0) -> None:
    """At a node of a type."""
    frontend.page.run(
        f"""(() => {{
          const node = app.graph.nodes.{_BY_ID.format(kind)}[{which}]
          const {{ width }} = app.canvas.canvas.getBoundingClientRect()
          app.canvas.ds.scale = {scale}
          app.canvas.ds.offset = [width / 2 / {scale} - node.pos[0] - node.size[0] / 2, 120 / {scale} - node.pos[1]]
          app.canvas.setDirty(true, true)
        }})()"""
    )
    time.sleep(0.7)


def card(image_id: str, place: str = "") -> str:
    return f'{place} .guidekit-card[data-id="{image_id}"]'.strip()


def votes_of(frontend, where: str = SHOWN) -> dict[str, str]:
    return {each["id"]: each["vote"] for each in frontend.page.run(where)}


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


def delete_all(server) -> None:
    """For the next test, whose noise is the same."""
    while ids := [image["id"] for image in server.get("/guidekit/votes")["images"]]:
        body = json.dumps({"do": "delete", "ids": ids}).encode()
        request = urllib.request.Request(f"{server.url}/guidekit/votes", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request).close()
