"""What bidders' programs are told when an auction is published."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from marketplace.contracts.models import Contract
from marketplace.contracts.services import Award
from marketplace.ids import derived_id
from marketplace.orders.models import Auction
from marketplace.webhooks.services import Fact, organizations_listening, record_events
from pricing.models import Rate


def tell_of_awards(auction: Auction, awards: Sequence[Award], rate: Rate, *, now: datetime) -> None:
    """All awards to those who listen in one statement, in the caller's transaction; one look where nobody does."""
    listening = organizations_listening("bid.awarded")
    if not listening:
        return
    lots = {UUID(str(award.contract_id)): award.lots for award in awards}
    owners = Contract.objects.filter(pk__in=list(lots), organization_id__in=listening).order_by("pk")
    facts = [
        Fact(
            organization_id,
            award_id,
            {
                "auction_id": str(auction.id),
                "contract_id": str(contract_id),
                "grade_id": str(auction.grade_id),
                "period_start": auction.period_start.isoformat().replace("+00:00", "Z"),
                "lots": lots[contract_id],
                "rate_micros_per_mtok": rate.micros_per_mtok,
            },
        )
        for contract_id, organization_id in owners.values_list("pk", "organization_id")
        for award_id in [derived_id(auction.id, f"award:{contract_id}")]
    ]
    record_events(facts, event_type="bid.awarded", now=now)
