"""The accounts that a contract's money moves between."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from marketplace.accounts.selectors import operator_organization
from marketplace.billing.lines import Line
from marketplace.billing.models import ChargeKind
from marketplace.billing.services.waterfall import OWED_BY_PROVIDER
from marketplace.contracts.models import Contract, ContractKind, Payment
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind
from marketplace.ledger.services import AccountPlace, account_id, account_ids

FEES_ACCOUNTS: Final = 64
# How the movement of a line's gross is called in the books.
_CODES: Final = {
    ChargeKind.USAGE: "usage",
    ChargeKind.OVERAGE: "usage",
    ChargeKind.SPOT: "spot",
    ChargeKind.MINIMUM_TAKE: "minimum_take",
    ChargeKind.COMMITTED_FEE: "delivery",
    ChargeKind.TRUE_UP: "true_up",
    ChargeKind.TERMINATION: "termination",
    ChargeKind.ADJUSTMENT: "adjustment",
    ChargeKind.REMEDY: "remedy",
    ChargeKind.SERVICE_CREDIT: "service_credit",
}


@dataclass(frozen=True, slots=True)
class Books:
    """The accounts one contract's money moves between: the buyer's (or what he paid ahead) and the market's own."""

    contract_id: UUID
    source: UUID
    buyer: UUID
    fees: UUID
    operator: UUID
    currency: str
    code: str | None = None
    # Of a prepaid committed contract: the rate of what was paid ahead. Lines at any other are overage, and charged.
    paid_rate_id: UUID | None = None

    def owed_by_buyer(self, account: UUID) -> Books:
        """The same, but for an account of what he owes in the place of the one that does not cover it."""
        return replace(self, source=account, buyer=account)

    def paid_by_market(self) -> Books:
        """The same, but for the market in the buyer's place."""
        return replace(self, source=self.operator, buyer=self.operator)

    def source_of(self, line: Line) -> UUID:
        """What a provider owes him is the buyer's own money, also where what he paid ahead pays the usage."""
        return self.buyer if line.kind in OWED_BY_PROVIDER or self._is_overage(line) else self.source

    def code_of(self, line: Line) -> str:
        if line.kind in OWED_BY_PROVIDER:
            return _CODES[ChargeKind(line.kind)]
        return (None if self._is_overage(line) else self.code) or _CODES[ChargeKind(line.kind)]

    def _is_overage(self, line: Line) -> bool:
        return self.paid_rate_id is not None and line.rate_id != self.paid_rate_id


def pays_in_arrears(contract: Contract) -> bool:
    return contract.payment == Payment.ARREARS


def buyer_account(contract: Contract, *, now: datetime) -> UUID:
    """The account a contract's usage is charged to: prepaid, or the receivable bounded by the credit line."""
    place = _buyer_place(contract)
    return account_ids([place], now=now)[place]


def _buyer_place(contract: Contract) -> AccountPlace:
    kind = AccountKind.RECEIVABLE if pays_in_arrears(contract) else AccountKind.PREPAID
    return AccountPlace(contract.organization_id, kind, contract.currency)


def deferred_account(contract: Contract, *, now: datetime) -> UUID:
    """What a buyer has paid ahead on one committed contract and providers have not yet earned."""
    return account_id(
        organization_id=contract.organization_id,
        kind=AccountKind.DEFERRED,
        currency=contract.currency,
        reference_id=contract.id,
        now=now,
    )


def fees_account(contract_id: UUID, *, operator_id: UUID, currency: str, now: datetime) -> UUID:
    """One of the market's accounts of fees: settlements of different contracts seldom wait for the same one.

    A settlement keeps it until its commit; a balance of the market is the sum over all accounts of a kind. Invoices
    post tax and rounding in batches instead (docs/locking.md).
    """
    place = _fees_place(contract_id, operator_id, currency)
    return account_ids([place], now=now)[place]


def _fees_place(contract_id: UUID, operator_id: UUID, currency: str) -> AccountPlace:
    shard = derived_id(operator_id, f"fees:{contract_id.int % FEES_ACCOUNTS}")
    return AccountPlace(operator_id, AccountKind.FEES, currency, shard)


def books_of(contract: Contract, *, now: datetime, to_balance: bool = False) -> Books:
    """A prepaid committed contract's volume is paid out of what was paid ahead; all else by the buyer's account.

    With `to_balance` that too: what a committed buyer gets back is his to spend.
    """
    return books_of_many([contract], now=now, to_balance=to_balance)[contract.id]


def books_of_many(
    contracts: Sequence[Contract], *, now: datetime, to_balance: bool = False
) -> dict[UUID, Books]:
    """`books_of` each of them, by contract id, in two statements."""
    operator_id = operator_organization().id
    ahead = {
        one.id: one.kind == ContractKind.COMMITTED and not pays_in_arrears(one) and not to_balance
        for one in contracts
    }
    buyers = {one.id: _buyer_place(one) for one in contracts}
    sources = {
        one.id: AccountPlace(one.organization_id, AccountKind.DEFERRED, one.currency, one.id)
        if ahead[one.id]
        else buyers[one.id]
        for one in contracts
    }
    fees = {one.id: _fees_place(one.id, operator_id, one.currency) for one in contracts}
    market = {one.id: AccountPlace(operator_id, AccountKind.OPERATOR, one.currency) for one in contracts}
    # Whoever makes accounts makes them in this order (two who make the same one wait for each other).
    wanted = [place for places in (buyers, sources, fees, market) for place in in_order(places.values())]
    found = account_ids(wanted, now=now)
    return {
        one.id: Books(
            contract_id=one.id,
            source=found[sources[one.id]],
            buyer=found[buyers[one.id]],
            fees=found[fees[one.id]],
            operator=found[market[one.id]],
            currency=one.currency,
            code="delivery" if ahead[one.id] else None,
            paid_rate_id=one.rate_id if ahead[one.id] else None,
        )
        for one in contracts
    }


def in_order(places: Iterable[AccountPlace]) -> list[AccountPlace]:
    return sorted(set(places), key=lambda place: (place.organization_id, place.kind, str(place.reference_id)))
