"""The gateway's recount: o200k tokens of the text a buyer got. A witness beside the engine's count; it settles nothing.

Text is counted in pieces while the stream goes, so that neither the last byte nor anybody else's stream waits for a
long count, and what is remembered stays small. Pieces are cut only where cutting changes no token
(`pricing.tokenizers.last_cut`), so the sum is exactly the count of the whole text. Where no such place comes along for
`MAX_PENDING` characters, or an answer has a shape that is not known here, there is no recount: an unknown is better
evidence than a wrong figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pricing.tokenizers import MOST_AT_ONCE, count_o200k, last_cut

PIECE: Final = 2_048
MAX_PENDING: Final = MOST_AT_ONCE
MAX_TEXTS: Final = 130


class TextCount:
    """One text that comes in parts. Remembers only what is not counted yet."""

    __slots__ = ("_due_at", "_parts", "_pending", "_uncut", "tokens")

    def __init__(self) -> None:
        self.tokens = 0
        self._parts: list[str] = []
        self._pending = 0
        self._due_at = PIECE
        # So far what is pending was searched for a place to cut, in vain.
        self._uncut = 0

    def add(self, part: str) -> bool:
        """False when more is pending than may be."""
        self._parts.append(part)
        self._pending += len(part)
        return self._pending <= MAX_PENDING

    def count_what_is_due(self) -> None:
        if self._pending < self._due_at:
            return
        text = "".join(self._parts)
        cut = last_cut(text, self._uncut)
        if cut:
            self.tokens += count_o200k(text[:cut])
            text = text[cut:]
        self._parts = [text]
        self._pending = len(text)
        # The last character may still become the first half of a place to cut.
        self._uncut = max(0, len(text) - 1)
        self._due_at = len(text) + PIECE

    def count_all(self) -> int:
        if self._pending:
            self.tokens += count_o200k("".join(self._parts))
            self._parts = []
            self._pending = self._uncut = 0
            self._due_at = PIECE
        return self.tokens


class Recount:
    """All that one answer delivers as text: content, reasoning, refusal, names and arguments of tool calls."""

    __slots__ = ("_fresh", "_texts", "_unknown")

    def __init__(self) -> None:
        self._texts: dict[str, TextCount] = {}
        self._unknown = False
        # Characters that came since the last look at what is due.
        self._fresh = 0

    def take(self, choice: Mapping[str, Any], *, streamed: bool) -> None:
        """A choice as the host sent it, and whether it goes on to the buyer as it is.

        Never raises: no host's doing may spoil an answer here.
        """
        if self._unknown:
            return
        delta = choice.get("delta")
        if not isinstance(delta, Mapping):
            self._add("text", choice.get("text"))
            return
        for name, part in delta.items():
            if not part or name == "role":
                continue
            if name in ("content", "reasoning_content"):
                self._add(name, part)
            elif name == "tool_calls":
                self._take_calls(part)
            elif name in ("function_call", "audio"):
                self._give_up()
            elif not streamed:
                continue
            elif name == "refusal":
                self._add(name, part)
            # Some hosts write reasoning under this name, some under both.
            elif name == "reasoning" and not delta.get("reasoning_content"):
                self._add("reasoning_content", part)

    def count_some(self) -> None:
        """To be called when the buyer has what came: counts once enough has gathered."""
        if self._fresh >= PIECE:
            self._fresh = 0
            for text in self._texts.values():
                text.count_what_is_due()

    def tokens(self, *, native_reasoning_tokens: int) -> int | None:
        """The count, once nothing more comes.

        None: no text was delivered, or the engine reasoned and kept that for itself, or it cannot be known.
        """
        if self._unknown or (native_reasoning_tokens > 0 and "reasoning_content" not in self._texts):
            return None
        return sum(text.count_all() for text in self._texts.values()) or None

    def _take_calls(self, calls: object) -> None:
        if not isinstance(calls, list):
            self._give_up()
            return
        for call in calls:
            function = call.get("function") if isinstance(call, Mapping) else None
            number = call.get("index", 0) if isinstance(call, Mapping) else None
            if (
                not isinstance(function, Mapping)
                or not isinstance(number, int)
                or len(self._texts) > MAX_TEXTS
            ):
                self._give_up()
                return
            self._add(f"name {number}", function.get("name"))
            self._add(f"arguments {number}", function.get("arguments"))

    def _add(self, name: str, part: object) -> None:
        if not part or self._unknown:
            return
        if not isinstance(part, str):
            self._give_up()
            return
        text = self._texts.get(name)
        if text is None:
            text = self._texts[name] = TextCount()
        self._fresh += len(part)
        if not text.add(part):
            self._give_up()

    def _give_up(self) -> None:
        self._unknown = True
        self._texts.clear()
