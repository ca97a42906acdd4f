"""Classifiers, candidates and what images of a run are taken for.

Nodes use the types in `labels` and the classifiers in `clip` and `image`. Below it: run/, files/.
"""
