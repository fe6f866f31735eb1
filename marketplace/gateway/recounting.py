"""The gateway's recount: o200k tokens of the text a buyer got. A witness beside the engine's count.

It settles nothing, unless no usage came at all: then an estimate is made of it.

Text is counted in pieces while the stream goes, so that neither the last byte nor anybody else's stream waits for a
long count, and what is remembered stays small. Pieces are cut only where cutting changes no token
(`pricing.tokenizers.last_cut`), so the sum is exactly the count of the whole text; only where no such place comes along
for `MAX_PENDING` characters it is cut anywhere.

No host can switch it off: what is no text counts as none, and the rest is counted all the same. No engine writes such
things, and one that does only lowers its own recount.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pricing.tokenizers import MOST_AT_ONCE, count_o200k, last_cut

PIECE: Final = 2_048
MAX_PENDING: Final = MOST_AT_ONCE
MAX_CALLS: Final = 64
REASONING: Final = "reasoning"
# The call of the interface before tool calls.
ONLY: Final = "only"


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

    def add(self, part: str) -> None:
        self._parts.append(part)
        self._pending += len(part)

    def count_what_is_due(self) -> bool:
        """Counts at most `MAX_PENDING` characters; whether more are due."""
        if self._pending < self._due_at:
            return False
        text = "".join(self._parts)
        searched = min(len(text), MAX_PENDING + 1)
        cut = last_cut(text[:searched], self._uncut) or (MAX_PENDING if len(text) > MAX_PENDING else 0)
        if cut:
            self.tokens += count_o200k(text[:cut])
            text = text[cut:]
        self._parts = [text]
        self._pending = len(text)
        # The last character may still become the first half of a place to cut.
        self._uncut = max(0, searched - cut - 1)
        is_more_due = len(text) > MAX_PENDING
        self._due_at = 0 if is_more_due else len(text) + PIECE
        return is_more_due

    def count_all(self) -> int:
        if self._pending:
            self.tokens += count_o200k("".join(self._parts))
            self._parts = []
            self._pending = self._uncut = 0
            self._due_at = PIECE
        return self.tokens


class Recount:
    """All that one answer delivers as text: content, reasoning, refusal, names and arguments of calls."""

    __slots__ = ("_fresh", "_texts")

    def __init__(self) -> None:
        self._texts: dict[str, TextCount] = {}
        # Characters that came since the last look at what is due.
        self._fresh = 0

    def take(self, choice: Mapping[str, Any], *, streamed: bool, chat: bool = True) -> None:
        """A choice as the host sent it, and whether it goes on to the buyer as it is.

        Never raises: no host's doing may spoil an answer here.
        """
        if not chat:
            self._add("text", choice.get("text"))
            return
        delta = choice.get("delta")
        if not isinstance(delta, Mapping):
            return
        self._add("content", delta.get("content"))
        # Some hosts write reasoning under the second name, some under both.
        self._add(REASONING, delta.get("reasoning_content") or delta.get("reasoning"))
        calls = delta.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, Mapping):
                self._take_call(call.get("index", 0), call.get("function"))
        # Answers that are sent as a whole have no place for these.
        if streamed:
            self._add("refusal", delta.get("refusal"))
            self._take_call(ONLY, delta.get("function_call"))

    def count_some(self) -> bool:
        """To be called when the buyer has what came: counts once enough has gathered.

        True when there is more to count, which may wait until others had their turn.
        """
        if self._fresh < PIECE:
            return False
        # Of each text, whether or not another has more.
        if sum(text.count_what_is_due() for text in self._texts.values()):
            return True
        self._fresh = 0
        return False

    @property
    def has_reasoning(self) -> bool:
        """Whether any text came in which the engine reasons."""
        return REASONING in self._texts

    def tokens(self) -> int | None:
        """The count, once nothing more comes. None: no text was delivered."""
        return sum(text.count_all() for text in self._texts.values()) or None

    def _take_call(self, number: object, function: object) -> None:
        if isinstance(function, Mapping):
            # What is remembered stays small, whatever a host numbers its calls with.
            if number != ONLY and not (type(number) is int and 0 <= number < MAX_CALLS):
                number = "beyond"
            self._add(f"name {number}", function.get("name"))
            self._add(f"arguments {number}", function.get("arguments"))

    def _add(self, name: str, part: object) -> None:
        if not part or not isinstance(part, str):
            return
        text = self._texts.get(name)
        if text is None:
            text = self._texts[name] = TextCount()
        self._fresh += len(part)
        text.add(part)
