"""What a user does in ComfyUI's frontend, and what they see under the nodes."""

import json
import time
import urllib.request
from pathlib import Path

from guidekit.demo.server import Server
from guidekit.tests.browser.chromium import Page

READY = "!!(window.app?.isGraphReady && app.extensionManager?.workflow?.activeWorkflow)"

# Files that a new user's server does not have, models that the frontend's own workflow asks a hub for, its own start.
USUAL = ("404 (Not Found)", "Content Security Policy", "graph accessed before initialization")

HELP = ".node-help-content"

# How the prompts that this page has queued have ended.
COUNTED = """(() => {
  window.ended = []
  for (const end of ["execution_success", "execution_error", "execution_interrupted"])
    app.api.addEventListener(end, ({ detail }) => window.ended.push(detail.exception_message ?? end))
})()"""

# By the path of each node of the open workflow: its text, and whether a person sees all of it, inside the node.
TEXTS = """(() => {
  const texts = {}
  const canvas = app.canvas.canvas.getBoundingClientRect()
  const { scale, offset } = app.canvas.ds
  const visit = (graph, path) => {
    for (const node of graph.nodes) {
      const widget = node.widgets?.find((each) => each.name === "guidekit_told")
      if (widget) {
        const at = widget.element.getBoundingClientRect()
        const top = canvas.top + (node.pos[1] + offset[1] - 30) * scale
        const bottom = canvas.top + (node.pos[1] + node.size[1] + offset[1]) * scale
        const left = canvas.left + (node.pos[0] + offset[0]) * scale
        const right = left + node.size[0] * scale
        const own = widget.element.closest("[data-node-id]")
        texts[path + node.id] = {
          text: widget.element.textContent,
          elements: widget.element.childElementCount,
          seen: widget.element.isConnected && at.width > 40 && at.height > 10,
          whole: widget.element.scrollHeight <= widget.element.clientHeight + 1,
          inside: own
            ? own.dataset.nodeId === String(node.id)
            : at.left >= left - 1 && at.right <= right + 1 && at.top >= top && at.bottom <= bottom + 1,
        }
      }
      if (node.subgraph) visit(node.subgraph, `${path}${node.id}:`)
    }
  }
  visit(app.rootGraph, "")
  return texts
})()"""


class Frontend:
    """In a page, on a server."""

    def __init__(self, page: Page, server: Server, screenshots: Path):
        self.page, self.server, self._screenshots = page, server, screenshots

    def open(self, vue: bool = False) -> None:
        """Anew, as after an update, in the classic look or with Vue nodes."""
        settings = {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": vue, "Comfy.Validation.Workflows": True}
        settings |= {"Comfy.Workflow.ConfirmDelete": False, "Comfy.VueNodes.AutoScaleLayout": False}
        body = json.dumps(settings).encode()
        headers = {"Content-Type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(f"{self.server.url}/api/settings", body, headers)).close()
        self.page.open("about:blank")
        self.page.open(self.server.url)
        self._ready()

    def reload(self) -> None:
        self.page.reload()
        self._ready()
        self.page.until("app.graph.nodes.length > 0")

    def _ready(self) -> None:
        self.page.until(READY, 120)
        self.page.run(COUNTED)
        self._ended = 0

    def load(self, workflow: dict, name: str) -> None:
        """In a tab of its own."""
        self.page.run(f"app.loadGraphData({json.dumps(workflow)}, true, true, {json.dumps(name)})")

    def command(self, name: str) -> None:
        self.page.run(f"Promise.resolve(app.extensionManager.command.execute({json.dumps(name)})).then(() => null)")

    def tab(self, name: str) -> None:
        """Goes to the tab with this name, as the arrows beside the tabs do."""
        for _ in range(20):
            if self.page.run("app.extensionManager.workflow.activeWorkflow.filename") == name:
                return
            self.command("Workspace.NextOpenedWorkflow")
            time.sleep(0.3)
        raise AssertionError(f"no tab {name}: {self.tabs}")

    @property
    def tabs(self) -> list[str]:
        return self.page.run("app.extensionManager.workflow.openWorkflows.map((each) => each.filename)")

    def queue(self) -> None:
        self.page.run("app.queuePrompt(0, 1).then(() => null)")

    def finish(self, limit: float = 120) -> None:
        """Waits until the page has heard that one more prompt has ended."""
        self._ended += 1
        assert self.page.until(f"window.ended[{self._ended - 1}]", limit) == "execution_success"
        time.sleep(0.5)

    def run(self) -> None:
        self.queue()
        self.finish()

    def set(self, node_type: str, **values) -> None:
        """Widgets of all nodes of a type."""
        self.page.run(
            f"""(() => {{
              for (const node of app.graph.nodes.filter((each) => each.type === "{node_type}"))
                for (const [name, value] of Object.entries({json.dumps(values)}))
                  node.widgets.find((each) => each.name === name).value = value
            }})()"""
        )

    def texts(self) -> dict[str, str]:
        """By the path of the node; each is text and nothing but text."""
        found = self.page.run(TEXTS)
        assert all(each["elements"] == 0 for each in found.values()), found
        return {path: each["text"] for path, each in found.items()}

    def seen(self, path: str, name: str) -> str:
        """The text of a node that is looked at: zoomed to, whole, inside the node. Leaves a screenshot."""
        self.page.run(
            f"""(() => {{
              const graph = app.canvas.graph
              const node = graph.getNodeById({path.split(":")[-1]})
              const {{ width, height }} = app.canvas.canvas.getBoundingClientRect()
              app.canvas.ds.scale = 1
              app.canvas.ds.offset = [width / 2 - node.pos[0] - node.size[0] / 2, 120 - node.pos[1]]
              app.canvas.setDirty(true, true)
            }})()"""
        )
        time.sleep(0.7)
        found = self.page.run(TEXTS)[path]
        self.page.screenshot(self._screenshots / f"{name}.png")
        assert found["seen"], found
        assert found["whole"], found
        assert found["inside"], found
        return found["text"]

    def node(self, node_type: str) -> str:
        """The id of the only node of a type, in the open workflow."""
        [found] = self.page.run(f"app.graph.nodes.filter((each) => each.type === '{node_type}').map((each) => each.id)")
        return str(found)

    def help(self, node_type: str, title: str) -> None:
        """Opens the page of a node, by the info button above it; a page that is open shows that of the node."""
        self.page.run(
            f"""(() => {{
              app.graph.clear()
              const node = LiteGraph.createNode("{node_type}")
              app.graph.add(node)
              const {{ width, height }} = app.canvas.canvas.getBoundingClientRect()
              app.canvas.ds.scale = 1
              app.canvas.ds.offset = [width / 3 - node.pos[0], height / 3 - node.pos[1]]
              app.canvas.selectItems([node])
              app.canvas.setDirty(true, true)
            }})()"""
        )
        if not self.page.run(f"!!document.querySelector('{HELP}')"):
            self.page.until("document.querySelector('[data-testid=info-button]')?.click() === undefined")
        self.page.until(f"document.querySelector('{HELP} h1')?.textContent === {json.dumps(title)}")

    def shoot(self, name: str) -> None:
        self.page.screenshot(self._screenshots / f"{name}.png")

    @property
    def errors(self) -> list[str]:
        """Errors of the page, except those that it has without this pack."""
        return [error for error in self.page.errors if "guidekit" in error or not any(map(error.__contains__, USUAL))]
