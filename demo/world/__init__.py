"""The demo models' second world: lit scenes of solids, captions, networks. Whatever is used at run time."""
