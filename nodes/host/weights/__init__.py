"""Files of tuned weights (LoRAs and others, whole networks), read as patches of a given model.

Nodes use `read.read_tuned`. Below it: files/.
"""
