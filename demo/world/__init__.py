"""The demo models' world: lit scenes of solids, captions, networks. Whatever is used at run time."""
