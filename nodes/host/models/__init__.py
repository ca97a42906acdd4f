"""A second model in a run of the first, and LoRAs that act on some predictions only.

Nodes use `second_model`, `model_for_prompt` (the negative, a mixture) and `weak_model`. Below it: run/, predictions/.
"""
