"""What spot contracts got in one delivery period, recorded in one statement per table however many there are."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from django.db import transaction

from marketplace.contracts.committed import BUCKET_SECONDS
from marketplace.contracts.models import Entitlement
from marketplace.ids import derived_hex
from marketplace.packed import packed_bigints, packed_cursor, packed_uuids
from metering.services import NewPoint, add_meter_points
from pricing.models import Rate
from pricing.rating import lots_numerator
from providers.models import Offering

_LOCK_CONTRACTS: Final = """
SELECT id::text, grade_id::text FROM contracts_contract WHERE id = ANY(%s::uuid[]) ORDER BY id FOR NO KEY UPDATE
"""
_ADD_ENTITLEMENTS: Final = """
INSERT INTO contracts_entitlement (
    id, contract_id, period_start, period_end, rate_id, entitled_numerator, held_numerator, used_numerator,
    released_numerator, failed_numerator, ledger_hold_id, bucket_rate_numerator_per_s, bucket_depth_numerator,
    bucket_level_numerator, bucket_level_at
)
SELECT id, contract_id, %(start)s, %(end)s, %(rate)s, numerator, 0, 0, 0, 0, hold_id, per_s, depth, depth, %(start)s
FROM unnest(%(ids)s::uuid[], %(contracts)s::uuid[], %(holds)s::uuid[], %(numerators)s::bigint[], %(per_s)s::bigint[],
    %(depths)s::bigint[]) AS n (id, contract_id, hold_id, numerator, per_s, depth)
ORDER BY contract_id
ON CONFLICT (contract_id, period_start) DO NOTHING
RETURNING contract_id::text
"""
_OTHER_TERMS: Final = """
SELECT 1 FROM unnest(%(contracts)s::uuid[], %(numerators)s::bigint[]) AS n (contract_id, numerator)
JOIN contracts_entitlement AS known ON known.contract_id = n.contract_id AND known.period_start = %(start)s
WHERE known.entitled_numerator <> n.numerator LIMIT 1
"""
_ADD_ALLOCATIONS: Final = """
INSERT INTO contracts_allocation (
    id, contract_id, offering_id, firm_lots, rate_micros_per_mtok, period_start, served_numerator
)
SELECT id, contract_id, offering_id, lots, %(rate)s, %(start)s, 0
FROM unnest(%(ids)s::uuid[], %(contracts)s::uuid[], %(offerings)s::uuid[], %(lots)s::bigint[])
    AS n (id, contract_id, offering_id, lots)
ORDER BY contract_id, offering_id
"""


class Award(NamedTuple):
    """What one spot contract got: `shares` are (offering, lots), together `lots`; its money is held in that hold.

    Ids may be text, as the database writes them: of a hundred thousand awards, making objects of them is a good part.
    """

    contract_id: UUID | str
    lots: int
    ledger_hold_id: UUID | str
    shares: Sequence[tuple[UUID | str, int]]


@transaction.atomic
def record_awards(
    awards: Sequence[Award], *, period_start: datetime, period_end: datetime, rate_id: UUID
) -> int:
    """Entitlements, allocations and meter points of awards in one period at one rate; how many awards are new.

    The same award again is passed over; other lots for the same contract and period are a programmer's error. Contracts
    are locked first, in the order of their ids. Buckets start full: a delivery period is short. The ledger holds may be
    opened later in the same transaction.
    """
    if not awards:
        return 0
    for award in awards:
        assert award.lots > 0
        assert sum(part for _, part in award.shares) == award.lots, "the shares are the whole award"
    rate = Rate.objects.get(pk=rate_id)
    contracts = [str(award.contract_id) for award in awards]
    with packed_cursor() as cursor:
        cursor.execute(_LOCK_CONTRACTS, (packed_uuids(contracts),))
        grades: dict[str, str] = dict(cursor.fetchall())
        code = f"award:{period_start.isoformat()}"
        ids = [derived_hex(contract_id, code) for contract_id in contracts]
        places = _entitlements(awards, ids, period_start, period_end, rate_id)
        cursor.execute(_ADD_ENTITLEMENTS, places)
        made = {row[0] for row in cursor.fetchall()}
        if len(made) < len(awards):
            cursor.execute(_OTHER_TERMS, places)
            assert cursor.fetchone() is None, "an award is made once"
        shares = [
            (contract_id, entitlement_id, str(offering_id), lots)
            for contract_id, entitlement_id, award in zip(contracts, ids, awards, strict=True)
            if contract_id in made
            for offering_id, lots in award.shares
        ]
        allocation_ids = [
            derived_hex(entitlement_id, f"allocation:{offering_id}")
            for _, entitlement_id, offering_id, _ in shares
        ]
        cursor.execute(
            _ADD_ALLOCATIONS,
            {
                "ids": packed_uuids(allocation_ids),
                "contracts": packed_uuids(share[0] for share in shares),
                "offerings": packed_uuids(share[2] for share in shares),
                "lots": packed_bigints(share[3] for share in shares),
                "rate": rate.micros_per_mtok,
                "start": period_start,
            },
        )
    offerings = Offering.objects.filter(pk__in={share[2] for share in shares})
    hosts = {str(offering_id): host_id.hex for offering_id, host_id in offerings.values_list("pk", "host_id")}
    add_meter_points(
        [
            NewPoint(allocation_id, contract_id, offering_id, hosts[offering_id], grades[contract_id])
            for allocation_id, (contract_id, _, offering_id, _) in zip(allocation_ids, shares, strict=True)
        ],
        valid_from=period_start,
    )
    return len(made)


def find_award(*, contract_id: UUID, period_start: datetime) -> Entitlement:
    return Entitlement.objects.select_related("rate").get(contract_id=contract_id, period_start=period_start)


def _entitlements(
    awards: Sequence[Award],
    ids: Sequence[str],
    period_start: datetime,
    period_end: datetime,
    rate_id: UUID,
) -> dict[str, Any]:
    seconds = int((period_end - period_start).total_seconds())
    numerators = [lots_numerator(award.lots) for award in awards]
    per_s = [numerator // seconds for numerator in numerators]
    depths = [min(rate * BUCKET_SECONDS, whole) for rate, whole in zip(per_s, numerators, strict=True)]
    return {
        "ids": packed_uuids(ids),
        "contracts": packed_uuids(award.contract_id for award in awards),
        "holds": packed_uuids(award.ledger_hold_id for award in awards),
        "numerators": packed_bigints(numerators),
        "per_s": packed_bigints(per_s),
        "depths": packed_bigints(depths),
        "start": period_start,
        "end": period_end,
        "rate": rate_id,
    }
