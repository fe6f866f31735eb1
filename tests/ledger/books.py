"""Accounts to play with, and short words for what the tests do to them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from marketplace.accounts.services import create_organization
from marketplace.ids import uuid7
from marketplace.ledger.models import LedgerAccount
from marketplace.ledger.selectors import Balance, balance_of
from marketplace.ledger.services import NewTransfer, account_id, post_transfers


@dataclass(frozen=True)
class Books:
    """A buyer's prepaid account, a provider's payable, and the operator's fees and processor."""

    prepaid: UUID
    payable: UUID
    fees: UUID
    processor: UUID
    now: datetime

    def fund(self, amount_micros: int) -> None:
        self.post(self.processor, self.prepaid, amount_micros, code="top_up")

    def post(
        self,
        debit_id: UUID,
        credit_id: UUID,
        amount_micros: int,
        *,
        id: UUID | None = None,  # noqa: A002
        hold_id: UUID | None = None,
        code: str = "usage",
    ) -> int:
        transfer = NewTransfer(id or uuid7(), debit_id, credit_id, amount_micros, code, hold_id=hold_id)
        return post_transfers([transfer], now=self.now)

    def balance(self, account: UUID) -> Balance:
        return balance_of(LedgerAccount.objects.get(pk=account))


def make_books(now: datetime) -> Books:
    operator = create_organization(name="Books operator", roles=["operator"], now=now)
    buyer = create_organization(name="Books buyer", roles=["buyer"], now=now)
    provider = create_organization(name="Books provider", roles=["provider"], now=now)

    def account(organization_id: UUID, kind: str) -> UUID:
        return account_id(organization_id=organization_id, kind=kind, currency="USD", now=now)

    return Books(
        prepaid=account(buyer.id, "prepaid"),
        payable=account(provider.id, "payable"),
        fees=account(operator.id, "fees"),
        processor=account(operator.id, "processor"),
        now=now,
    )
