"""Writes the templates, and what of the help pages is copied: python dev.py python -m guidekit.templates

What no template makes any more, or no page shows, is removed; the difference is yours to read before you commit it.
"""

import shutil
import sys
from pathlib import Path

from . import TEMPLATES
from .files import PACK, SUBGRAPHS, WORKFLOWS, contents
from .host import load_host, object_info
from .pages import PAGES, copies, pages


def images() -> dict[Path, Path]:
    """The thumbnail of every template that has one, and that of the template of which it is a run: what the technique
    does is shown on the demo models."""
    titles = {template.name: template.title for template in TEMPLATES}
    named = {template.title: titles[template.image] for template in TEMPLATES if template.image}
    return {WORKFLOWS / f"{title}.jpg": WORKFLOWS / f"{image}.jpg" for title, image in named.items()}


def main() -> None:
    texts = contents(object_info(load_host()))
    kept = {*texts, *images(), *copies(), *pages()}
    for path in [p for folder in (WORKFLOWS, SUBGRAPHS, PAGES) for p in folder.rglob("*.*") if p not in kept]:
        path.unlink()
        sys.stdout.write(f"removed {path.relative_to(PACK)}\n")
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
            sys.stdout.write(f"wrote {path.relative_to(PACK)}\n")
    for copy, original in {**images(), **copies()}.items():
        if original.exists() and copy != original:
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(original, copy)


if __name__ == "__main__":
    main()
