"""Files in the host's folders: finding, checking, reading and writing them.

Nodes use `folders.Folder`. No other room is below it.
"""
