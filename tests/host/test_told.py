"""What nodes say is kept by prompt, stands under the right node, and holds as long as the result it belongs to."""

import asyncio
import copy
import json
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from comfy_execution.utils import CurrentNodeContext, ExecutionContext

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.adaptive_guidance import AdaptiveGuidance
from guidekit.nodes.apg import APG
from guidekit.nodes.host.run import told as told_module
from guidekit.nodes.host.run.attach import techniques_of
from guidekit.nodes.host.run.messages import show, tell
from guidekit.nodes.host.run.outputs import with_report
from guidekit.nodes.host.run.told import EVENT, TOLD, Line, Told, lineage
from guidekit.nodes.negtome import NegToMe
from guidekit.nodes.pag import PAG
from guidekit.nodes.preference_cfg import MIXTURE, PreferenceCFG
from guidekit.nodes.report import NOTHING, Report
from guidekit.tests.host import tiny
from guidekit.tests.host.products import PRODUCTS
from guidekit.tests.host.test_guiders import perp_neg
from guidekit.tests.host.test_guiders import sample as sample_guider


def graph(seed: int = 1, cfg: float = 4.0) -> dict:
    """A LoRA, two patches, two samplers one behind the other, a report; and a third sampler beside them."""

    def node(class_type: str, **inputs) -> dict:
        return {"class_type": class_type, "inputs": inputs}

    return {
        "1": node("Loader"),
        "2": node("Lora", model=["1", 0]),
        "3": node("Patch", model=["2", 0]),
        "4:1": node("Patch", model=["3", 0]),
        "5": node("Sampler", model=["4:1", 0], seed=0),
        "6": node("Sampler", model=["4:1", 0], latent=["5", 0], seed=seed, cfg=cfg),
        "7": node("Report", sampled=["6", 0]),
        "8": node("Sampler", model=["4:1", 0], seed=3),
    }


def at(prompt_id: str, node_id: str) -> ExecutionContext:
    return ExecutionContext(prompt_id, node_id, 0)


def line(node: str, text: str) -> Line:
    return Line(node, "Patch", text)


def texts(entries: list) -> list[str]:
    return [said.text for entry in entries for said in entry.lines]


@pytest.fixture
def told(monkeypatch):
    """The server's, emptied."""
    monkeypatch.setattr(TOLD, "_prompts", OrderedDict())
    return TOLD


def of_sampler(told: Told) -> list[dict]:
    """What was said in the runs of node 9, and not by nodes as they executed."""
    return [entry for entry in told.newest() if entry["source"] == "9"]


# Where a line stands


def test_a_line_names_its_node_and_the_sampler():
    assert line("5", "x.").named("5") == "Patch (node 5): x."
    assert line("5", "x.").named("4:3") == "Patch (node 5, sampler node 4:3): x."
    assert line("", "x.").named("3") == "Patch (sampler node 3): x."
    assert line("", "x.").named(None) == "Patch: x."


@pytest.mark.parametrize("product", [p for p in PRODUCTS if "unet" in p.families], ids=lambda p: p.name)
def test_techniques_speak_under_the_node_that_attached_them(product):
    """The host takes the output of an equal node for a node's own, unless the schema tells it not to."""
    assert product.node.GET_SCHEMA().not_idempotent
    with CurrentNodeContext("p", "12:5.0.0.3"):
        options = product.apply(tiny.model("unet")).model_options
    techniques = {technique for some in techniques_of(options).values() for technique in some}
    assert techniques
    assert {options["guidekit"]["nodes"][technique] for technique in techniques} == {"12:5"}


def test_a_run_tells_of_all_its_techniques(told, caplog):
    caplog.set_level("INFO")
    with CurrentNodeContext("p", "2"):
        model = run_node(APG, model=tiny.model("unet"))
    with CurrentNodeContext("p", "3:1"):
        model = run_node(AdaptiveGuidance, model=model, threshold=0.0)
    with CurrentNodeContext("p", "9"):
        tiny.sample(model, "unet", cfg=1.0)
    [entry] = of_sampler(told)
    reason = "had no effect in this run: no negative prompt was evaluated: cfg is 1, or the guider has none."
    assert entry["source"] == "9"
    assert sorted(entry["lines"], key=lambda each: each["node"]) == [
        {"node": "2", "text": reason},
        {"node": "3:1", "text": reason},
    ]
    assert f"Adaptive guidance (node 3:1, sampler node 9): {reason}" in caplog.text


def test_what_a_run_said_goes_when_it_begins_again(told):
    with CurrentNodeContext("p", "2"):
        model = run_node(APG, model=tiny.model("unet"))
    with CurrentNodeContext("p", "9"):
        tiny.sample(model, "unet", cfg=1.0)
    assert of_sampler(told)[0]["lines"]
    with CurrentNodeContext("q", "9"):
        tiny.sample(model, "unet", cfg=4.0)  # APG acts, and has nothing to say
    assert [entry["lines"] for entry in of_sampler(told)] == [[]]


def test_a_run_that_fails_leaves_nothing_of_the_one_before(told):
    def fails(args):
        raise RuntimeError("out of memory")

    with CurrentNodeContext("p", "2"):
        model = run_node(APG, model=tiny.model("unet"))
    with CurrentNodeContext("p", "9"):
        tiny.sample(model, "unet", cfg=1.0)
    model.set_model_sampler_post_cfg_function(fails)
    with CurrentNodeContext("q", "9"), pytest.raises(RuntimeError, match="out of memory"):
        tiny.sample(model, "unet", cfg=4.0)
    assert [entry["lines"] for entry in of_sampler(told)] == [[]]


# One true reason


@pytest.mark.parametrize("node", [PAG, NegToMe, APG])
def test_one_reason_and_no_other(node, told):
    """Under a guider that evaluates its prompts by itself, with one image, at cfg 1."""
    with CurrentNodeContext("p", "2"):
        model = run_node(node, model=tiny.model("unet"))
    with CurrentNodeContext("p", "9"):
        sample_guider(perp_neg(model))
        tiny.sample(model, "unet", batch=1, cfg=1.0) if node is NegToMe else None
    [entry] = of_sampler(told)
    said = [each["text"] for each in entry["lines"]]
    assert len(said) == (2 if node is NegToMe else 1)
    for text in said:
        assert text.count("had no effect") + text.count("It takes a whole network evaluation") == 1, text


# How long it holds


def test_it_holds_while_the_result_is_cached():
    """Prompt b asks for the same, c for another second sampler, d for another patch before both."""
    told = Told()
    told.behind(at("a", "7"), graph())  # so that it knows the graph, without a server
    told.add(at("a", "2"), [line("2", "the LoRA")])
    told.add(at("a", "5"), [line("3", "first run")])
    told.add(at("a", "6"), [line("3", "second run")])
    told.add(at("a", "8"), [line("3", "beside")])
    assert texts(told.behind(at("a", "7"), graph())) == ["the LoRA", "first run", "second run"]
    assert texts(told.behind(at("b", "7"), graph())) == ["the LoRA", "first run", "second run"]
    told.behind(at("c", "7"), graph(seed=2))
    told.add(at("c", "6"), [line("3", "third run")])
    assert texts(told.behind(at("c", "7"), graph(seed=2))) == ["the LoRA", "first run", "third run"]
    other = graph()
    other["3"]["inputs"]["scale"] = 2
    assert texts(told.behind(at("d", "7"), other)) == ["the LoRA"]


def test_it_holds_for_the_same_nodes_under_other_ids():
    """As when they are put into a subgraph: the host takes them from its cache."""
    told = Told()
    told.behind(at("a", "7"), graph())
    told.add(at("a", "5"), [line("3", "one"), line("4:1", "two")])
    told.add(at("a", "6.0.0.1"), [line("3", "expanded")])
    moved = {"1": "9:1", "2": "9:2", "3": "9:3", "4:1": "9:4:1", "5": "9:5", "6": "9:6", "7": "70", "8": "80"}
    nodes = json.loads(json.dumps({moved[node_id]: node for node_id, node in graph().items()}))
    for node in nodes.values():
        node["inputs"] = {k: [moved[v[0]], v[1]] if isinstance(v, list) else v for k, v in node["inputs"].items()}
    found = told.behind(at("b", "70"), nodes)
    assert texts(found) == ["one", "two", "expanded"]
    assert [entry.source for entry in found] == ["9:5", "9:6.0.0.1"]
    assert [said.node for entry in found for said in entry.lines] == ["9:3", "9:4:1", "9:3"]


def test_a_node_that_executes_replaces_what_it_said():
    """Also where it was asked first what it had said as part of the same graph: a file may have changed."""
    told = Told()
    told.behind(at("a", "7"), graph())
    told.add(at("a", "2"), [line("2", "old")])
    assert texts(told.behind(at("b", "7"), graph())) == ["old"]
    told.begin(at("b", "2"))
    assert texts(told.behind(at("b", "7"), graph())) == []
    told.add(at("b", "2"), [line("2", "new")])
    told.add(at("b", "2"), [line("2", "once more")])  # for a list of inputs
    assert texts(told.behind(at("b", "7"), graph())) == ["new", "once more"]
    assert texts(told.behind(at("a", "7"), graph())) == ["old"]


def test_what_stands_in_for_a_node_speaks_for_it():
    told = Told()
    told.add(at("a", "6.0.0.2"), [line("6", "expanded")])
    assert texts(told.behind(at("a", "7"), graph())) == ["expanded"]


def test_only_so_many_prompts_are_kept():
    told = Told(prompts=3)
    for i in range(10):
        told.add(at(str(i), "6"), [line("3", f"run {i}")])
    assert [*told._prompts] == ["7", "8", "9"]


def test_two_prompts_at_once(told):
    """Each has its own, whatever the other one does in between."""

    def run(prompt_id: str) -> list[str]:
        for i in range(200):
            with CurrentNodeContext(prompt_id, "6"):
                tell("Patch", f"{prompt_id} {i}")
        with CurrentNodeContext(prompt_id, "7"):
            return texts(told.behind(at(prompt_id, "7"), graph()))

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, "abcd"))
    assert found == [[f"{prompt_id} {i}" for i in range(200)] for prompt_id in "abcd"]


def test_lineage_is_in_order_and_ends_where_nodes_are_missing():
    assert [*lineage(graph(), "7")] == ["1", "2", "3", "4:1", "5", "6", "7"]
    broken = graph()
    broken["5"]["inputs"]["latent"] = ["6", 0]  # a circle
    del broken["2"]
    assert {*lineage(broken, "7")} == {"3", "4:1", "5", "6", "7"}
    assert lineage({}, "7") == {}


# The server


@pytest.fixture
def sent(monkeypatch):
    """What goes to clients, while prompt "a" of client "me" and one without a client run, and another one has run; with
    the host's own queue."""
    import server
    from execution import PromptQueue

    events = []
    workflow = {"extra_pnginfo": {"workflow": {"id": "w"}}}
    instance = SimpleNamespace(queue_updated=lambda: None, send_sync=lambda *event: events.append(event))
    queue = instance.prompt_queue = PromptQueue(instance)
    queue.put((0, "done", graph(), {"client_id": "me", **workflow}, [], {}))
    queue.put((1, "a", graph(), {"client_id": "me", **workflow}, [], {}))
    queue.put((2, "b", graph(), {"extra_pnginfo": None}, [], {}))
    _, number = queue.get()
    queue.task_done(number, {}, None)
    queue.get(), queue.get()
    monkeypatch.setattr(server.PromptServer, "instance", instance, raising=False)
    return events


def test_the_client_that_queued_it_hears_of_it(told, sent):
    with CurrentNodeContext("a", "4:1"):
        tell("Patch", "said.")
    [(event, data, client)] = sent
    assert (event, client) == (EVENT, "me")
    assert data.pop("at") > 0
    assert data == {
        "prompt_id": "a",
        "workflow": "w",
        "source": "4:1",
        "lines": [{"node": "4:1", "text": "said."}],
    }
    json.dumps(data)


def test_nobody_else_does(told, sent):
    for prompt_id in ("b", "not queued"):
        with CurrentNodeContext(prompt_id, "4:1"):
            tell("Patch", "said.")
    tell("Patch", "outside a graph.")
    assert sent == []


def test_a_page_may_ask_what_holds(told, sent):
    """What holds for all workflows, and for a running prompt whose nodes are cached, though they said nothing in it."""
    told.behind(at("earlier", "7"), graph())
    told.add(at("earlier", "6"), [line("3", "said.")])
    assert [(e["workflow"], e["source"]) for e in told.newest()] == [(None, "6")]
    assert [(e["workflow"], e["source"]) for e in told.newest("a")] == [(None, "6"), ("w", "6")]
    assert len(told.newest("unheard of")) == 2
    assert len(told._prompts) == 2
    told.newest("done")  # all was cached, and it is over before the page has asked
    assert texts(told.behind(at("done", "7"), graph())) == ["said."]


def test_the_route_is_added_once(monkeypatch, sent):
    import server
    from aiohttp import web
    from aiohttp.test_utils import TestClient, TestServer

    routes, application = web.RouteTableDef(), web.Application()
    server.PromptServer.instance.routes = routes
    told_module.serve()
    told_module.serve()
    application.add_routes(routes)

    async def ask() -> list:
        async with TestClient(TestServer(application)) as client:
            return (await (await client.get("/guidekit/told?prompt_id=a")).json())["entries"]

    assert isinstance(asyncio.run(ask()), list)


# Nodes


def report(prompt_id: str, nodes: dict) -> str:
    """The report of node 7, as the host runs it: with hidden inputs on a copy of the class."""

    class InGraph(Report):
        hidden = SimpleNamespace(prompt=nodes)

    sampled = {"samples": torch.ones(1)}
    with CurrentNodeContext(prompt_id, "7"):
        output = InGraph.execute(sampled=sampled)
    assert output.result[0] is sampled
    assert output.ui == {"text": [output.result[1]]}
    return output.result[1]


def test_the_report(told):
    nodes = graph()
    assert report("a", nodes) == NOTHING
    with CurrentNodeContext("a", "2"):
        tell("Lora", "<b>applied</b>\nto all.")
    with CurrentNodeContext("a", "5"):
        told.add(at("a", "5"), [line("3", "9 saved.")])
    expected = "Lora (node 2): \u2039b\u203aapplied\u2039/b\u203a\nto all.\nPatch (node 3, sampler node 5): 9 saved."
    assert report("a", nodes) == expected
    again = copy.deepcopy(nodes)
    again["9"] = {"class_type": "Report", "inputs": {"sampled": ["7", 0]}}
    assert texts(told.behind(at("a", "9"), again))[-1] == expected  # shown under the first report
    with CurrentNodeContext("a", "9"):
        second = type("InGraph", (Report,), {"hidden": SimpleNamespace(prompt=again)}).execute(sampled=None)
    assert second.result == (None, expected)  # and not told of by another one


def test_the_report_outside_a_graph():
    assert Report.execute(sampled=3).result == (3, NOTHING)
    assert show("<b>") == "\u2039b\u203a"


def test_a_report_is_kept_by_the_host():
    output = with_report(1, 2, report="said.")
    assert output.result == (1, 2, "said.")
    assert output.ui == {"text": ["said."]}


@pytest.mark.parametrize("settings", [{"lora_strength": 1.0}, {"mode": MIXTURE, "model_weight": 1.0}])
def test_a_node_without_effect_says_so_in_its_report(settings):
    inputs = {"mode": "negative (NPO)", "lora_strength": 0.0, "model_weight": 0.4} | settings
    output = PreferenceCFG.execute(model=tiny.model("unet"), start_percent=0.0, end_percent=1.0, **inputs)
    assert output.result[1].startswith("nothing is changed: ")
