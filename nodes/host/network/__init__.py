"""The network of a model: its family and blocks, its calls and the rows in a call.

Users name blocks through `block_selection`; `families` lists the known networks. Below it: run/.
"""
