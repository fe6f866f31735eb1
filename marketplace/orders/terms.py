"""What a bid asks for, whether it may, and how two versions of it compare. Pure but for the errors' names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypedDict

from marketplace.errors import InvalidInput
from marketplace.orders.pairing import worst_case_micros
from pricing.rating import gross_up
from pricing.units import Micros, Ppm

MAX_STEPS = 10
MAX_LOTS = 1_000_000_000
MAX_SUBSTITUTES = 5

Steps = Sequence[tuple[int, int]]
# (grade's slug, adjustment in micros per Mtok).
Substitutes = Sequence[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class BidTerms:
    """What a buyer asks for. `steps` are (rate in micros per Mtok, lots), rates not rising.

    `period_start` None makes it standing: it enters every book until it is cancelled or, with `valid_until`, every
    book whose gate comes before that moment. A step is worth its rate + adjustment in each grade of `substitutes`.
    """

    grade: str
    client_id: str
    steps: Steps
    period_start: datetime | None = None
    min_fill_lots: int = 0
    all_or_none: bool = False
    max_total_micros_per_day: int | None = None
    valid_until: datetime | None = None
    substitutes: Substitutes = ()

    def document(self) -> dict[str, Any]:
        """The form that is stored, digested and signed: integers, text and null only; times in UTC.

        Without substitutes it has no such name.
        """
        named = {"substitutes": [[grade, more] for grade, more in sorted(self.substitutes)]}
        return {
            "grade": self.grade,
            "client_id": self.client_id,
            "steps": [[rate, lots] for rate, lots in self.steps],
            "period_start": utc_text(self.period_start),
            "min_fill_lots": self.min_fill_lots,
            "all_or_none": self.all_or_none,
            "max_total_micros_per_day": self.max_total_micros_per_day,
            "valid_until": utc_text(self.valid_until),
            **(named if self.substitutes else {}),
        }

    def sha256(self) -> bytes:
        return hashlib.sha256(canonical(self.document())).digest()


class BidChanges(TypedDict, total=False):
    """What a revision may change; what is left out stays."""

    steps: Steps
    min_fill_lots: int
    all_or_none: bool
    max_total_micros_per_day: int | None
    valid_until: datetime | None
    substitutes: Substitutes


def canonical(document: Mapping[str, Any]) -> bytes:
    """One spelling of a document: names sorted, no white space, UTF-8 (RFC 8785 for what stands in ours)."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def utc_text(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def check_terms(terms: BidTerms, *, cap_micros_per_mtok: int, now: datetime) -> None:
    """Raises InvalidInput naming the field."""
    check_steps(terms.steps, terms.min_fill_lots, cap_micros_per_mtok)
    if terms.max_total_micros_per_day is not None and terms.max_total_micros_per_day < 1:
        raise InvalidInput("A daily budget is at least 1 micro.", field="max_total_micros_per_day")
    if terms.valid_until is not None and terms.period_start is not None:
        raise InvalidInput("A bid for one period ends with its period.", field="valid_until")
    if terms.valid_until is not None and terms.valid_until <= now:
        raise InvalidInput("It must lie ahead.", field="valid_until")


def check_substitutes(terms: BidTerms, *, caps_micros_per_mtok: Mapping[str, int]) -> None:
    """Raises InvalidInput naming the substitute and its part. `caps_micros_per_mtok` are of the grades in force.

    A step's value lies between 1 and the cap in each grade, so that the hold is for what could really be paid.
    """
    if not terms.substitutes:
        return
    if len(terms.substitutes) > MAX_SUBSTITUTES:
        raise InvalidInput(f"A bid names at most {MAX_SUBSTITUTES} substitutes.", field="substitutes")
    if terms.all_or_none or terms.min_fill_lots:
        raise InvalidInput(
            "A bid that takes other grades has no minimum: that is decided within one grade.",
            field="all_or_none" if terms.all_or_none else "min_fill_lots",
        )
    seen = {terms.grade}
    for number, (grade, adjustment) in enumerate(terms.substitutes):
        field = f"substitutes.{number}.grade"
        if grade == terms.grade:
            raise InvalidInput("That is the bid's own grade.", field=field)
        if grade in seen:
            raise InvalidInput("This grade is named twice.", field=field)
        seen.add(grade)
        cap = caps_micros_per_mtok.get(grade)
        if cap is None:
            raise InvalidInput("There is no such grade in force in this market.", field=field)
        if terms.steps[-1][0] + adjustment < 1 or terms.steps[0][0] + adjustment > cap:
            raise InvalidInput(
                f"Each step's rate + adjustment lies between 1 and that grade's cap of {cap} micros per Mtok.",
                field=f"substitutes.{number}.adjustment_micros_per_mtok",
            )


def check_steps(steps: Steps, min_fill_lots: int, cap_micros_per_mtok: int) -> None:
    """Raises InvalidInput naming the step and its part, or `min_fill_lots`."""
    if not 1 <= len(steps) <= MAX_STEPS:
        raise InvalidInput(f"A bid has 1 to {MAX_STEPS} steps.", field="steps")
    cap = previous = cap_micros_per_mtok
    for number, (rate, lots) in enumerate(steps):
        if not 1 <= rate <= cap:
            raise InvalidInput(
                f"A rate lies between 1 and the cap of {cap} micros per Mtok.",
                field=f"steps.{number}.rate_micros_per_mtok",
            )
        if rate > previous:
            raise InvalidInput(
                "Rates do not rise along the steps.", field=f"steps.{number}.rate_micros_per_mtok"
            )
        if not 1 <= lots <= MAX_LOTS:
            raise InvalidInput(f"A step has 1 to {MAX_LOTS} lots.", field=f"steps.{number}.lots")
        previous = rate
    total = total_lots(steps)
    if total > MAX_LOTS:
        raise InvalidInput(f"A bid has at most {MAX_LOTS} lots.", field="steps")
    if not 0 <= min_fill_lots <= total:
        raise InvalidInput("min_fill_lots cannot exceed the bid's lots.", field="min_fill_lots")


def total_lots(steps: Steps) -> int:
    return sum(lots for _, lots in steps)


def worst_case_with_tax(steps: Steps, tax_ppm: int, adjustments: Sequence[int] = ()) -> int:
    """Micros that a bid's hold must cover: `max over grades and steps of (rate + adjustment) x cumulative lots`.

    All lots of a bid trade at one distance from its steps whatever the grades, so the dearest grade bounds any
    mixture of them. `adjustments` are of its substitutes; each may add an award that is rounded up on its own, before
    and after tax, and is given two micros for that.
    """
    dearest = max(0, *adjustments) if adjustments else 0
    worst = worst_case_micros([(rate + dearest, lots) for rate, lots in steps])
    more = len(adjustments)
    return gross_up(Micros(worst + more), Ppm(tax_ppm)) + more


def takes_more(new: Substitutes, old: Substitutes) -> bool:
    """Whether some grade is worth more than before, or is taken that was not."""
    before = dict(old)
    return any(grade not in before or adjustment > before[grade] for grade, adjustment in new)


def asks_for_more(new: Steps, old: Steps) -> bool:
    """Whether at some rate more lots are wanted than before. What asks for more anywhere stands behind whoever was
    there first; a pure reduction keeps its place."""
    return any(_lots_at(new, rate) > _lots_at(old, rate) for rate, _ in new)


def only_improves(new: BidTerms, old: BidTerms) -> str | None:
    """None when `new` is at every rate as good for the sellers as `old`, else the field that is worse.

    Whatever could make the order fill less is worse: fewer lots at any rate, a greater minimum, a smaller daily
    budget, an earlier end. What is moved to another grade is taken from one, so substitutes stay as they are.
    """
    if asks_for_more(old.steps, new.steps):
        return "steps"
    if sorted(new.substitutes) != sorted(old.substitutes):
        return "substitutes"
    if _minimum(new) > _minimum(old):
        return "all_or_none" if new.all_or_none else "min_fill_lots"
    if _is_less(new.max_total_micros_per_day, old.max_total_micros_per_day):
        return "max_total_micros_per_day"
    if _is_less(new.valid_until, old.valid_until):
        return "valid_until"
    return None


def _lots_at(steps: Steps, rate: int) -> int:
    """Lots wanted when the market clears at `rate`."""
    return sum(lots for limit, lots in steps if limit >= rate)


def _minimum(terms: BidTerms) -> int:
    return total_lots(terms.steps) if terms.all_or_none else terms.min_fill_lots


def _is_less(new: Any, old: Any) -> bool:
    """None is without a limit."""
    return new is not None and (old is None or new < old)
