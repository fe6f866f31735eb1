"""Who bears a remedy: the provider, as far as he has money; then the market. And who gets it back when it shrinks."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from marketplace.billing.lines import Line
from marketplace.billing.models import ChargeKind, Earning
from marketplace.ids import derived_id
from marketplace.ledger.models import Transfer

# The parts of one earning's movement that are the market's: what it bore, and what came back to it.
FROM_OPERATOR: Final = "gross_from_operator"
TO_OPERATOR: Final = "gross_to_operator"


def borne_by_market(contract_id: UUID, line: Line, offering_id: UUID) -> int:
    """What the market has paid of an offering's remedy on this contract in earlier runs and not got back, in micros.

    A remedy that shrinks repays the market first: else a provider would be paid what he never bore.
    """
    if line.kind != ChargeKind.REMEDY:
        return 0
    earnings = Earning.objects.filter(
        offering_id=offering_id,
        charge__kind=ChargeKind.REMEDY,
        charge__rate_id=line.rate_id,
        charge__period_start=line.period_start,
        charge__contract_id=contract_id,
    ).values_list("id", flat=True)
    signs = {derived_id(earning, FROM_OPERATOR): 1 for earning in earnings}
    signs |= {derived_id(earning, TO_OPERATOR): -1 for earning in earnings}
    moved = Transfer.objects.filter(id__in=list(signs)).values_list("id", "amount_micros")
    return sum(signs[transfer] * amount for transfer, amount in moved)
