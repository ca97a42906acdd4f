"""Texts as concepts: which of the tokens that a CLIP gives are a text's words, and which linear maps of a network are
given them; lines that say what is to be edited.

Nodes use `lines`, `texts.Texts` and `maps.maps_of`. Below it: network/, weights/.
"""
