// The tab Taste: all images that were shown or voted on, to filter, to change, to export, and to train from.

import { app } from "../../scripts/app.js"
import { made, VoteGrid } from "./vote_grid.js"
import { votes } from "./votes.js"

const VOTES = {
  decided: "liked or disliked",
  liked: "liked",
  disliked: "disliked",
  undecided: "without a vote",
  all: "all",
}
const NOTHING = "No image is here yet: put Vote on Images behind a sampler, and run it."
const NOT_CHOSEN = "The filters choose no image."
const GAP = 60 // pixels between nodes
const REFRESH = 400 // ms after a change, so that many together ask once

app.registerExtension({
  name: "Guidekit.Taste",
  setup() {
    app.extensionManager.registerSidebarTab({
      id: "guidekit-taste",
      icon: "pi pi-thumbs-up",
      title: "Taste",
      tooltip: "Taste: your votes on images (Guidekit)",
      type: "custom",
      render: (container) => new Tab(container),
      destroy: () => Tab.current?.destroy(),
    })
  },
})

class Tab {
  static current

  #grid = new VoteGrid({ removable: true })
  #inputs = {}
  #counts = made("div", "guidekit-counts")
  #said = made("div", "guidekit-said")
  #more = pressed("More", () => this.#load(true))
  #next = null
  #waiting = null
  #asked = 0 // how often; an answer to an earlier question than the last is dropped

  constructor(container) {
    Tab.current?.destroy()
    Tab.current = this
    const element = made("div", "guidekit-taste")
    element.append(
      this.#field("votes", "Vote", choices(VOTES)),
      this.#field("model", "Model", made("select")),
      this.#field("lora", "LoRA", made("select")),
      this.#field("tag", "Tag", made("select")),
      this.#field("from_date", "From", dated()),
      this.#field("to_date", "To", dated()),
      this.#counts,
      this.#grid.element,
      row(this.#more, ...this.#actions()),
      this.#said,
    )
    container.replaceChildren(element)
    votes.addEventListener("changed", this.#changed)
    this.#load()
  }

  destroy() {
    votes.removeEventListener("changed", this.#changed)
    clearTimeout(this.#waiting)
    this.#grid.destroy()
    Tab.current = undefined
  }

  get filter() {
    return Object.fromEntries(Object.entries(this.#inputs).map(([name, { value }]) => [name, value]))
  }

  #field(name, label, input) {
    const element = made("label", "", label)
    input.name = name
    input.addEventListener("change", () => this.#load())
    this.#inputs[name] = input
    element.append(input)
    return element
  }

  #actions() {
    const tag = made("input")
    tag.placeholder = "a tag"
    tag.maxLength = 100
    return [
      tag,
      pressed("Tag these", () => this.#tag(tag.value.trim())),
      pressed("Export", () => this.#export()),
      pressed("Train from these", () => this.#train()),
    ]
  }

  async #load(more = false) {
    const asked = ++this.#asked
    const wanted = this.filter
    const found = await votes.find(wanted, more ? this.#next : null).catch(() => null)
    if (!found || asked !== this.#asked || Tab.current !== this) return
    const { votes: _, ...others } = wanted
    const some = [...Object.values(found.counts), ...Object.values(others)].some(Boolean)
    this.#grid.element.dataset.empty = some ? NOT_CHOSEN : NOTHING
    if (more) this.#grid.add(found.images)
    else this.#grid.show(found.images)
    this.#next = found.next
    this.#more.hidden = !found.next
    this.#tell(found.counts)
    for (const name of ["model", "lora", "tag"]) offer(this.#inputs[name], found.names[name])
  }

  #changed = () => {
    clearTimeout(this.#waiting)
    this.#waiting = setTimeout(() => this.#count(), REFRESH)
  }

  // The images stay, so that a vote can be changed again although the filter is for another one.
  async #count() {
    const asked = this.#asked
    const found = await votes.find(this.filter).catch(() => null)
    if (found && asked === this.#asked && Tab.current === this) this.#tell(found.counts)
  }

  #tell({ liked, disliked, undecided }) {
    this.#counts.textContent = `${liked} liked, ${disliked} disliked, ${undecided} without a vote`
  }

  async #tag(tag) {
    const ids = this.#grid.images.map(({ id }) => id)
    let done = 0
    try {
      for (; done < ids.length; done += 100) await votes.post({ do: "tag", ids: ids.slice(done, done + 100), tag })
      this.#said.textContent = `${ids.length} images have ${tag ? `the tag ${tag}` : "no tag"} now.`
    } catch (error) {
      this.#said.textContent = `${done} of ${ids.length} images were tagged. ${error.message}`
    }
    await this.#load()
  }

  async #export() {
    const answer = await votes.post({ do: "export", ...this.filter }).catch((error) => ({ report: error.message }))
    this.#said.textContent = answer.report
  }

  // Load Votes with this filter, and the trainer behind it, to the right of all nodes; the view moves there.
  #train() {
    const { votes: vote, model, lora, ...same } = this.filter
    const loader = added("GuidekitVotes")
    const values = { ...same, model_name: model, lora_name: lora }
    loader.showAdvanced = Boolean(same.from_date || same.to_date) // else they act unseen
    for (const [name, value] of Object.entries(values)) loader.widgets.find((each) => each.name === name).value = value
    const trainer = added("GuidekitTrainPreference")
    loader.connect(0, trainer, trainer.inputs.findIndex(({ type }) => type === "GUIDEKIT_VOTES"))
    lookAt(loader, trainer, this.#said.getBoundingClientRect())
    const said = ["Load Votes, with these filters, and Train Preference LoRA are in the workflow. Connect the model."]
    if (vote !== "decided") said.push("The filter Vote is not passed on, since training takes likes and dislikes.")
    this.#said.textContent = said.join(" ")
  }
}

function added(type) {
  const node = LiteGraph.createNode(type)
  const { graph } = app.canvas
  const there = graph.nodes ?? graph._nodes
  const right = Math.max(0, ...there.map(({ pos, size }) => pos[0] + size[0] + GAP))
  const top = Math.min(...there.map(({ pos }) => pos[1]))
  node.pos = [right, there.length ? top : 0]
  graph.add(node)
  return node
}

// Two nodes beside each other, whole, in what the tab leaves of the canvas.
function lookAt(first, last, tab) {
  const { ds, canvas } = app.canvas
  const all = canvas.getBoundingClientRect()
  const onLeft = tab.left - all.left < all.right - tab.right
  const [left, right] = onLeft ? [Math.max(tab.right, all.left), all.right] : [all.left, Math.min(tab.left, all.right)]
  const width = last.pos[0] + last.size[0] - first.pos[0]
  const height = Math.max(first.size[1], last.size[1])
  ds.scale = Math.min(1, (right - left) / (width + 2 * GAP), all.height / (height + 4 * GAP))
  ds.offset[0] = ((left + right) / 2 - all.left) / ds.scale - first.pos[0] - width / 2
  ds.offset[1] = all.height / 2 / ds.scale - first.pos[1] - height / 2
  app.canvas.setDirty(true, true)
}

function pressed(label, press) {
  const element = made("button", "", label)
  element.type = "button"
  element.addEventListener("click", press)
  return element
}

function row(...elements) {
  const element = made("div", "guidekit-row")
  element.append(...elements)
  return element
}

function dated() {
  const element = made("input")
  element.type = "date"
  return element
}

function choices(labels) {
  const element = made("select")
  for (const [value, label] of Object.entries(labels)) element.append(new Option(label, value))
  return element
}

// The names there are; the one that is chosen stays.
function offer(select, names) {
  const { value } = select
  const known = [...new Set([...names, value])].filter(Boolean)
  select.replaceChildren(new Option("any", ""), ...known.map((name) => new Option(name, name)))
  select.value = value
}
