"""Who bears what is given back: the provider, as far as he has money; his bond; then the market.

And who gets it back later: in the opposite order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from django.db.models import Q, QuerySet, Sum

from marketplace.billing.lines import Line, Share
from marketplace.billing.models import ChargeKind, Earning
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind, LedgerAccount, Transfer
from marketplace.ledger.selectors import available_by_organization
from marketplace.ledger.services import account_id

# The parts of one earning's movement that are not the payable account's: what bond and market bore, and what came back.
FROM_BOND: Final = "gross_from_bond"
TO_BOND: Final = "gross_to_bond"
FROM_OPERATOR: Final = "gross_from_operator"
TO_OPERATOR: Final = "gross_to_operator"
# What a provider owes for how he delivered; it bills no volume and has no fee.
OWED_BY_PROVIDER: Final = (ChargeKind.REMEDY, ChargeKind.SERVICE_CREDIT)


@dataclass(frozen=True, slots=True)
class Occasion:
    """What a line came about by: of lines that are equal in kind, rate and period, each occasion has its own account.

    A settlement run; the end of a month (`earned_at` is its last moment), which may begin with the period of a run;
    or lots of the period that were resold and failed.
    """

    contract_id: UUID
    is_run: bool = True
    earned_at: datetime | None = None


def repaid_first(occasion: Occasion, line: Line, seller: UUID, share: Share) -> tuple[int, int]:
    """What of a positive share goes back to the market and to the bond, which bore an earlier one of the same account.

    In micros; the market comes first. `seller` is the share's key in the line. A remedy that shrinks, or usage that
    comes back after a negative adjustment, repays them before the provider: else he would be paid what he never bore.
    The fee of the share itself stays his to pay out of it.
    """
    if line.kind not in (*OWED_BY_PROVIDER, ChargeKind.ADJUSTMENT):
        return 0, 0  # A first run's lines: nothing was given back before them.
    by_bond, by_market = _borne(occasion, line, seller)
    net = share.gross_micros - max(0, share.fee_micros)
    _, to_bond, to_market = parts_of_repayment(net, by_bond_micros=by_bond, by_market_micros=by_market)
    return to_market, to_bond


def bond_account(organization_id: UUID, currency: str, *, now: datetime) -> UUID:
    return account_id(organization_id=organization_id, kind=AccountKind.BOND, currency=currency, now=now)


def bonds_for(
    shortfall: Mapping[UUID, int], owners: Mapping[UUID, UUID], currency: str, *, now: datetime
) -> dict[UUID, tuple[UUID, int]]:
    """By payable account that falls short: the bond behind it and what lies there. Buyers who resell have none."""
    short = {
        account: owners[account] for account, amount in shortfall.items() if amount and account in owners
    }
    held = available_by_organization(short.values(), kind=AccountKind.BOND, currency=currency)
    return {
        account: (bond_account(owner, currency, now=now), held[owner])
        for account, owner in sorted(short.items())
        if held[owner] > 0
    }


def parts_of_refund(amount_micros: int, *, uncovered_micros: int, bond_micros: int) -> tuple[int, int, int]:
    """What payable, bond and market bear of it: `uncovered` is not on the payable account, `bond` is in the bond.

    The three sum to the amount.
    """
    by_bond = min(uncovered_micros, bond_micros)
    return amount_micros - uncovered_micros, by_bond, uncovered_micros - by_bond


def parts_of_repayment(
    amount_micros: int, *, by_bond_micros: int, by_market_micros: int
) -> tuple[int, int, int]:
    """What of it goes to payable, bond and market, which bore so much before: the market first.

    The three sum to the amount.
    """
    to_market = min(amount_micros, by_market_micros)
    to_bond = min(amount_micros - to_market, by_bond_micros)
    return amount_micros - to_market - to_bond, to_bond, to_market


def paid_by_bond(organization_id: UUID, earnings: QuerySet[Earning]) -> int:
    """What a provider's bond has paid of these earnings and not got back, in micros."""
    bonds = LedgerAccount.objects.filter(organization_id=organization_id, kind=AccountKind.BOND)
    of_these = Transfer.objects.filter(reference_id__in=earnings.values("id"))
    taken = of_these.filter(debit_account__in=bonds).aggregate(sum=Sum("amount_micros"))["sum"] or 0
    returned = of_these.filter(credit_account__in=bonds).aggregate(sum=Sum("amount_micros"))["sum"] or 0
    return int(taken - returned)


def _borne(occasion: Occasion, line: Line, seller: UUID) -> tuple[int, int]:
    """What bond and market have paid for a seller on this contract in earlier runs and not got back, in micros.

    Remedies are one account, service credits another, and what adjustments took back of usage a third; and so is what
    each of them was for: the first period of a month begins when the month does, and its remedy is not the refund at
    the month's end, nor is that of lots that were resold out of the period. Whoever resells is no provider: what the
    market bore for him comes back of his own share alone.
    """
    earnings = Earning.objects.filter(
        Q(offering_id=seller, ask__isnull=True) | Q(ask_id=seller),
        charge__kind=line.kind,
        charge__rate_id=line.rate_id,
        charge__period_start=line.period_start,
        charge__contract_id=occasion.contract_id,
        charge__settlement__isnull=not occasion.is_run,
        period_start=occasion.earned_at or line.period_start,
    )
    ids = list(earnings.values_list("id", flat=True))
    return _left(ids, FROM_BOND, TO_BOND), _left(ids, FROM_OPERATOR, TO_OPERATOR)


def _left(earnings: Iterable[UUID], taken: str, returned: str) -> int:
    signs = {derived_id(earning, taken): 1 for earning in earnings}
    signs |= {derived_id(earning, returned): -1 for earning in earnings}
    moved = Transfer.objects.filter(id__in=list(signs)).values_list("id", "amount_micros")
    return sum(signs[transfer] * amount for transfer, amount in moved)
