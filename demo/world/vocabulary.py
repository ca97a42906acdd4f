"""The words that the demo models know, one token each, and the words for each class."""

from .scenes import COLOURS, EXTENTS, FLOORS, MATERIALS, SHAPES, TIMES

# What a class may be called; the first name is the usual one.
NAMES = {
    "ball": ("ball", "sphere"),
    "cube": ("cube", "box", "block"),
    "cylinder": ("cylinder", "drum"),
    "cone": ("cone",),
    "ring": ("ring", "donut", "torus"),
    "matte": ("matte", "dull"),
    "glossy": ("glossy", "shiny"),
    "metal": ("metal", "metallic"),
    "small": ("small", "little", "tiny"),
    "large": ("large", "big"),
    "wood": ("on wood", "on a wooden floor"),
    "tiles": ("on tiles", "on a tiled floor"),
    "grass": ("on grass", "on a lawn"),
    "sand": ("on sand", "on a beach"),
    "day": ("by day", "in daylight"),
    "sunset": ("at sunset", "in the evening"),
    "night": ("at night", "by moonlight"),
    **{colour: (colour,) for colour in COLOURS},
}
THING = "thing"  # a solid whose shape is not said

# {a} and {b}: two solids, a left of b, a nearer than b, or either way round.
LEFT = (
    "{a} left of {b}", "{a} to the left of {b}", "{b} right of {a}", "{b} to the right of {a}",
    "{a} on the left, {b} on the right",
)  # fmt: skip
NEARER = ("{a} in front of {b}", "{b} behind {a}")
TOGETHER = ("{a} and {b}", "{a} next to {b}", "{a} beside {b}")
# Three solids from left to right, or in any order.
ROW = ("{a}, {b} and {c} from left to right", "{b} between {a} and {c}", "{a} left of {b} and {c}")
GROUP = ("{a}, {b} and {c}",)

_PHRASES = (*LEFT, *NEARER, *TOGETHER, *ROW, *GROUP, "a an", THING)
_CLASSES = (*EXTENTS, *MATERIALS, *COLOURS, *SHAPES, *FLOORS, *TIMES)


def _words() -> list[str]:
    texts = [*_PHRASES, *(name for c in _CLASSES for name in NAMES[c])]
    spoken = " ".join(texts).replace("{a}", "").replace("{b}", "").replace("{c}", "").replace(",", " , ").split()
    return list(dict.fromkeys(spoken))


PAD, START, END = 0, 1, 2
VOCABULARY = ("<pad>", "<start>", "<end>", *_words())
MAX_LENGTH = 32  # tokens with start and end; longer prompts continue in a second chunk, as with CLIP
