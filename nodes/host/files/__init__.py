"""Files in the host's folders: found, read whole and checked, written whole.

Nodes use `folders.Folder`; nothing below it.
"""
