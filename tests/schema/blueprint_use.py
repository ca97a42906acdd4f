"""A workflow with a blueprint in it, as the frontend saves one, on a demo model."""

from typing import Any

from guidekit.templates.demo import demo_model, empty, ksampler, shown
from guidekit.templates.graph import Graph, Info, ui
from guidekit.templates.subgraph import Blueprint

# Values of its widgets that are not the defaults.
TYPED = {
    "not in the image": "a striped background",
    "as it is": "a large red circle on a light background, center",
    "edited": "a large yellow circle on a light background, center",
    "steps": 3,
    "denoise": 0.75,
    "eta": 0.25,
    "threshold": 0.5,
    "nag_scale": 4.0,
    "alpha": 0.8,
}


def workflow_with(blueprint: Blueprint, info: Info) -> dict[str, Any]:
    [content] = blueprint.files(info).values()
    [instance] = content["nodes"]
    values = dict(zip((i["name"] for i in instance["inputs"] if "widget" in i), instance["widgets_values"]))
    known = {i["name"]: [i["type"], {"default": values.get(i["name"])}] for i in instance["inputs"]}
    as_class = {
        "input": {"required": known},
        "output": [output["type"] for output in instance["outputs"]],
        "output_name": [output["name"] for output in instance["outputs"]],
    }
    g = Graph({**info, instance["type"]: as_class})
    loaded = demo_model(g, "dit")
    text = "a large green star on a light background, center"
    positive, negative = (g.add("CLIPTextEncode", clip=loaded.clip, text=t)[0] for t in (text, ""))
    given = {"model": loaded.model, "clip": loaded.clip, "vae": loaded.vae}
    if "image" in known:
        start = ksampler(g, loaded.model, positive, negative, empty(g), 1, 3.0)
        given["image"] = g.add("VAEDecode", samples=start, vae=loaded.vae)[0]
    typed = {name: value for name, value in TYPED.items() if name in values}
    used = g.add(instance["type"], **{name: given[name] for name in known if name in given}, **typed)
    if as_class["output"] == ["MODEL"]:
        latent = ksampler(g, used[0], positive, negative, empty(g), 1, 1.0 if "clip" in known else 3.0)
        shown(g, latent, loaded.vae, "used")
    else:
        g.add("SaveImage", images=used[0], filename_prefix="guidekit/used")
    workflow = ui(g, "blueprint in use")
    node = next(node for node in workflow["nodes"] if node["type"] == instance["type"])
    links = {i["name"]: i["link"] for i in node["inputs"]}
    node["inputs"] = [{**i, "link": links.get(i["name"])} for i in instance["inputs"]]
    for number, _, _, target, slot, _ in workflow["links"]:  # of all inputs, widgets included
        if target == node["id"]:
            assert node["inputs"][slot]["link"] == number, "sockets come first"
    return workflow | {"definitions": content["definitions"]}
