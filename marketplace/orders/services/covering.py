"""'Keep me covered up to X per Mtok at Y tokens a second': the standing bid that says so."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.conf import settings

from marketplace.accounts.services import Actor
from marketplace.errors import InvalidInput
from marketplace.orders.models import Bid
from marketplace.orders.services.bids import place_bid
from marketplace.orders.terms import MAX_LOTS, BidTerms

TOKENS_PER_LOT = 1_000


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
        if error.field == "steps.0.rate_micros_per_mtok":
            error.field = "rate_micros_per_mtok"
        raise
