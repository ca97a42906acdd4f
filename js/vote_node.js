// The images of Vote on Images, inside the node: as it runs, in a cached run, and after a reload or a change of tab,
// when the server says what the node showed last.

import { app } from "../../scripts/app.js"
import { VoteGrid } from "./vote_grid.js"
import { votes } from "./votes.js"

const CLASS = "GuidekitVote"
const WIDGET = "guidekit_votes"
const EMPTY = 60 // pixels of height without images
const [CARD, BAR, ROWS] = [110, 34, 3] // the least width of an image, what is below it, rows that are seen at once
const grids = new WeakMap()

app.registerExtension({
  name: "Guidekit.Vote",
  nodeCreated(node) {
    if (node.comfyClass === CLASS) addGrid(node)
  },
  async afterConfigureGraph() {
    const graph = app.rootGraph ?? app.graph
    await Promise.all([...nodesIn(graph)].map(([path, node]) => recall(graph.id, path, node)))
  },
  setup() {
    votes.addEventListener("failed", ({ detail }) =>
      app.extensionManager.toast.add({ severity: "error", summary: "Votes", detail, life: 8000 }),
    )
  },
})

function addGrid(node) {
  const grid = new VoteGrid()
  grid.element.dataset.empty = "The images come here when the workflow has run."
  grids.set(node, grid)
  const options = { serialize: false, getMinHeight: () => heightOf(node) }
  const widget = node.addDOMWidget(WIDGET, WIDGET, grid.element, options)
  widget.serialize = false // in the workflow; the option is for the prompt
  const { onExecuted, onRemoved } = node
  node.onExecuted = function (output) {
    onExecuted?.apply(this, arguments)
    if (output?.guidekit_votes) show(node, output.guidekit_votes)
  }
  node.onRemoved = function () {
    onRemoved?.apply(this, arguments)
    grid.destroy()
  }
}

async function recall(workflow, path, node) {
  const grid = grids.get(node)
  if (!grid || grid.images.length || !workflow) return
  const images = await votes.shownAt(workflow, path).catch(() => [])
  if (images.length && !grid.images.length) show(node, images)
}

function show(node, images) {
  grids.get(node).show(images)
  const [width, height] = node.size
  node.setSize([width, Math.max(height, node.computeSize()[1])])
  node.setDirtyCanvas?.(true, true)
}

function heightOf(node) {
  const count = grids.get(node).images.length
  if (!count) return EMPTY
  const width = node.size[0] - 30
  const columns = Math.max(1, Math.floor(width / CARD))
  return Math.min(ROWS, Math.ceil(count / columns)) * (width / columns + BAR)
}

function* nodesIn(graph, before = "") {
  for (const node of graph.nodes ?? graph._nodes) {
    if (node.comfyClass === CLASS) yield [before + node.id, node]
    if (node.subgraph) yield* nodesIn(node.subgraph, `${before}${node.id}:`)
  }
}
