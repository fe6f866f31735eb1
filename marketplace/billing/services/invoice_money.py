"""What an invoice moves in the books: its tax out of what was held, discounts, the remainder below minor units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import F

from marketplace.billing.documents import InvoiceTotals, cover, foot, split_tax
from marketplace.billing.models import Charge, Invoice
from marketplace.billing.services.invoice_lines import Drawn, account_kind
from marketplace.billing.services.setting_aside import tax_hold_id
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind, Hold, Transfer
from marketplace.ledger.selectors import balance
from marketplace.ledger.services import (
    InsufficientFunds,
    NewTransfer,
    account_id,
    close_holds,
    lock_books,
    post_transfers,
)


class Ledger:
    """The accounts between which one invoice moves money, and the transfers it comes to."""

    def __init__(
        self,
        invoice: Invoice,
        now: datetime,
        *,
        reference_id: UUID | None = None,
        accounts: dict[tuple[UUID, str], UUID] | None = None,
    ) -> None:
        """`accounts` is what several invoices of one currency have looked up already."""
        self.invoice, self.now = invoice, now
        self.reference_id = reference_id or invoice.id
        self.transfers: list[NewTransfer] = []
        self._accounts = accounts if accounts is not None else {}

    def of_buyer(self, kind: AccountKind) -> UUID:
        return self._account(self.invoice.organization_id, kind)

    def of_issuer(self, kind: AccountKind) -> UUID:
        return self._account(self.invoice.issuer_id, kind)

    def move(
        self, key: UUID, *, debit: UUID, credit: UUID, amount: int, code: str, hold: UUID | None = None
    ) -> None:
        """Add a transfer; a negative amount goes the other way, none moves nothing."""
        if amount < 0:
            debit, credit, amount = credit, debit, -amount
        if amount:
            self.transfers.append(
                NewTransfer(
                    id=key,
                    debit_id=debit,
                    credit_id=credit,
                    amount_micros=amount,
                    code=code,
                    hold_id=hold,
                    reference_id=self.reference_id,
                )
            )

    def post(self) -> None:
        if self.transfers:
            post_transfers(self.transfers, now=self.now)

    def _account(self, organization_id: UUID, kind: AccountKind) -> UUID:
        key = (organization_id, str(kind))
        if key not in self._accounts:
            self._accounts[key] = account_id(
                organization_id=organization_id, kind=kind, currency=self.invoice.currency, now=self.now
            )
        return self._accounts[key]


def post_invoice(
    invoice: Invoice, charges: Iterable[Charge], drawn: Drawn, *, now: datetime
) -> InvoiceTotals:
    """Give discounts, move the tax out of what was held for it, void the rest, give the remainder back.

    Sets `tax_unposted_micros`: tax that nothing covered, which is due with the invoice.
    """
    holds = tax_holds(charges)
    ledger = Ledger(invoice, now)
    totals = plan_invoice(ledger, drawn, holds)
    lock_postings([holds], ledger.transfers)
    try:
        with transaction.atomic():
            ledger.post()
    except InsufficientFunds:
        # What was free when it was read, before the lock, is spent by now.
        ledger = Ledger(invoice, now)
        totals = plan_invoice(ledger, drawn, holds, takes_free_balance=False)
        ledger.post()
    close_holds(ends_of(holds, ledger.transfers), now=now)
    return totals


def lock_postings(
    of_invoices: Sequence[Mapping[AccountKind, Mapping[UUID, int]]], transfers: Iterable[NewTransfer]
) -> None:
    """Take the holds of tax, captured or voided, then the accounts of both: they are posted and ended by two calls."""
    holds = [hold for held in of_invoices for by_hold in held.values() for hold in by_hold]
    accounts = {account for transfer in transfers for account in (transfer.debit_id, transfer.credit_id)}
    accounts.update(Hold.objects.filter(id__in=holds).values_list("account_id", flat=True).distinct())
    lock_books(holds=holds, accounts=accounts)


def ends_of(
    holds: Mapping[AccountKind, Mapping[UUID, int]], transfers: Iterable[NewTransfer]
) -> dict[UUID, Hold.Status]:
    """How the holds of tax end once these transfers are posted."""
    used = {transfer.hold_id for transfer in transfers}
    return {
        hold: Hold.Status.POSTED if hold in used else Hold.Status.VOIDED
        for by_hold in holds.values()
        for hold in by_hold
    }


def plan_invoice(
    ledger: Ledger,
    drawn: Drawn,
    holds: Mapping[AccountKind, Mapping[UUID, int]],
    *,
    takes_free_balance: bool = True,
) -> InvoiceTotals:
    """The transfers of one invoice, into its ledger, and what it comes to; `tax_unposted_micros` as `post_invoice`."""
    invoice = ledger.invoice
    nets, off = drawn.net_by_account(), drawn.discount_by_account()
    tax = split_tax(
        drawn.worked.tax,
        prepaid_subtotal=nets[AccountKind.PREPAID],
        arrears_subtotal=nets[AccountKind.RECEIVABLE],
    )
    operator, issuer_tax = ledger.of_issuer(AccountKind.OPERATOR), ledger.of_issuer(AccountKind.TAX)
    unpaid = {AccountKind.PREPAID: 0, AccountKind.RECEIVABLE: 0}
    for kind, needed in zip((AccountKind.PREPAID, AccountKind.RECEIVABLE), tax, strict=True):
        if not needed and not off[kind]:
            continue
        account = ledger.of_buyer(kind)
        key = derived_id(invoice.id, f"discount:{kind}")
        ledger.move(key, debit=operator, credit=account, amount=off[kind], code="discount")
        posted = min(0, needed)
        ledger.move(
            derived_id(invoice.id, f"tax_back:{kind}"),
            debit=account,
            credit=issuer_tax,
            amount=posted,
            code="tax",
        )
        for hold_id, amount in cover(needed, holds[kind]).items():
            posted += amount
            ledger.move(
                derived_id(hold_id, "tax"),
                debit=account,
                credit=issuer_tax,
                amount=amount,
                code="tax",
                hold=hold_id,
            )
        # Not held (an award's hold without tax): from the free balance, and what that cannot cover is due.
        extra = 0
        if posted < needed and takes_free_balance:
            found = balance(organization_id=invoice.organization_id, kind=kind, currency=invoice.currency)
            extra = min(needed - posted, max(0, found.available_micros))
        ledger.move(
            derived_id(invoice.id, f"tax:{kind}"), debit=account, credit=issuer_tax, amount=extra, code="tax"
        )
        unpaid[kind] = needed - posted - extra
    totals = foot(
        prepaid_net=nets[AccountKind.PREPAID],
        arrears_net=nets[AccountKind.RECEIVABLE],
        tax=drawn.worked.tax,
        discount=drawn.worked.discount,
        currency=invoice.currency,
        prepaid_tax_unpaid=unpaid[AccountKind.PREPAID],
    )
    invoice.tax_unposted_micros = sum(unpaid.values())
    for kind, amount in (
        (AccountKind.PREPAID, totals.rounding_prepaid),
        (AccountKind.RECEIVABLE, totals.rounding_arrears),
    ):
        if amount:
            ledger.move(
                derived_id(invoice.id, f"rounding:{kind}"),
                debit=ledger.of_issuer(AccountKind.ROUNDING),
                credit=ledger.of_buyer(kind),
                amount=amount,
                code="rounding",
            )
    return totals


def take_back(invoice: Invoice, *, now: datetime) -> None:
    """Move everything that the invoice moved back: its charges stay, its tax, discounts and rounding go."""
    ledger = Ledger(invoice, now)
    for transfer in Transfer.objects.filter(reference_id=invoice.id).order_by("id"):
        ledger.move(
            derived_id(transfer.id, "void"),
            debit=transfer.credit_account_id,
            credit=transfer.debit_account_id,
            amount=transfer.amount_micros,
            code="void",
        )
    ledger.post()


def tax_holds(charges: Iterable[Charge]) -> dict[AccountKind, dict[UUID, int]]:
    """The open holds of tax behind these charges and what each holds, by the account it is on, in id order."""
    [held] = tax_holds_of([charges])
    return held


def tax_holds_of(of_invoices: Iterable[Iterable[Charge]]) -> list[dict[AccountKind, dict[UUID, int]]]:
    """`tax_holds` for the charges of each invoice, in their order, read at once."""
    places: dict[UUID, tuple[dict[AccountKind, dict[UUID, int]], AccountKind]] = {}
    found = []
    for charges in of_invoices:
        held: dict[AccountKind, dict[UUID, int]] = {AccountKind.PREPAID: {}, AccountKind.RECEIVABLE: {}}
        found.append(held)
        for charge in charges:
            if charge.tax_held_micros:
                hold_id = tax_hold_id(settlement_id=charge.settlement_id, charge_id=charge.id)
                places[hold_id] = (held, account_kind(charge))
    rows = Hold.objects.filter(id__in=list(places), status=Hold.Status.OPEN).order_by("id")
    for hold_id, left in rows.values_list("id", F("amount_micros") - F("captured_micros")):
        held, kind = places[hold_id]
        held[kind][hold_id] = left
    return found
