"""The only code of the pack that depends on ComfyUI's internals, in rooms (folders).

tests/dev/test_rooms.py checks which room may import from which; run/ and files/ are below all others.
"""
