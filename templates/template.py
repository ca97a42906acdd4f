"""A template: what it is called, and what is in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .graph import GREEN, RED, Graph, Info, Node, Output, api, ui
from .layout import place


@dataclass(frozen=True)
class Template:
    """`name` is that of the file for the API. `title` is that of the file for the frontend, which shows it, searches it
    and sorts by it: the problem, the technique, the model. `image`: the name of the template of which the thumbnail
    is a real run."""

    name: str
    title: str
    build: Callable[[Graph], None]
    image: str | None = None

    def graph(self, info: Info) -> Graph:
        graph = Graph(info)
        self.build(graph)
        place(graph)
        return graph

    def files(self, info: Info) -> dict[str, Any]:
        """Contents by path below workflows/."""
        graph = self.graph(info)
        extra = {"guidekit": {"api": f"{self.name}.json"}}
        if graph.app:
            extra |= {"linearData": graph.app, "linearMode": False}
        return {f"{self.title}.json": ui(graph, self.name, extra), f"api/{self.name}.json": api(graph)}


def in_app(graph: Graph, *inputs: tuple[Node, str]) -> None:
    """What the frontend's app mode shows: these inputs, and what is saved. Inputs under "advanced" have no control
    there."""
    saved = graph.of("SaveImage", "SaveAnimatedWEBP")
    graph.app = {"inputs": [[node.id, name] for node, name in inputs], "outputs": [node.id for node in saved]}


def note(graph: Graph, what: str, look: str, attempt: str, cost: str) -> None:
    """Five lines; the last one, what has to be in which folder, follows from the loaders."""
    files = {file: None for node in graph.nodes for file in node.files}
    listed = ", ".join(f"[{file.name}]({file.page}) in models/{file.directory}" for file in files)
    lines = [what, f"**Look at** {look}", f"**Try** {attempt}", f"**Cost:** {cost}", f"**Files:** {listed or 'none'}."]
    graph.note("What to look at, what to try", "\n\n".join(lines))


def prompts(
    graph: Graph,
    clip: Output,
    positive: str,
    negative: str = "",
    title: str = "Negative prompt",
    column: int | None = None,
) -> tuple[Node, Node]:
    first = graph.add("CLIPTextEncode", "Positive prompt", color=GREEN, column=column, clip=clip, text=positive)
    return first, graph.add("CLIPTextEncode", title, color=RED, column=column, clip=clip, text=negative)


def save(graph: Graph, samples: Output, vae: Output, name: str) -> Node:
    image = graph.add("VAEDecode", samples=samples, vae=vae)
    return graph.add("SaveImage", images=image[0], filename_prefix=f"guidekit/{name}")
