"""Classifiers, candidates, and how the images of a run are classified.

Nodes use the types in `labels` and the classifiers in `clip` and `image`. Below it: run/, files/.
"""
