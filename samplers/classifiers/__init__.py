"""Image classifiers that guide."""
