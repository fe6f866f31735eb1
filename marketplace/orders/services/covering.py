"""'Keep me covered up to X per Mtok at Y tokens a second': the standing bid that says so."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.conf import settings

from marketplace.accounts.models import Organization
from marketplace.accounts.services import Actor
from marketplace.errors import InvalidInput, NotFound
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import balance
from marketplace.orders.controls_selectors import cap_of
from marketplace.orders.models import Bid
from marketplace.orders.services.bids import place_bid
from marketplace.orders.terms import MAX_LOTS, BidTerms, Steps, check_terms, worst_case_with_tax
from pricing.selectors import grade_in_force

TOKENS_PER_LOT = 1_000


@dataclass(frozen=True, slots=True)
class CoverPreview:
    """The bid that a cover would be, its hold with tax, and what the prepaid balance has free for it."""

    steps: Steps
    worst_case_micros: int
    available_micros: int

    @property
    def is_covered(self) -> bool:
        return self.worst_case_micros <= self.available_micros


def cover_terms(
    *,
    grade: str,
    client_id: str,
    rate_micros_per_mtok: int,
    tokens_per_second: int,
    max_total_micros_per_day: int | None = None,
    valid_until: datetime | None = None,
) -> BidTerms:
    """One step: at most this rate, for as many lots a delivery period as carry `tokens_per_second` standard tokens.

    Raises InvalidInput when that is no quantity of a bid.
    """
    lots = -(-tokens_per_second * settings.DELIVERY_PERIOD_S // TOKENS_PER_LOT)
    if not 1 <= lots <= MAX_LOTS:
        most = MAX_LOTS * TOKENS_PER_LOT // settings.DELIVERY_PERIOD_S
        raise InvalidInput(f"It lies between 1 and {most}.", field="tokens_per_second")
    return BidTerms(
        grade=grade,
        client_id=client_id,
        steps=((rate_micros_per_mtok, lots),),
        max_total_micros_per_day=max_total_micros_per_day,
        valid_until=valid_until,
    )


def place_cover(
    *, organization_id: UUID, terms: BidTerms, operation_id: UUID, now: datetime, actor: Actor
) -> Bid:
    """Place the standing bid of `cover_terms`. Raises what `place_bid` raises, naming the inputs of a cover."""
    try:
        return place_bid(
            organization_id=organization_id, terms=terms, operation_id=operation_id, now=now, actor=actor
        )
    except InvalidInput as error:
        _name_inputs(error)
        raise


def preview_cover(
    *, organization_id: UUID, grade: str, rate_micros_per_mtok: int, tokens_per_second: int, now: datetime
) -> CoverPreview:
    """What a cover would be and hold, were it placed now; changes nothing.

    Raises what placing it would, but for a balance that does not bear it: that is part of the answer.
    """
    terms = cover_terms(
        grade=grade,
        client_id="",
        rate_micros_per_mtok=rate_micros_per_mtok,
        tokens_per_second=tokens_per_second,
    )
    found = grade_in_force(slug=grade, at=now)
    if found is None:
        raise NotFound(f"There is no grade {grade!r} in force.", field="grade")
    try:
        check_terms(terms, cap_micros_per_mtok=cap_of(found, at=now), now=now)
    except InvalidInput as error:
        _name_inputs(error)
        raise
    organization = Organization.objects.get(pk=organization_id)
    free = balance(organization_id=organization_id, kind=AccountKind.PREPAID, currency=found.currency)
    return CoverPreview(
        steps=terms.steps,
        worst_case_micros=worst_case_with_tax(terms.steps, organization.tax_ppm),
        available_micros=free.available_micros,
    )


def _name_inputs(error: InvalidInput) -> None:
    if error.field == "steps.0.rate_micros_per_mtok":
        error.field = "rate_micros_per_mtok"
