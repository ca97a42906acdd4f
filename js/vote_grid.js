// Images with their votes, in a grid: for the node and for the tab. Mouse: the buttons below each image. Keyboard, once
// an image has the focus: arrows, + likes, - dislikes, 0 takes back. Whatever comes from the server is set as text.

import { DISLIKED, LIKED, UNDECIDED, votes } from "./votes.js"

const KEYS = { "+": LIKED, "=": LIKED, "-": DISLIKED, _: DISLIKED, 0: UNDECIDED }
const STEPS = { ArrowLeft: -1, ArrowRight: 1 }
const NAMES = { [LIKED]: "liked", [DISLIKED]: "disliked", [UNDECIDED]: "undecided" }

export class VoteGrid {
  #cards = new Map() // by id: {image, element, buttons}
  #removable

  // `removable`: whether each image has a button that deletes it.
  constructor({ removable = false } = {}) {
    style()
    this.#removable = removable
    this.element = made("div", "guidekit-votes")
    this.element.setAttribute("role", "listbox")
    this.element.setAttribute("aria-label", "Images to vote on: + like, - dislike, 0 take back")
    this.element.addEventListener("keydown", (event) => this.#key(event))
    votes.addEventListener("changed", this.#changed)
  }

  destroy() {
    votes.removeEventListener("changed", this.#changed)
  }

  get images() {
    return [...this.#cards.values()].map(({ image }) => image)
  }

  show(images) {
    this.#cards.clear()
    this.element.replaceChildren()
    this.add(images)
  }

  add(images) {
    for (const image of images) if (!this.#cards.has(image.id)) this.element.append(this.#card({ ...image }))
    const [first] = this.#elements()
    if (first && !this.element.querySelector("[tabindex='0']")) first.tabIndex = 0
  }

  #card(image) {
    const element = made("div", "guidekit-card")
    element.tabIndex = -1
    element.setAttribute("role", "option")
    element.dataset.id = image.id
    element.title = about(image)
    const shown = made("img")
    shown.src = votes.url(image.id)
    shown.alt = image.text
    shown.loading = "lazy"
    shown.draggable = false
    const bar = made("div", "guidekit-bar")
    const buttons = {
      [LIKED]: button("pi-thumbs-up", "Like (+)", () => this.#vote(image, LIKED)),
      [DISLIKED]: button("pi-thumbs-down", "Dislike (-)", () => this.#vote(image, DISLIKED)),
    }
    bar.append(buttons[LIKED], buttons[DISLIKED])
    if (this.#removable) bar.append(remover(image.id))
    element.append(shown, bar)
    element.addEventListener("pointerdown", () => this.#focus(element))
    element.addEventListener("focus", () => this.#focus(element))
    this.#cards.set(image.id, { image, element, buttons })
    this.#mark(image.id)
    return element
  }

  #mark(id) {
    const { image, element, buttons } = this.#cards.get(id)
    element.dataset.vote = NAMES[image.vote]
    element.setAttribute("aria-selected", String(image.vote !== UNDECIDED))
    for (const label of [LIKED, DISLIKED]) buttons[label].setAttribute("aria-pressed", String(image.vote === label))
  }

  #changed = ({ detail }) => {
    for (const [id, vote] of Object.entries(detail)) {
      const card = this.#cards.get(id)
      if (!card) continue
      if (vote === null) {
        card.element.remove()
        this.#cards.delete(id)
      } else {
        card.image.vote = vote
        this.#mark(id)
      }
    }
  }

  // What fails is told by `votes`.
  #vote(image, label) {
    votes.vote(image.id, image.vote, label).catch(() => {})
  }

  #elements() {
    return [...this.element.children]
  }

  #focus(element) {
    for (const each of this.#elements()) each.tabIndex = each === element ? 0 : -1
    if (!element.contains(document.activeElement)) element.focus({ preventScroll: true })
  }

  #key(event) {
    const element = event.target.closest(".guidekit-card")
    if (!element || event.ctrlKey || event.metaKey || event.altKey) return
    const { image } = this.#cards.get(element.dataset.id)
    const target = this.#neighbour(element, event.key)
    if (target) {
      this.#focus(target)
      target.scrollIntoView({ block: "nearest" })
    } else if (event.key in KEYS) {
      const label = KEYS[event.key]
      if (label !== UNDECIDED || image.vote !== UNDECIDED) this.#vote(image, label || image.vote)
    }
    // Nothing of it is for the graph, which would move, or delete the node.
    event.stopPropagation()
    if (event.key in KEYS || event.key.startsWith("Arrow")) event.preventDefault()
  }

  #neighbour(element, key) {
    const all = this.#elements()
    const place = all.indexOf(element)
    const columns = all.filter((each) => each.offsetTop === all[0].offsetTop).length
    const step = STEPS[key] ?? { ArrowUp: -columns, ArrowDown: columns }[key]
    return step && all[place + step]
  }
}

export function made(tag, className = "", text = "") {
  const element = document.createElement(tag)
  element.className = className
  element.textContent = text
  return element
}

function button(icon, label, press) {
  const element = made("button")
  element.type = "button"
  element.title = label
  element.setAttribute("aria-label", label)
  element.tabIndex = -1
  element.append(made("i", `pi ${icon}`))
  element.addEventListener("click", press)
  return element
}

// Deletes at the second press.
function remover(id) {
  const element = button("pi-trash", "Delete this image and its vote", () => {
    if (element.dataset.sure) votes.remove([id]).catch(() => {})
    element.dataset.sure = "yes"
    element.title = "Press again to delete"
  })
  element.addEventListener("blur", () => delete element.dataset.sure)
  return element
}

function about(image) {
  const settings = [
    image.text,
    image.negative_text && `negative: ${image.negative_text}`,
    image.seed && `seed ${image.seed}`,
    [image.sampler, image.scheduler].filter(Boolean).join(", "),
    image.steps && `${image.steps} steps`,
    image.cfg !== null && `cfg ${image.cfg}`,
    image.model,
    ...image.loras.map(({ name, strength }) => `${name} (${strength})`),
    image.tag && `tag: ${image.tag}`,
  ]
  return settings.filter(Boolean).join("\n")
}

function style() {
  if (document.getElementById("guidekit-votes-style")) return
  const element = made("style")
  element.id = "guidekit-votes-style"
  element.textContent = `
    .guidekit-votes { display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 6px;
      grid-auto-rows: max-content; align-content: start; width: 100%; height: 100%; box-sizing: border-box;
      overflow-y: auto; padding: 2px; }
    .guidekit-votes:empty::after { content: attr(data-empty); grid-column: 1 / -1; font: 12px Inter, Arial, sans-serif;
      color: var(--descrip-text, #999); }
    .guidekit-card { border: 2px solid transparent; border-radius: 6px; background: var(--comfy-input-bg, #222);
      outline: none; overflow: hidden; }
    .guidekit-card:focus { box-shadow: 0 0 0 2px var(--input-text, #ddd); }
    .guidekit-card[data-vote="liked"] { border-color: #3fa34d; }
    .guidekit-card[data-vote="disliked"] { border-color: #c0443c; }
    .guidekit-card[data-vote="disliked"] img { opacity: 0.55; }
    .guidekit-card img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain;
      background: #0004; }
    .guidekit-bar { display: flex; }
    .guidekit-bar button { flex: 1; min-height: 26px; border: 0; background: none; cursor: pointer;
      color: var(--input-text, #ddd); }
    .guidekit-bar button:hover { background: #fff2; }
    .guidekit-bar button[aria-pressed="true"] { color: #fff; background: #3fa34d; }
    .guidekit-bar button + button[aria-pressed="true"] { background: #c0443c; }
    .guidekit-bar button[data-sure] { background: #c0443c; color: #fff; }
    .guidekit-taste { display: flex; flex-direction: column; gap: 8px; height: 100%; padding: 10px;
      box-sizing: border-box; font: 13px Inter, Arial, sans-serif; color: var(--input-text, #ddd); }
    .guidekit-taste label { display: grid; grid-template-columns: 64px 1fr; align-items: center; }
    .guidekit-taste input, .guidekit-taste select, .guidekit-taste > div > button { color: inherit;
      background: var(--comfy-input-bg, #222); border: 1px solid var(--border-color, #444); border-radius: 4px;
      padding: 4px 6px; min-width: 0; }
    .guidekit-taste > div > button { cursor: pointer; }
    .guidekit-taste .guidekit-row { display: flex; flex-wrap: wrap; gap: 6px; }
    .guidekit-taste .guidekit-votes { flex: 1; min-height: 120px; }
  `
  document.head.append(element)
}
