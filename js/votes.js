// The votes on this server, as the page knows them: asks, votes, and hears of what other pages do.
// The server's side, with its rules: nodes/host/votes/routes.py.

import { api } from "../../scripts/api.js"

const PATH = "/guidekit/votes"
const EVENT = "guidekit.votes"
export const LIKED = 1
export const UNDECIDED = 0
export const DISLIKED = -1

// Dispatches "changed" with {id: vote, or null for an image that is deleted}, and "failed" with a sentence.
class Votes extends EventTarget {
  constructor() {
    super()
    api.addEventListener(EVENT, ({ detail }) => this.#changed(detail.votes))
  }

  url(id) {
    return api.apiURL(`${PATH}?image=${encodeURIComponent(id)}`)
  }

  async find(filter, after) {
    const query = new URLSearchParams(Object.entries({ ...filter, after: after ?? "" }).filter(([, value]) => value))
    return this.#answer(await api.fetchApi(`${PATH}?${query}`))
  }

  async shownAt(workflow, node) {
    const query = new URLSearchParams({ workflow, node })
    return (await this.#answer(await api.fetchApi(`${PATH}?${query}`))).images
  }

  // As pressed again, a vote is taken back.
  async vote(id, before, label) {
    const vote = before === label ? UNDECIDED : label
    await this.post({ do: "vote", ids: [id], vote })
    this.#changed({ [id]: vote })
  }

  async remove(ids) {
    await this.post({ do: "delete", ids })
    this.#changed(Object.fromEntries(ids.map((id) => [id, null])))
  }

  async post(body) {
    const headers = { "Content-Type": "application/json" }
    return this.#answer(await api.fetchApi(PATH, { method: "POST", headers, body: JSON.stringify(body) }))
  }

  async #answer(response) {
    const found = await response.json().catch(() => ({ error: `The server answers ${response.status}.` }))
    if (response.ok) return found
    this.dispatchEvent(new CustomEvent("failed", { detail: found.error }))
    throw new Error(found.error)
  }

  #changed(detail) {
    this.dispatchEvent(new CustomEvent("changed", { detail }))
  }
}

export const votes = new Votes()
