"""Errors of the store."""


class StoreError(ValueError):
    """The disk or the database has failed; the message is a sentence for the user."""


class UnknownIdError(ValueError):
    """There is no image with this id."""
