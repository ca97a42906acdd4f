"""What of the pack knows ComfyUI's internals, in rooms.

Which room may import from which is held by tests/dev/test_rooms.py; run/ and files/ are below all others.
"""
