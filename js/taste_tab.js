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

  // Load Votes with this filter, and the trainer behind it, in the middle of what is seen.
  #train() {
    const { votes: vote, model, lora, ...same } = this.filter
    const loader = placed("GuidekitVotes", 0)
    const values = { ...same, model_name: model, lora_name: lora }
    for (const [name, value] of Object.entries(values)) loader.widgets.find((each) => each.name === name).value = value
    const trainer = placed("GuidekitTrainPreference", 1)
    if (trainer) loader.connect(0, trainer, trainer.inputs.findIndex(({ type }) => type === "GUIDEKIT_VOTES"))
    const said = ["Load Votes, with these filters, and Train Preference LoRA are in the workflow. Connect the model."]
    if (vote !== "decided") said.push("The filter Vote is not passed on, since training takes likes and dislikes.")
    this.#said.textContent = said.join(" ")
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
