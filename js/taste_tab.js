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
const DAY = 24 * 3600
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

  constructor(container) {
    Tab.current?.destroy()
    Tab.current = this
    this.#grid.element.dataset.empty = "No image is here yet: put Vote on Images behind a sampler, and run it."
    const element = made("div", "guidekit-taste")
    element.append(
      this.#field("votes", "Vote", choices(VOTES)),
      this.#field("model", "Model", made("select")),
      this.#field("lora", "LoRA", made("select")),
      this.#field("tag", "Tag", made("select")),
      this.#field("since", "From", dated()),
      this.#field("until", "To", dated()),
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
    const { votes: vote, model, lora, tag, since, until } = this.#inputs
    const at = (input, days) => (input.value ? String(new Date(`${input.value}T00:00`) / 1000 + days * DAY) : "")
    return {
      votes: vote.value,
      model: model.value,
      lora: lora.value,
      tag: tag.value,
      since: at(since, 0),
      until: at(until, 1),
    }
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
    const found = await votes.find(this.filter, more ? this.#next : null).catch(() => null)
    if (!found || Tab.current !== this) return
    if (more) this.#grid.add(found.images)
    else this.#grid.show(found.images)
    this.#next = found.next
    this.#more.hidden = !found.next
    const { liked, disliked, undecided } = found.counts
    this.#counts.textContent = `${liked} liked, ${disliked} disliked, ${undecided} without a vote`
    for (const name of ["model", "lora", "tag"]) offer(this.#inputs[name], found.names[name])
  }

  #changed = () => {
    clearTimeout(this.#waiting)
    this.#waiting = setTimeout(() => this.#count(), REFRESH)
  }

  // The images stay, so that a vote can be changed again although the filter is for another one.
  async #count() {
    const found = await votes.find(this.filter).catch(() => null)
    if (!found || Tab.current !== this) return
    const { liked, disliked, undecided } = found.counts
    this.#counts.textContent = `${liked} liked, ${disliked} disliked, ${undecided} without a vote`
  }

  async #tag(tag) {
    const ids = this.#grid.images.map(({ id }) => id)
    for (let i = 0; i < ids.length; i += 100)
      await votes.post({ do: "tag", ids: ids.slice(i, i + 100), tag }).catch(() => {})
    await this.#load()
  }

  async #export() {
    const answer = await votes.post({ do: "export", ...this.filter }).catch((error) => ({ report: error.message }))
    this.#said.textContent = answer.report
  }

  // Load Votes with this filter, and the trainer behind it, in the middle of what is seen.
  #train() {
    const { model, lora, tag, since } = this.filter
    const days = since ? Math.ceil((Date.now() / 1000 - Number(since)) / DAY) : 0
    const loader = placed("GuidekitVotes", 0)
    const values = { tag, model_name: model, lora_name: lora, last_days: days }
    for (const [name, value] of Object.entries(values)) loader.widgets.find((each) => each.name === name).value = value
    const trainer = placed("GuidekitTrainPreference", 1)
    if (trainer) loader.connect(0, trainer, trainer.inputs.findIndex(({ type }) => type === "GUIDEKIT_VOTES"))
    this.#said.textContent = "Load Votes is in the workflow."
  }
}

function placed(type, column) {
  const node = LiteGraph.createNode(type)
  if (!node) return null
  const { scale, offset } = app.canvas.ds
  const { width, height } = app.canvas.canvas.getBoundingClientRect()
  node.pos = [width / 2 / scale - offset[0] - 360 + 380 * column, height / 2 / scale - offset[1] - 100]
  app.canvas.graph.add(node)
  return node
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
