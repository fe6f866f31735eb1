"""What is set aside beside a run's charges: their tax until the invoice, and what waits for a ruling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

from django.db import transaction

from marketplace.accounts.models import Organization
from marketplace.billing.documents import tax_share
from marketplace.billing.lines import Line
from marketplace.billing.services.books import buyer_account
from marketplace.billing.services.posting import charge_id
from marketplace.billing.services.taxes import Levies, levies_of
from marketplace.contracts.models import Contract
from marketplace.ids import derived_id
from marketplace.ledger.services import InsufficientFunds, open_hold
from pricing.rating import gross_up


def tax_hold_id(*, settlement_id: UUID | None, charge_id: UUID) -> UUID:
    """One hold of tax for each settlement, or for a charge that belongs to none (a committed month's fee)."""
    return derived_id(settlement_id or charge_id, "tax")


def hold_tax(
    parent: UUID, lines: Sequence[Line], contract: Contract, *, settlement_id: UUID | None, now: datetime
) -> dict[UUID, int]:
    """Set the tax of newly charged lines aside on the buyer's account until the invoice; by charge id.

    Returns nothing where the balance has no cover left (only where the hold before was not grossed up): the tax
    then becomes due with the invoice, and the charge itself stands.
    """
    levies = levies_of([contract.organization], {key for line in lines for key in line.shares})
    shares = tax_shares(parent, lines, contract.organization, levies)
    if not shares:
        return {}
    try:
        with transaction.atomic():
            open_hold(
                id=tax_hold_id(settlement_id=settlement_id, charge_id=next(iter(shares))),
                account_id=buyer_account(contract, now=now),
                amount_micros=sum(shares.values()),
                code="tax",
                reference_id=contract.id,
                now=now,
            )
    except InsufficientFunds:
        return {}
    return shares


def tax_shares(parent: UUID, lines: Iterable[Line], buyer: Organization, levies: Levies) -> dict[UUID, int]:
    """By charge id the tax that is set aside with each line, where there is any, in micros."""
    levied = {charge_id(parent, line): line for line in lines if line.amount_micros > 0}
    shares = {charge: tax_share(line.amount_micros, buyer.tax_ppm) for charge, line in levied.items()}
    for charge, amount in levies.shares(levied, buyer.id).items():
        shares[charge] += amount
    return {charge: amount for charge, amount in shares.items() if amount}


def dispute_hold_id(settlement_id: UUID) -> UUID:
    """The hold of what a settlement run could not bill because it is in dispute."""
    return derived_id(settlement_id, "dispute")


def hold_disputed(settlement_id: UUID, amount_micros: int, contract: Contract, *, now: datetime) -> None:
    """Keep what the buyer would owe if a dispute ended at the higher count, tax included, until it is ruled on.

    Nothing is kept where he has no cover left (a dispute that began after the period was paid): it is then charged to
    his balance like any late usage.
    """
    if amount_micros <= 0:
        return
    try:
        with transaction.atomic():
            open_hold(
                id=dispute_hold_id(settlement_id),
                account_id=buyer_account(contract, now=now),
                amount_micros=gross_up(amount_micros, contract.organization.tax_ppm),
                code="dispute",
                reference_id=contract.id,
                now=now,
            )
    except InsufficientFunds:
        return
