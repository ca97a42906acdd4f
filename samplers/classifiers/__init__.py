"""Image classifiers for guidance."""
