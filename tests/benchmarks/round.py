"""A whole auction round with its database: open the book, seal it at the gate, clear and confirm, publish.

Standing bids of 100 buyers in one grade, two steps each, on the shares of nine hosts. Every second bid has lost its
hold to an award of the round before, so that opening tops it up, and about half of the bids trade. At 1,000, 10,000
and 100,000 bids, each in a grade of its own, so that the growth shows. The bids are made by SQL straight into the
tables, as `place_bid` would have left them; the ledger is checked after the last round.

`ROUND_BIDS` names other sizes, separated by commas.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from django.db import connection, connections

from marketplace.accounts.services import ensure_operator
from marketplace.ids import uuid7
from marketplace.ledger.selectors import check_ledger
from marketplace.ledger.services import NewTransfer, account_id, post_transfers
from marketplace.orders.models import Auction, Bid, Trade
from marketplace.orders.services.clearing import clear_auction, publish_auction
from marketplace.orders.services.rounds import close_due_auctions, open_auctions
from marketplace.periods import delivery_period
from pricing.models import Grade

BUYERS: Final = 100
HOSTS: Final = 8
LOTS_ASKED_PER_BID: Final = 5
BALANCE_MICROS: Final = 10**15
MOST_S: Final = 10
MOST_MEMORY_MB: Final = 1024
PERIOD: Final = timedelta(minutes=5)
_FILL: Final = """
CREATE TEMPORARY TABLE made ON COMMIT DROP AS
SELECT n, uuidv7() AS contract_id, uuidv7() AS hold_id, uuidv7() AS bid_id, rate, rate * 3 / 4 AS second_rate, lots,
       (%(buyers)s::uuid[])[1 + n %% %(buyer_count)s] AS buyer_id,
       (%(accounts)s::uuid[])[1 + n %% %(buyer_count)s] AS account_id,
       CASE WHEN n %% 2 = 0 THEN 0
            ELSE (greatest(rate * lots, (rate * 3 / 4) * (lots + 5)) + 999) / 1000 END AS held
  FROM (
    SELECT n, 100000 + (random() * 1900000)::bigint AS rate, 1 + (random() * 9)::bigint AS lots
      FROM generate_series(1, %(bids)s) AS n
  ) AS drawn;
INSERT INTO contracts_contract (
    id, organization_id, grade_id, kind, status, currency, payment, overage_policy, max_rate_micros_per_mtok, starts_at,
    created_at
) SELECT contract_id, buyer_id, %(grade)s, 'spot', 'active', 'USD', 'prepaid', 'list', rate, %(now)s, %(now)s FROM made;
INSERT INTO ledger_hold (
    id, account_id, amount_micros, opened_micros, captured_micros, code, reference_id, status, created_at
) SELECT hold_id, account_id, held, held, 0, 'bid', bid_id, 'open', %(now)s FROM made;
UPDATE ledger_ledgeraccount AS a SET debits_pending_micros = a.debits_pending_micros + m.held
  FROM (SELECT account_id, sum(held)::bigint AS held FROM made GROUP BY 1) AS m WHERE a.id = m.account_id;
INSERT INTO orders_bid (
    id, organization_id, grade_id, contract_id, client_id, terms_sha256, status, standing, min_fill_lots, all_or_none,
    ledger_hold_id, skip_reason, created_at, priority_at, revision
) SELECT bid_id, buyer_id, %(grade)s, contract_id, bid_id::text, '\\x00', 'open', true, 0, false, hold_id, '',
         %(now)s - n * interval '1 ms', %(now)s - n * interval '1 ms', 1 FROM made;
INSERT INTO orders_bidstep (id, bid_id, number, rate_micros_per_mtok, lots)
SELECT uuidv7(), bid_id, 0, rate, lots FROM made UNION ALL SELECT uuidv7(), bid_id, 1, second_rate, 5 FROM made;
"""


def run() -> Iterator[dict[str, Any]]:
    """Seconds of every step and of the whole round per size, then the most memory that this process held."""
    sizes = [int(size) for size in os.environ.get("ROUND_BIDS", "1000,10000,100000").split(",")]
    now = delivery_period(datetime.fromisoformat("2026-03-10T12:00:00+00:00")).start
    buyers, accounts, provider = _world(now)
    for size in sizes:
        grade = _fill(size, buyers, accounts, provider, now)
        yield from _round(size, grade, now)
        # The next size has a grade and a period of its own.
        Bid.objects.filter(grade=grade).update(status=Bid.Status.CANCELLED)
        now += PERIOD
    assert check_ledger() == []
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    yield _result("round_memory", memory, "MiB", MOST_MEMORY_MB)


def _round(size: int, grade: Grade, now: datetime) -> Iterator[dict[str, Any]]:
    late = now + PERIOD * 0.92
    opened = _timed(partial(open_auctions, now=now))
    auction = Auction.objects.get(grade=grade)
    steps: dict[str, Callable[[], object]] = {
        "close": partial(close_due_auctions, now=late),
        "clear": partial(clear_auction, auction_id=auction.id, now=late),
        "publish": partial(publish_auction, auction_id=auction.id, now=late),
    }
    seconds = {"open": opened} | {name: _timed(step) for name, step in steps.items()}
    assert not Bid.objects.filter(grade=grade).exclude(skip_reason="").exists()
    assert Trade.objects.filter(auction=auction).count() > size // 4
    for name, value in seconds.items():
        yield _result(f"round_{size}_{name}", value, "s", MOST_S)
    yield _result(f"round_{size}", sum(seconds.values()), "s", MOST_S)


def _world(now: datetime) -> tuple[list[Any], list[Any], Any]:
    """Buyers with money, and somebody who provides."""
    from tests.cast import make_party

    operator = ensure_operator(now=now)
    buyers = [make_party(f"Buyer{number}", ["buyer"], now).id for number in range(BUYERS)]
    accounts = [
        account_id(organization_id=buyer, kind="prepaid", currency="USD", now=now) for buyer in buyers
    ]
    processor = account_id(organization_id=operator.id, kind="processor", currency="USD", now=now)
    top_ups = [NewTransfer(uuid7(), processor, account, BALANCE_MICROS, "top_up") for account in accounts]
    post_transfers(top_ups, now=now)
    return buyers, accounts, make_party("Provider", ["provider"], now)


def _fill(bids: int, buyers: list[Any], accounts: list[Any], provider: Any, now: datetime) -> Grade:
    """A grade with its hosts and that many bids, one host too dear to sell anything."""
    from tests.cast import make_grade, make_plant

    grade = make_grade(now - timedelta(days=1), slug=f"grade-{bids}", model=f"model-{bids}")
    for number in range(HOSTS + 1):
        floor = 100_000 + 50_000 * number if number < HOSTS else 4_900_000
        make_plant(
            provider,
            grade,
            now,
            name=f"{bids}-{number}",
            spot_floor=floor,
            firm_rate=4_950_000,
            list_rate=5_000_000,
        )
    with connections["owner"].cursor() as cursor:
        cursor.execute(
            "UPDATE providers_offering SET dependable_numerator_per_s = %s WHERE grade_id = %s",
            (LOTS_ASKED_PER_BID * bids // HOSTS * 10**9 // int(PERIOD.total_seconds()), grade.id),
        )
    connection.close()
    import psycopg

    with psycopg.connect(os.environ["DATABASE_OWNER_URL"], autocommit=False) as owner:
        places = {
            "buyers": buyers,
            "buyer_count": BUYERS,
            "accounts": accounts,
            "bids": bids,
            "grade": grade.id,
            "now": now,
        }
        owner.cursor().execute("SET LOCAL client_min_messages = warning")
        for statement in _FILL.split(";\n"):
            if statement.strip():
                owner.execute(statement, places if "%(" in statement else None)
        owner.commit()
        owner.autocommit = True
        owner.execute("ANALYZE")
    return grade


def _timed(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    assert step()
    return time.perf_counter() - start


def _result(name: str, value: float, unit: str, floor: float) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "floor": floor, "ratio": value / floor}
