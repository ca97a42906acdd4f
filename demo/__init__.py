"""The embedded demo models: pictures, vocabulary, networks, training, weights."""
