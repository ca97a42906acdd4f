"""The embedded demo models: their world, networks, training, weights."""
