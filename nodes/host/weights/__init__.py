"""Files of weights that were tuned to preferences, read for the model in hand.

Nodes use `read.read_tuned`. Below it: files/.
"""
