"""Unloads all models after each test: the host collects garbage, and warns, whenever a model of its list is gone."""

import comfy.model_management
import folder_paths
import pytest

from guidekit.tests.host import tiny


@pytest.fixture(autouse=True)
def _models_are_put_away():
    yield
    comfy.model_management.unload_all_models()
    tiny.HANDED_OUT.clear()
    folder_paths.filename_list_cache.clear()  # a test's own folders are gone
