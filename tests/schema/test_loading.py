"""The host finds and loads the pack, whatever its folder is called."""

import asyncio
import inspect
import json
import shutil
import sys
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from app.custom_node_manager import CustomNodeManager
from comfy_api.latest import ComfyExtension

import guidekit
from guidekit.nodes import NODES
from guidekit.tests.schema.catalogue import ENGLISH, PACK, read

NODE_IDS = [node.GET_SCHEMA().node_id for node in NODES]


def test_entry_point():
    assert inspect.iscoroutinefunction(guidekit.comfy_entrypoint)
    extension = asyncio.run(guidekit.comfy_entrypoint())
    assert isinstance(extension, ComfyExtension)
    assert asyncio.run(extension.get_node_list()) == NODES
    assert len(set(NODE_IDS)) == len(NODE_IDS)


def test_no_attribute_of_the_older_kind():
    """The host looks for NODE_CLASS_MAPPINGS first; if it is there, even empty, the entry point is never called."""
    assert not hasattr(guidekit, "NODE_CLASS_MAPPINGS")
    assert len(Path(guidekit.__file__).read_text("utf-8").splitlines()) < 30


@pytest.fixture
def custom_nodes(tmp_path, monkeypatch):
    """An empty custom_nodes folder, the only one of a host that has no nodes yet."""
    import folder_paths

    import nodes

    for table in ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "LOADED_MODULE_DIRS", "EXTENSION_WEB_DIRS"):
        monkeypatch.setattr(nodes, table, {})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "custom_nodes", ([str(tmp_path)], set()))
    monkeypatch.setattr(sys, "path", [*sys.path])  # the host puts a folder of its own in front
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith(str(tmp_path).replace(".", "_x_"))]:
        del sys.modules[name]


def install(folder: Path) -> Path:
    """The pack as installed by an archive or a clone, under another name."""
    left_out = shutil.ignore_patterns(".*", "__pycache__", "output", "tests", "benchmarks", "templates", "*.log")
    return Path(shutil.copytree(PACK, folder, ignore=left_out))


@pytest.mark.parametrize("name", ["guidekit", "some-other-name", "ComfyUI.Guidekit 2"])
def test_loads_under_any_folder_name(name, custom_nodes):
    import nodes

    pack = install(custom_nodes / name)
    asyncio.run(nodes.init_external_custom_nodes())
    assert [*nodes.NODE_CLASS_MAPPINGS] == NODE_IDS
    assert {*nodes.NODE_DISPLAY_NAME_MAPPINGS} == {*NODE_IDS}
    for node in nodes.NODE_CLASS_MAPPINGS.values():
        assert Path(inspect.getfile(node)).is_relative_to(pack)
        assert f"custom_nodes.{name}" == node.RELATIVE_PYTHON_MODULE
    # Once, and under the folder's name: that is where the frontend looks for the help pages.
    assert {name: str(pack / "js")} == nodes.EXTENSION_WEB_DIRS
    # Data files are found beside the code, not by the name of the folder.
    model, clip, vae = nodes.NODE_CLASS_MAPPINGS["GuidekitDemoModel"].execute(family="unet").args
    assert all(part is not None for part in (model, clip, vae))


def test_the_host_serves_templates_and_texts(custom_nodes):
    """Its own routes: the API workflows below the templates are not offered as templates, the locale is found."""

    import nodes

    pack = install(custom_nodes / "some-other-name")
    asyncio.run(nodes.init_external_custom_nodes())

    async def ask(*paths: str) -> list:
        routes, application = web.RouteTableDef(), web.Application()
        CustomNodeManager().add_routes(routes, application, nodes.LOADED_MODULE_DIRS.items())
        application.add_routes(routes)
        async with TestClient(TestServer(application)) as client:
            answers = [await client.get(path) for path in paths]
            return [(answer.status, json.loads(await answer.text())) for answer in answers]

    names = sorted(path.stem for path in (pack / "workflows").glob("*.json"))
    files = [f"/api/workflow_templates/some-other-name/{name}.json" for name in names]
    (_, templates), (_, texts), *served = asyncio.run(ask("/workflow_templates", "/i18n", *files))
    assert [*templates] == ["some-other-name"]
    assert sorted(templates["some-other-name"]) == names
    assert served == [(200, read(pack / "workflows" / f"{name}.json")) for name in names]
    assert texts["en"]["nodeDefs"] == read(ENGLISH)
