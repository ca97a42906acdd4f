"""What an input takes, by the server's /object_info, and values from outside made into what it takes.

Both forms that the host knows are read: ["FLOAT", {...}] and [[options], {...}] of older nodes, ["COMBO", {"options"}]
of newer ones, whose dynamic inputs have dotted names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import SweepError
from .text import near, quoted

DYNAMIC = "COMFY_DYNAMICCOMBO_V3"


@dataclass(frozen=True)
class Spec:
    """`kind`: INT, FLOAT, STRING, BOOLEAN or COMBO; `options` of a COMBO, None where the server does not list them."""

    kind: str
    options: tuple[Any, ...] | None = None
    low: float | None = None
    high: float | None = None

    def value(self, given: Any, where: str) -> Any:
        """A text of the command line, or a value of Python's, as JSON has it; `where` names the input."""
        return getattr(self, f"_{self.kind.lower()}")(given, where)

    def _int(self, given: Any, where: str) -> int:
        try:
            if isinstance(given, bool) or (isinstance(given, float) and not given.is_integer()):
                raise ValueError
            value = int(given)
        except (TypeError, ValueError, OverflowError):
            raise SweepError(f"{where} takes whole numbers, not {quoted(str(given))}.") from None
        return self._bounded(value, where)

    def _float(self, given: Any, where: str) -> float | int:
        try:
            if isinstance(given, bool) or not math.isfinite(value := float(given)):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise SweepError(f"{where} takes numbers, not {quoted(str(given))}.") from None
        value = self._bounded(value, where)
        return int(value) if value.is_integer() else value  # JSON has one spelling of 8, and so has a job

    def _bounded(self, value: Any, where: str) -> Any:
        if self.low is not None and value < self.low:
            raise SweepError(f"{where} is at least {self.low}, not {value}.")
        if self.high is not None and value > self.high:
            raise SweepError(f"{where} is at most {self.high}, not {value}.")
        return value

    def _boolean(self, given: Any, where: str) -> bool:
        words = {"true": True, "false": False}
        if str(given).lower() not in words:
            raise SweepError(f"{where} takes true and false, not {quoted(str(given))}.")
        return words[str(given).lower()]

    def _string(self, given: Any, where: str) -> str:
        if not isinstance(given, str):
            raise SweepError(f"{where} takes text, not {quoted(str(given))}.")
        return given

    def _combo(self, given: Any, where: str) -> Any:
        if self.options is None:
            return given
        for option in self.options:  # which may be numbers
            if given == option or given == str(option):
                return option
        raise SweepError(f"{where} has no choice {quoted(str(given))}; {near(str(given), map(str, self.options))}.")


def inputs(node_info: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The raw entries of a class's inputs by name, those that a chosen option brings among them; `given`: the
    node's."""
    found: dict[str, Any] = {}
    _collect(node_info.get("input"), given, "", found)
    return found


def _collect(sections: Any, given: Mapping[str, Any], prefix: str, found: dict[str, Any]) -> None:
    for section in ("required", "optional"):
        entries = sections.get(section) if isinstance(sections, dict) else None
        for name, entry in (entries or {}).items():
            found[prefix + name] = entry
            if isinstance(entry, list) and entry[:1] == [DYNAMIC]:
                for option in _details(entry).get("options", ()):
                    if option.get("key") == given.get(prefix + name):
                        _collect(option.get("inputs"), given, f"{prefix}{name}.", found)


def spec(entry: Any, present: Any) -> Spec | None:
    """Specification of an entry of `inputs`; None if it takes links only. `present` is its value in the
    workflow, which gives the kind where the server does not say it."""
    kind = entry[0] if isinstance(entry, list) and entry else None
    details = _details(entry)
    if isinstance(kind, list):
        return Spec("COMBO", tuple(kind))
    if kind in ("COMBO", DYNAMIC):
        options = details.get("options")
        if options is None:
            return Spec("COMBO")
        return Spec("COMBO", tuple(option["key"] if isinstance(option, dict) else option for option in options))
    if kind in ("INT", "FLOAT"):
        return Spec(kind, low=details.get("min"), high=details.get("max"))
    if kind in ("STRING", "BOOLEAN"):
        return Spec(kind)
    for python, name in ((bool, "BOOLEAN"), (int, "FLOAT"), (float, "FLOAT"), (str, "STRING")):
        if isinstance(present, python):
            return Spec(name)
    return None


def _details(entry: Any) -> Mapping[str, Any]:
    return entry[1] if isinstance(entry, list) and len(entry) > 1 and isinstance(entry[1], dict) else {}
