"""The network of a model: its family and blocks, one call of it and the rows in that call.

A technique names blocks by `block_selection`; `families` is the list of networks that are known. Below it: run/.
"""
