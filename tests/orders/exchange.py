"""A market of three buyers and three sellers, so that rules about few organizations let its data be seen."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from marketplace.accounts.services import SYSTEM
from marketplace.ids import uuid7
from marketplace.orders.models import Auction, Bid
from marketplace.orders.services.bids import BidTerms, place_bid
from marketplace.orders.services.rounds import advance_auctions
from pricing.models import Grade
from providers.services import open_capacity, record_heartbeat
from tests.cast import Party, Plant, fund, make_party, make_plant

PERIOD = timedelta(minutes=5)
HOUR = timedelta(hours=1)
FLOOR = 200_000
BID_LOTS = 29


@dataclass(frozen=True)
class Exchange:
    grade: Grade
    buyers: list[Party]
    sellers: list[Party]
    plants: list[Plant]

    def bid(
        self,
        party: Party,
        at: datetime,
        *,
        steps: tuple[tuple[int, int], ...],
        client_id: str = "b",
        **more: object,
    ) -> Bid:
        terms = BidTerms(grade=self.grade.family.slug, client_id=client_id, steps=steps, **more)  # type: ignore[arg-type]
        return place_bid(organization_id=party.id, terms=terms, operation_id=uuid7(), now=at, actor=SYSTEM)

    def run(self, start: datetime, *, rounds: int = 1) -> Auction:
        """Whole rounds from `start` on; the auction of the last one."""
        for number in range(rounds):
            begin = start + number * PERIOD
            for share in (0.0, 0.85, 0.92, 0.93):
                at = begin + PERIOD * share
                for plant in self.plants:
                    record_heartbeat(
                        host_id=plant.host.id, boot_id="boot-1", ready=True, in_flight=0, registers={},
                        energy_millijoules=None, now=at,
                    )  # fmt: skip
                open_capacity(now=at)
                advance_auctions(now=at)
        return Auction.objects.get(grade=self.grade, period_start=start + rounds * PERIOD)


def make_exchange(grade: Grade, now: datetime, *, standing: bool = True) -> Exchange:
    """Every seller asks his whole host at the same floor; every buyer has a standing bid of `BID_LOTS`."""
    buyers = [make_party(f"Buyer{number}", ["buyer"], now) for number in range(3)]
    sellers = [make_party(f"Seller{number}", ["provider"], now) for number in range(3)]
    plants = [make_plant(seller, grade, now, spot_floor=FLOOR) for seller in sellers]
    exchange = Exchange(grade, buyers, sellers, plants)
    for buyer in buyers:
        fund(buyer, 100_000_000, now)
        if standing:
            exchange.bid(buyer, now, steps=((450_000, BID_LOTS),))
    return exchange
