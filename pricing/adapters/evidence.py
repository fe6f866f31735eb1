"""What is kept of usage that could not be proved: its numbers, so that both sides can see what was wrong with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from typing import Final

import msgspec

MAX_EVIDENCE_BYTES: Final = 1_024
_MAX_DEPTH: Final = 4
_MAX_INT: Final = 2**63
# Names of fields, never sentences.
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,47}")
# The only texts that mean a number's kind: Gemini's modalities.
_MODALITIES: Final = frozenset({"TEXT", "DOCUMENT", "IMAGE", "AUDIO", "VIDEO"})

Evidence = int | float | bool | str | dict[str, "Evidence"] | list["Evidence"] | None


def evidence_of(raw: object) -> str:
    """Raw usage as JSON of at most MAX_EVIDENCE_BYTES, in the order it came: names and numbers alone.

    Where a text stands instead of a number there is only `<text>`, so no word of a prompt or an answer is ever
    kept, and lists of numbers (token ids) are `<list>`. What does not fit is left out and `<cut>` is true.
    """
    budget = _Budget(MAX_EVIDENCE_BYTES - len('{"usage":,"<cut>":true}'))
    kept = _keep(raw, budget, _MAX_DEPTH)
    if budget.cut:
        kept = {**kept, "<cut>": True} if isinstance(kept, dict) else {"usage": kept, "<cut>": True}
    return msgspec.json.encode(kept).decode()


class _Budget:
    """Bytes that are left to spend."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.cut = False

    def spend(self, size: int) -> bool:
        if self.cut or size > self.left:
            self.cut = True
            return False
        self.left -= size
        return True


def _keep(value: object, budget: _Budget, depth: int) -> Evidence:
    if isinstance(value, Mapping) and depth:
        if not budget.spend(len("{}")):
            return None
        kept: dict[str, Evidence] = {}
        for name, child in value.items():
            shown = name if isinstance(name, str) and _NAME.fullmatch(name) else "<name>"
            if not budget.spend(len(shown) + len('"":,')):
                break
            kept[shown] = _keep(child, budget, depth - 1)
        return kept
    if isinstance(value, list) and depth and value and all(isinstance(item, Mapping) for item in value):
        if not budget.spend(len("[]")):
            return None
        entries: list[Evidence] = []
        for item in value:
            if not budget.spend(1):
                break
            entries.append(_keep(item, budget, depth - 1))
        return entries
    leaf = _leaf(value)
    return leaf if budget.spend(len(msgspec.json.encode(leaf))) else None


def _leaf(value: object) -> Evidence:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) <= _MAX_INT:
            return value
        return "<int beyond 2**63>"
    if isinstance(value, float):
        return value if isfinite(value) else f"<{value}>"
    if isinstance(value, str):
        return value if value in _MODALITIES else "<text>"
    return "<list>" if isinstance(value, list) else "<object>"
