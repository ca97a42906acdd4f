"""index.html: a contact sheet of a sweep, one static file that works from the disk.

What comes from workflows, prompts and servers is in it as JSON, in which nothing can end the script it stands in, and
is put on the page as text. The page's policy lets no script run but its own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .journal import Row
from .names import value_text
from .text import cut

PICTURES = ("png", "jpg", "jpeg", "webp", "gif", "avif", "bmp")
VIDEOS = ("mp4", "webm", "mov", "mkv")
SOUNDS = ("flac", "mp3", "wav", "opus", "ogg")
_LONGEST = 2000  # characters of one text

STYLE = """
:root { color-scheme: light dark; --edge: color-mix(in srgb, currentColor 25%, transparent); }
body { font: 14px/1.4 system-ui, sans-serif; margin: 0; }
header { position: sticky; top: 0; z-index: 1; background: Canvas; padding: 8px 12px; }
header { border-bottom: 1px solid var(--edge); }
h1 { font-size: 16px; margin: 0 0 6px; }
label { margin-right: 12px; white-space: nowrap; }
select { max-width: 22em; font: inherit; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 10px; padding: 12px; }
article { border: 1px solid var(--edge); border-radius: 6px; padding: 8px; overflow: hidden; overflow-wrap: anywhere; }
article.failed { border-color: #c33; }
img, video { max-width: 100%; display: block; margin-bottom: 4px; }
audio { width: 100%; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 0 8px; margin: 4px 0; }
dt { opacity: .7; }
dd { margin: 0; }
pre { white-space: pre-wrap; font: inherit; margin: 4px 0; }
.error { color: #c33; }
button { font: inherit; margin: 0 12px 20px; padding: 6px 14px; }
"""
SCRIPT = """
"use strict";
const { names, rows } = JSON.parse(document.getElementById("data").textContent);
const PAGE = 200, ALL = "\\u0000all";
const kinds = JSON.parse(document.getElementById("kinds").textContent);
const controls = document.getElementById("controls"), list = document.getElementById("jobs");
const more = document.getElementById("more"), count = document.getElementById("count");
const columns = ["number", "state", ...names];
const cell = (row, i) => i === 0 ? row.number : i === 1 ? row.state : (row.settings[i - 2] ?? "");
const number = text => text !== "" && Number.isFinite(Number(text));
const order = (a, b) => number(a) && number(b) ? Number(a) - Number(b) : String(a).localeCompare(String(b));
let shown = [], drawn = 0;

function element(kind, text, parent) {
  const made = document.createElement(kind);
  if (text !== null) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}
function choice(label, options) {
  const around = element("label", label + " ", controls), select = element("select", null, around);
  for (const [value, text] of options) {
    const option = element("option", text.length > 80 ? text.slice(0, 79) + "\\u2026" : text, select);
    option.value = value;
  }
  select.addEventListener("change", update);
  return select;
}
const sort = choice("sort by", columns.map((name, i) => [String(i), name]));
const filters = columns.map((name, i) => {
  if (i === 0) return null;
  const values = [...new Set(rows.map(row => String(cell(row, i))))].sort(order);
  return values.length > 1 ? choice(name, [[ALL, "all"], ...values.map(v => [v, v])]) : null;
});
function card(row) {
  const made = element("article", null, null);
  made.className = row.state;
  for (const [name, href] of row.files) {
    const ending = name.split(".").pop().toLowerCase();
    const link = element("a", null, made);
    link.href = href;
    if (kinds.images.includes(ending)) {
      const image = element("img", null, link);
      image.loading = "lazy"; image.src = href; image.alt = name;
    } else if (kinds.videos.includes(ending) || kinds.sounds.includes(ending)) {
      const player = element(kinds.videos.includes(ending) ? "video" : "audio", null, made);
      player.controls = true; player.preload = "none"; player.src = href;
      link.textContent = name;
    } else link.textContent = name;
  }
  const settings = element("dl", null, made);
  columns.forEach((name, i) => { element("dt", name, settings); element("dd", String(cell(row, i)), settings); });
  for (const text of row.texts) element("pre", text, made);
  if (row.error) element("pre", (row.node ? "node " + row.node + ": " : "") + row.error, made).className = "error";
  return made;
}
function draw() {
  for (const row of shown.slice(drawn, drawn + PAGE)) list.append(card(row));
  drawn = Math.min(drawn + PAGE, shown.length);
  more.hidden = drawn === shown.length;
  count.textContent = shown.length + " of " + rows.length + " jobs";
}
function update() {
  const by = Number(sort.value);
  shown = rows.filter(row => filters.every((f, i) => !f || f.value === ALL || f.value === String(cell(row, i))));
  shown.sort((a, b) => order(cell(a, by), cell(b, by)) || a.number - b.number);
  list.replaceChildren();
  drawn = 0;
  draw();
}
more.addEventListener("click", draw);
update();
"""


def write(path: Path, heading: str, names: list[str], rows: Iterable[Row]) -> None:
    """`names`: of the settings."""
    policy = f"default-src 'none'; img-src 'self' file:; media-src 'self' file:; style-src {_hash(STYLE)}; "
    policy += f"script-src {_hash(SCRIPT)}"
    kinds = {"images": PICTURES, "videos": VIDEOS, "sounds": SOUNDS}
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8", newline="\n") as file:
        file.write('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n')
        file.write(f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n')
        file.write('<meta name="viewport" content="width=device-width">\n')
        file.write(f"<title>{html.escape(heading)}</title>\n<style>{STYLE}</style></head><body>\n")
        file.write(f'<header><h1>{html.escape(heading)}</h1><div id="controls"></div><div id="count"></div></header>\n')
        file.write('<main id="jobs"></main><button id="more">more</button>\n')
        file.write(f'<script type="application/json" id="kinds">{_embedded(kinds)}</script>\n')
        file.write(f'<script type="application/json" id="data">{{"names": {_embedded(names)}, "rows": [\n')
        for i, row in enumerate(rows):
            file.write((",\n" if i else "") + _embedded(_entry(row, names)))
        file.write(f"\n]}}</script>\n<script>{SCRIPT}</script>\n</body></html>\n")
    os.replace(part, path)


def _entry(row: Row, names: list[str]) -> dict[str, Any]:
    texts = [text for _, text in row.texts] + [f"{title}: {text}" for title, text in row.told]
    return {
        "number": row.number,
        "state": row.state,
        # Numbers as text: a seed has more digits than a page's numbers.
        "settings": [cut(value_text(row.settings[n]), _LONGEST) if n in row.settings else "" for n in names],
        "files": [[name.rpartition("/")[2], quote(name)] for name, _ in row.files],
        "texts": [cut(text, _LONGEST) for text in texts],
        "node": row.node,
        "error": row.error,
    }


def _embedded(value: Any) -> str:
    """JSON in which no character means something to HTML."""
    text = json.dumps(value, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
