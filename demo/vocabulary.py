"""The words that the demo models know: one token each."""

from .pictures import BACKGROUNDS, COLOURS, EXTENTS, POSITIONS, SHAPES, SYNONYMS

_SPOKEN = [w for name in EXTENTS + COLOURS + SHAPES + BACKGROUNDS + POSITIONS for w in SYNONYMS.get(name, (name,))]
VOCABULARY = ("<pad>", "<start>", "<end>", "a", "on", "background", ",", *_SPOKEN)
PAD, START, END = 0, 1, 2
MAX_LENGTH = 20  # tokens with start and end; longer prompts continue in a second chunk, as with CLIP
