"""The ways in which the host keeps weights on a card or elsewhere."""

import comfy.model_management
from comfy.model_management import LoadedModel, VRAMState

from guidekit.tests.device.machine import GPU

WAYS = ("whole", "half", "half without streams", "novram")


def keep(way: str, monkeypatch) -> None:
    """From now on, models are loaded in this way."""
    if way == "whole":
        return
    comfy.model_management.unload_all_models()
    monkeypatch.setattr(comfy.model_management, "NUM_STREAMS", 2 if way == "half" and GPU else 0)
    if way == "novram" and GPU:
        monkeypatch.setattr(comfy.model_management, "vram_state", VRAMState.NO_VRAM)
    load, share = LoadedModel.model_load, 0 if way == "novram" else 0.5

    def model_load(self, lowvram_model_memory=0, force_patch_weights=False):
        more = self.model.model_size() * share - self.model.loaded_size()
        return load(self, max(more, 0.1), force_patch_weights)

    monkeypatch.setattr(LoadedModel, "model_load", model_load)
