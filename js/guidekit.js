// Shows under each node what it has said of the last run of its workflow: as it is said, after a change of tab, a
// reload, a run in which everything was cached, and inside subgraphs. The text is kept by the server
// (nodes/host/run/told.py), not in the workflow.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { textsOf, Told } from "./told.js"

const EVENT = "guidekit.told"
const WIDGET = "guidekit_told"
const MARGIN = 10
const told = new Told()
const heights = new WeakMap()

app.registerExtension({
  name: "Guidekit.Told",
  async setup() {
    api.addEventListener(EVENT, ({ detail }) => {
      told.take(detail)
      show()
    })
    // What cached nodes said in an earlier prompt; what nodes do not say any more, as they have failed.
    api.addEventListener("execution_cached", ({ detail }) => detail.nodes.length && ask(detail.prompt_id))
    api.addEventListener("execution_error", () => ask())
    api.addEventListener("execution_interrupted", () => ask())
    api.addEventListener("reconnected", () => ask())
    await ask()
  },
  afterConfigureGraph: show,
})

async function ask(prompt) {
  const answer = await api.fetchApi("/guidekit/told" + (prompt ? `?prompt_id=${encodeURIComponent(prompt)}` : ""))
  if (!answer.ok) return
  for (const entry of (await answer.json()).entries) told.take(entry)
  show()
}

function show() {
  const graph = app.rootGraph ?? app.graph
  if (!graph) return
  const texts = textsOf(graph, told.entries(graph.id))
  for (const each of [graph, ...(graph.subgraphs?.values() ?? [])])
    for (const node of each.nodes ?? each._nodes) write(node, texts.get(node) ?? "")
}

function write(node, text) {
  let widget = node.widgets?.find((each) => each.name === WIDGET)
  if ((widget?.element.textContent ?? "") === text) return
  const before = widget ? heightOf(widget, node) : 0
  if (text) {
    widget ??= added(node)
    widget.element.textContent = text
  } else {
    node.removeWidget(widget)
  }
  // Grows by as much as is needed; gives back what the text took.
  const [width, height] = node.size
  const after = text ? heightOf(widget, node) : 0
  const least = node.computeSize()[1]
  node.setSize([width, Math.max(least, before ? height - before + after : height)])
  node.setDirtyCanvas?.(true, true)
}

function added(node) {
  const element = document.createElement("div")
  element.className = WIDGET
  Object.assign(element.style, {
    boxSizing: "border-box",
    padding: "4px 6px",
    font: "12px/16px Inter, Arial, sans-serif",
    color: "var(--input-text, #ddd)",
    background: "var(--comfy-input-bg, #222)",
    borderRadius: "6px",
    whiteSpace: "pre-wrap",
    overflowWrap: "anywhere",
    overflow: "hidden",
    userSelect: "text",
  })
  const widget = node.addDOMWidget(WIDGET, WIDGET, element, {
    serialize: false,
    margin: MARGIN,
  })
  // Exactly as high as its text, wherever there is more room: with a layout size Vue nodes would stretch it.
  widget.computeLayoutSize = undefined
  widget.computeSize = (width) => [width ?? node.size[0], heightOf(widget, node)]
  widget.serialize = false // in the workflow; the option is for the prompt
  return widget
}

// Of the whole text, in the width that the node has: of a copy outside the graph, whose zoom and visibility do not
// matter. Asked for at every frame.
function heightOf(widget, node) {
  const text = widget.element.textContent
  const width = node.size[0] - 2 * MARGIN
  const known = heights.get(widget.element)
  if (known?.text === text && known.width === width) return known.height
  const copy = widget.element.cloneNode(true)
  copy.removeAttribute("class")
  Object.assign(copy.style, { position: "fixed", left: "-9999px", width: `${width}px`, height: "auto" })
  document.body.append(copy)
  const height = copy.offsetHeight + 2 * MARGIN
  copy.remove()
  heights.set(widget.element, { text, width, height })
  return height
}
