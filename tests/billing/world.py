"""Contracts with usage, the short way: roll-ups as ingestion leaves them, money through the ledger for real."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from django.db.models import F

from marketplace.accounts.models import Organization
from marketplace.contracts.models import Accrual, Contract, Entitlement
from marketplace.contracts.services import ensure_on_demand_contract, open_spot_contract, record_award
from marketplace.ids import uuid7
from marketplace.ledger.selectors import balance, check_ledger
from marketplace.ledger.services import account_id, open_hold
from metering.models import UsageRollup
from pricing.models import Grade, Rate
from pricing.rating import gross_up, price_ceil
from pricing.services import publish_rate
from pricing.units import NUMERATOR_PER_LOT, format_micros
from tests.cast import Party, Plant

LOT = NUMERATOR_PER_LOT
HOUR = timedelta(hours=1)
PERIOD = timedelta(minutes=5)
# Past an hour's end, max_request_s (15) and the settlement grace (60).
DUE_AFTER = HOUR + timedelta(seconds=76)
FUNDS = 100_000_000
__all__ = ["FUNDS", "format_micros"]


def set_tax(party: Party, tax_ppm: int) -> None:
    Organization.objects.filter(pk=party.id).update(own_tax_ppm=tax_ppm, tax_ppm=tax_ppm)


def identify(party: Party) -> None:
    """Who the party is, as documents and payouts ask."""
    Organization.objects.filter(pk=party.id).update(
        legal_name=f"{party.organization.name} Ltd", address="1 Main Street", country="DE", tax_number="DE123"
    )


def on_demand(buyer: Party, grade: Grade, now: datetime) -> Contract:
    return ensure_on_demand_contract(organization_id=buyer.id, grade_id=grade.id, now=now)


def accrue(contract: Contract, settlement_start: datetime, amount_micros: int, now: datetime) -> Accrual:
    """What the gateway leaves behind: one accrual whose hold covers what its requests captured."""
    hold_id = uuid7(settlement_start)
    open_hold(
        id=hold_id,
        account_id=account_id(
            organization_id=contract.organization_id, kind="prepaid", currency=contract.currency, now=now
        ),
        amount_micros=amount_micros,
        code="usage",
        reference_id=contract.id,
        now=now,
    )
    return Accrual.objects.create(
        contract=contract,
        settlement_start=settlement_start,
        ledger_hold_id=hold_id,
        captured_micros=amount_micros,
    )


def meter(
    contract: Contract,
    rate: Rate,
    plant: Plant,
    numerator: int,
    period_start: datetime,
    *,
    bucket: str = "uncached_input",
) -> None:
    """The gateway's roll-up of an offering in a delivery period grows by `numerator`.

    Input costs the cast's hosts less time than it is priced at, output more: no failure is excused by its mix.
    """
    key = {
        "contract_id": contract.id,
        "rate_id": rate.id,
        "api_key_id": UUID(int=1),
        "offering_id": plant.offering.id,
        "bucket": bucket,
        "meter": "gateway",
        "period_start": period_start,
    }
    _, made = UsageRollup.objects.get_or_create(
        **key, defaults={"grade_id": rate.grade_id, "events": 1, "native_tokens": 1, "numerator": numerator}
    )
    if not made:
        UsageRollup.objects.filter(**key).update(numerator=F("numerator") + numerator, events=F("events") + 1)


def award(
    buyer: Party,
    grade: Grade,
    shares: list[tuple[Plant, int]],
    rate_micros_per_mtok: int,
    period_start: datetime,
    now: datetime,
    contract: Contract | None = None,
) -> Entitlement:
    """A spot award as publication makes it: its own hold, grossed up by tax."""
    contract = contract or open_spot_contract(
        id=uuid7(),
        organization_id=buyer.id,
        grade_id=grade.id,
        max_rate_micros_per_mtok=10 * rate_micros_per_mtok,
        now=now,
    )
    rate = publish_rate(
        grade_id=grade.id,
        kind=Rate.Kind.CLEARING,
        micros_per_mtok=rate_micros_per_mtok,
        source_id=contract.id,
        now=now,
    )
    lots = sum(part for _, part in shares)
    tax_ppm = Organization.objects.get(pk=buyer.id).tax_ppm
    hold_id = uuid7()
    open_hold(
        id=hold_id,
        account_id=account_id(organization_id=buyer.id, kind="prepaid", currency=grade.currency, now=now),
        amount_micros=gross_up(price_ceil(lots * LOT, rate_micros_per_mtok), tax_ppm),
        code="spot",
        reference_id=contract.id,
        now=now,
    )
    return record_award(
        contract_id=contract.id,
        period_start=period_start,
        period_end=period_start + PERIOD,
        lots=lots,
        rate_id=rate.id,
        ledger_hold_id=hold_id,
        shares=[(plant.offering.id, part) for plant, part in shares],
        now=now,
    )


def money(party: Party, kind: str) -> int:
    return balance(organization_id=party.id, kind=kind, currency="USD").posted_micros


def pending(party: Party, kind: str = "prepaid") -> int:
    return balance(organization_id=party.id, kind=kind, currency="USD").pending_micros


def assert_books_balance() -> None:
    assert check_ledger() == []
