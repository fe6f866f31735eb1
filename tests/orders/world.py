"""A bid of the cast and one round of its market, through the services."""

from __future__ import annotations

from datetime import datetime, timedelta

from marketplace.accounts.services import SYSTEM
from marketplace.ids import uuid7
from marketplace.ledger.selectors import balance
from marketplace.orders.models import Auction, Bid
from marketplace.orders.services.bids import place_bid
from marketplace.orders.services.revising import revise_bid
from marketplace.orders.services.rounds import advance_auctions
from marketplace.orders.terms import BidChanges, BidTerms
from providers.services import record_heartbeat
from tests.cast import Party, Plant

PERIOD = timedelta(minutes=5)
STEPS = ((450_000, 40), (300_000, 20))


def bid_of(party: Party, now: datetime, **changes: object) -> Bid:
    terms = {"grade": "tiny-chat", "client_id": "b1", "steps": STEPS, **changes}
    return place_bid(
        organization_id=party.id,
        terms=BidTerms(**terms),  # type: ignore[arg-type]
        operation_id=uuid7(),
        now=now,
        actor=SYSTEM,
    )


def revise(party: Party, bid: Bid, now: datetime, *, revision: int | None = None, **changes: object) -> Bid:
    return revise_bid(
        organization_id=party.id,
        bid_id=bid.id,
        changes=BidChanges(**changes),  # type: ignore[typeddict-item]
        revision=bid.revision if revision is None else revision,
        now=now,
        actor=SYSTEM,
    )


def beat(plant: Plant, now: datetime) -> None:
    record_heartbeat(
        host_id=plant.host.id,
        boot_id="boot-1",
        ready=True,
        in_flight=0,
        registers={},
        energy_millijoules=None,
        now=now,
    )


def run_round(plant: Plant, start: datetime) -> Auction:
    """Open at `start`, pass every phase, and publish; returns the auction of the period after it."""
    for share in (0.0, 0.85, 0.92, 0.93):
        at = start + PERIOD * share
        beat(plant, at)
        advance_auctions(now=at)
    return Auction.objects.get(period_start=start + PERIOD)


def held(party: Party) -> int:
    return balance(organization_id=party.id, kind="prepaid", currency="USD").pending_micros


def available(party: Party) -> int:
    return balance(organization_id=party.id, kind="prepaid", currency="USD").available_micros
