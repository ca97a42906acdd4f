"""What the store says no to."""


class StoreError(ValueError):
    """What the disk or the database cannot do, as a sentence."""


class UnknownIdError(ValueError):
    """An id that no image has."""
