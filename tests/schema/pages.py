"""Help pages as the frontend gets them: what stands under which heading, tables, links."""

import itertools
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

PACK = Path(__file__).parents[2]
ADDRESS = "https://github.com/guidekit/guidekit/blob/main/"


@dataclass(frozen=True)
class Page:
    text: str

    @cached_property
    def parts(self) -> dict[str, str]:
        """What stands under each heading of the second kind; before the first, under ""."""
        first, *others = re.split(r"^## ", self.text, flags=re.MULTILINE)
        return {"": first.strip()} | {title: text.strip() for title, _, text in (o.partition("\n") for o in others)}

    @cached_property
    def tables(self) -> list["Table"]:
        return tables(self.text)

    @cached_property
    def links(self) -> list[tuple[str, str]]:
        """(text, address) of links, not of images."""
        return re.findall(r"(?<!!)\[([^\]]*)\]\(([^)]*)\)", self.text)


@dataclass(frozen=True)
class Table:
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, i: int = 0) -> list[str]:
        return [row[i] for row in self.rows]


def tables(markdown: str) -> list[Table]:
    found = []
    for is_table, lines in itertools.groupby(markdown.splitlines(), lambda line: line.startswith("|")):
        if is_table:
            head, _, *rows = (tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines)
            found.append(Table(head, tuple(rows)))
    return found


def plain(cell: str) -> str:
    """With usual spaces, without marks."""
    return cell.replace("\xa0", " ").replace("*", "").replace("`", "")


def longest_word(cell: str) -> int:
    """The characters between which a browser breaks no line."""
    return max(map(len, re.split(r"[ \-\n]", cell.replace("`", ""))))


def in_repository(address: str) -> Path | None:
    """The file that an address of this repository leads to."""
    return PACK / unquote(address.removeprefix(ADDRESS)) if address.startswith(ADDRESS) else None
