"""What of the help pages is made of other files: the page in English under the name that the frontend asks for first,
which is else a 404 for each page, and the images, which are those of the templates.

The frontend asks for docs/NAME/en.md, then for docs/NAME.md, whatever the user's language; images of both are in docs/.
"""

from __future__ import annotations

import re
from pathlib import Path

from . import TEMPLATES
from .files import PACK, WORKFLOWS

PAGES = PACK / "js" / "docs"
LANGUAGE = "en"


def pages() -> list[Path]:
    return sorted(PAGES.glob("*.md"))


def copies() -> dict[Path, Path]:
    """What each of them is a copy of."""
    titles = {template.name: template.title for template in TEMPLATES}
    shown = {name for page in pages() for name in re.findall(r"^!\[.*\]\((\w+)\.jpg\)$", page.read_text("utf-8"), re.M)}
    found = {PAGES / page.stem / f"{LANGUAGE}.md": page for page in pages()}
    return found | {PAGES / f"{name}.jpg": WORKFLOWS / f"{titles[name]}.jpg" for name in sorted(shown)}
