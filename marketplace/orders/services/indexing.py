"""Publishing the price index: one value per grade family and window, computed from stored trades alone.

A window is an hour or a day of UTC. Into it go the trades of auctions for its delivery periods that were published
before it ended, and the committed contracts accepted in it. A group is an owning organization.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from django.db import transaction

from marketplace.contracts.models import Allocation, ContractKind
from marketplace.errors import Conflict, NotFound
from marketplace.ids import uuid7
from marketplace.orders.models import Auction, PriceIndex, Trade
from marketplace.orders.sellers import seller_of
from marketplace.periods import Period, period_at
from pricing.index import METHOD_VERSION, IndexTrade, IndexValue, price_index
from pricing.models import Grade, GradeFamily

SPAN_S: Final = {PriceIndex.Span.HOUR: 3_600, PriceIndex.Span.DAY: 86_400}
# What was stamped inside the window has been committed by then.
LAG: Final = timedelta(seconds=60)
# While an auction of the window is unfinished, its publication may have been stamped inside and not be committed yet.
# No task lives longer than this, so whatever is published after it was stamped after the window.
MOST_WAIT: Final = timedelta(minutes=10)
# After a long downtime the rest is caught up by the next wake-ups.
MOST_WINDOWS: Final = 500
_UNFINISHED: Final = (
    Auction.Status.OPEN,
    Auction.Status.NO_CANCEL,
    Auction.Status.CLOSED,
    Auction.Status.CLEARED,
)


class MethodRetired(Conflict):
    """The value was made by a method that this version of the market does not compute."""

    code = "method_retired"


@dataclass(frozen=True, slots=True)
class IndexInputs:
    """Everything that a value is a function of. `previous` is the rate to carry, in micros per Mtok."""

    spot: Sequence[IndexTrade]
    committed: Sequence[IndexTrade]
    previous: int | None

    def value(self) -> IndexValue:
        return price_index(self.spot, committed=self.committed, previous=self.previous)

    def digest(self) -> str:
        """SHA-256 (hex) over the method and all inputs, whatever order they were read in."""
        sides = {"spot": self.spot, "committed": self.committed}
        text = json.dumps(
            {
                "method": METHOD_VERSION,
                "previous": self.previous,
                **{
                    name: sorted(
                        [one.auction_id, one.rate, one.lots, one.buyer_group, one.seller_group]
                        for one in trades
                    )
                    for name, trades in sides.items()
                },
            },
            sort_keys=True,
            separators=(",", ":"),
        )
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Recomputation:
    """A published value beside what the stored trades give now."""

    published: PriceIndex
    value: IndexValue
    inputs_digest: str

    @property
    def matches(self) -> bool:
        """False only when a trade, or a contract, that the value rests on is not what it was."""
        stored = self.published
        return self.inputs_digest == stored.inputs_digest and self.value == IndexValue(
            rate=stored.rate_micros_per_mtok,  # type: ignore[arg-type]
            basis=stored.basis,  # type: ignore[arg-type]
            trades=stored.trades,
            auctions=stored.auctions,
            groups=stored.groups,
            lots=stored.lots,
        )


def publish_index(*, now: datetime) -> int:
    """Publish every value that is due, oldest window first; returns how many are new. Safe to call at any time.

    At most `MOST_WINDOWS` per call. A window whose auctions are not all published holds up only its own family.
    """
    published = 0
    for family in GradeFamily.objects.order_by("slug"):
        for span in PriceIndex.Span:
            for window in _due_windows(family.id, span, now):
                if published >= MOST_WINDOWS:
                    return published
                if _waits(family.id, window, now):
                    break
                published += _publish_window(family.id, span, window, now)
    return published


def recompute_index(*, index_id: UUID) -> Recomputation:
    """Compute a published value anew from stored trades. Changes nothing.

    Raises NotFound, or MethodRetired for a value of another method than this version's.
    """
    stored = PriceIndex.objects.select_related("family", "previous").filter(pk=index_id).first()
    if stored is None:
        raise NotFound("There is no such index value.")
    if stored.method_version != METHOD_VERSION:
        raise MethodRetired(f"The method {stored.method_version} is not computed any more.")
    inputs = _inputs(stored.family_id, Period(stored.window_start, stored.window_end), stored.previous)
    return Recomputation(stored, inputs.value(), inputs.digest())


def _due_windows(family_id: UUID, span: PriceIndex.Span, now: datetime) -> Iterator[Period]:
    """The windows after the last published one that have ended, while the family can trade or has traded since."""
    last = _last(family_id, span, before=now)
    auctions = Auction.objects.filter(grade__family_id=family_id)
    first = auctions.order_by("period_start").first() if last is None else None
    if last is None and first is None:
        return
    if Grade.objects.filter(family_id=family_id, valid_during__contains=now).exists():
        until = now
    else:
        newest = auctions.order_by("-period_start").first()
        until = min(now, newest.period_end) if newest else now
    start = last.window_end if last is not None else first.period_start  # type: ignore[union-attr]
    window = period_at(start.astimezone(UTC), SPAN_S[span])
    while window.end + LAG <= now and window.start < until:
        yield window
        window = period_at(window.end, SPAN_S[span])


def _last(family_id: UUID, span: str, *, before: datetime) -> PriceIndex | None:
    values = PriceIndex.objects.filter(family_id=family_id, span=span, method_version=METHOD_VERSION)
    return values.filter(window_start__lt=before).order_by("-window_start").first()


def _waits(family_id: UUID, window: Period, now: datetime) -> bool:
    if now >= window.end + MOST_WAIT:
        return False
    unfinished = Auction.objects.filter(grade__family_id=family_id, status__in=_UNFINISHED)
    return unfinished.filter(period_start__gte=window.start, period_start__lt=window.end).exists()


@transaction.atomic
def _publish_window(family_id: UUID, span: PriceIndex.Span, window: Period, now: datetime) -> bool:
    previous = _last(family_id, span, before=window.start)
    inputs = _inputs(family_id, window, previous)
    value = inputs.value()
    _, made = PriceIndex.objects.get_or_create(
        family_id=family_id,
        span=span,
        method_version=METHOD_VERSION,
        window_start=window.start,
        defaults={
            # Lists go by id: an id of the window's time puts what was caught up where it belongs.
            "id": uuid7(window.end),
            "window_end": window.end,
            "rate_micros_per_mtok": value.rate,
            "basis": value.basis.value,
            "trades": value.trades,
            "auctions": value.auctions,
            "groups": value.groups,
            "lots": value.lots,
            "previous": previous,
            "inputs_digest": inputs.digest(),
            "published_at": now,
        },
    )
    return made


def _inputs(family_id: UUID, window: Period, previous: PriceIndex | None) -> IndexInputs:
    rate = previous.rate_micros_per_mtok if previous is not None else None
    return IndexInputs(_spot_trades(family_id, window), _committed_trades(family_id, window), rate)


def _spot_trades(family_id: UUID, window: Period) -> list[IndexTrade]:
    grades = list(Grade.objects.filter(family_id=family_id).values_list("pk", flat=True))
    trades = (
        Trade.objects.annotate(seller=seller_of("ask__"))
        .filter(
            auction__grade_id__in=grades,
            auction__period_start__gte=window.start,
            auction__period_start__lt=window.end,
            auction__published_at__lt=window.end,
        )
        .values_list(
            "auction_id",
            "rate_micros_per_mtok",
            "lots",
            "bid__organization_id",
            "seller",
        )
    )
    return [
        IndexTrade(str(auction), rate, lots, str(buyer), str(seller))
        for auction, rate, lots, buyer, seller in trades
    ]


def _committed_trades(family_id: UUID, window: Period) -> list[IndexTrade]:
    """One per contract and offering: the provider's own rate, weighted by firm lots of a delivery period."""
    allocations = Allocation.objects.filter(
        contract__kind=ContractKind.COMMITTED,
        contract__grade__family_id=family_id,
        contract__created_at__gte=window.start,
        contract__created_at__lt=window.end,
        period_start__isnull=True,
    ).values_list(
        "contract_id",
        "rate_micros_per_mtok",
        "firm_lots",
        "contract__organization_id",
        "offering__host__provider__organization_id",
    )
    return [
        IndexTrade(str(contract), rate, lots, str(buyer), str(seller))
        for contract, rate, lots, buyer, seller in allocations
    ]
