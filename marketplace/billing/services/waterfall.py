"""Who bears what is given back: the provider, as far as he has money; then the market. And who gets it back later."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from marketplace.billing.lines import Line, Share
from marketplace.billing.models import ChargeKind, Earning
from marketplace.ids import derived_id
from marketplace.ledger.models import Transfer

# The parts of one earning's movement that are the market's: what it bore, and what came back to it.
FROM_OPERATOR: Final = "gross_from_operator"
TO_OPERATOR: Final = "gross_to_operator"
# What a provider owes for how he delivered; it bills no volume and has no fee.
OWED_BY_PROVIDER: Final = (ChargeKind.REMEDY, ChargeKind.SERVICE_CREDIT)


def repaid_first(contract_id: UUID, line: Line, offering_id: UUID, share: Share) -> int:
    """What of a positive share goes back to the market, which bore an earlier one of the same kind, in micros.

    A remedy that shrinks, or usage that comes back after a negative adjustment, repays the market first: else a
    provider would be paid what he never bore. The fee of the share itself stays his to pay out of it.
    """
    if line.kind not in (*OWED_BY_PROVIDER, ChargeKind.ADJUSTMENT):
        return 0  # A first run's lines: nothing was given back before them.
    return min(
        share.gross_micros - max(0, share.fee_micros), _borne_by_market(contract_id, line, offering_id)
    )


def _borne_by_market(contract_id: UUID, line: Line, offering_id: UUID) -> int:
    """What the market has paid for an offering on this contract in earlier runs and not got back, in micros.

    Remedies are one account, service credits another, and what adjustments took back of usage a third.
    """
    earnings = Earning.objects.filter(
        offering_id=offering_id,
        charge__kind=line.kind,
        charge__rate_id=line.rate_id,
        charge__period_start=line.period_start,
        charge__contract_id=contract_id,
    ).values_list("id", flat=True)
    signs = {derived_id(earning, FROM_OPERATOR): 1 for earning in earnings}
    signs |= {derived_id(earning, TO_OPERATOR): -1 for earning in earnings}
    moved = Transfer.objects.filter(id__in=list(signs)).values_list("id", "amount_micros")
    return sum(signs[transfer] * amount for transfer, amount in moved)
