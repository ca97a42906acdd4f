// What nodes have said, by workflow: of each source (a node that executed) the newest entry
// {workflow, source, at, lines: [{node, text}]}. Ids are paths through subgraphs: "12:5" is node 5 inside node 12.

export class Told {
  #workflows = new Map()

  take(entry) {
    if (!this.#workflows.has(entry.workflow)) this.#workflows.set(entry.workflow, new Map())
    const entries = this.#workflows.get(entry.workflow)
    const known = entries.get(entry.source)
    if (known === undefined || known.at <= entry.at) entries.set(entry.source, entry)
  }

  entries(workflow) {
    return [...(this.#workflows.get(workflow)?.values() ?? [])]
  }
}

export function nodeAt(graph, path) {
  const ids = path.split(":")
  const last = ids.pop()
  for (const id of ids) graph = graph?.getNodeById(id)?.subgraph
  return graph?.getNodeById(last) ?? undefined
}

// The text of each node of a graph, as far as the nodes that executed are still there. What a node inside a subgraph
// that is used several times says, and what it says in the runs of several samplers, has a name before it.
export function textsOf(graph, entries) {
  const voices = new Map()
  for (const { source, lines } of entries) {
    if (!nodeAt(graph, source.split(".")[0])) continue
    for (const { node: path, text } of lines) {
      const node = nodeAt(graph, path)
      if (!node) continue
      if (!voices.has(node)) voices.set(node, [])
      voices.get(node).push({ path, source, text })
    }
  }
  return new Map([...voices].map(([node, said]) => [node, joined(graph, said)]))
}

function joined(graph, said) {
  const named = (path) => `${nodeAt(graph, path.split(".")[0]).title} (${path})`
  const places = new Set(said.map(({ path }) => path))
  const samplers = new Set(said.filter(({ path, source }) => source !== path).map(({ source }) => source))
  return said
    .map(({ path, source, text }) => {
      const who = []
      if (places.size > 1) who.push(named(path.slice(0, path.lastIndexOf(":"))))
      if (samplers.size > places.size && source !== path) who.push(named(source))
      return who.length ? `${who.join(", ")}: ${text}` : text
    })
    .join("\n")
}
