"""The commands of billing as a black box: what they refuse, how they say it, and that nothing changes then."""

from __future__ import annotations

from datetime import datetime
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from marketplace.billing.models import Charge, Invoice, Settlement, Statement
from marketplace.billing.services.invoicing import issue_invoices
from marketplace.billing.services.settling import settle_period
from marketplace.billing.services.statements import issue_statements
from marketplace.errors import InvalidInput
from pricing.models import Grade
from tests.billing.world import DUE_AFTER, FUNDS, LOT, accrue, meter, on_demand
from tests.cast import Party, Plant, fund


@pytest.fixture
def charged(acme: Party, grade: Grade, plant: Plant, now: datetime) -> None:
    fund(acme, FUNDS, now)
    contract = on_demand(acme, grade, now)
    accrue(contract, now, 600, now)
    meter(contract, plant.offering.list_rate, plant, LOT, now)
    settle_period(settlement_start=now, now=now + DUE_AFTER)


@pytest.mark.parametrize("option", ["--at", "--settlement-start"])
@pytest.mark.parametrize(
    "time", ["", "soon", "9999-12-31T23:59:59", "0001-01-01T00:00+14:00", "2099-01-01T00:00Z"]
)
def test_settleperiod_names_the_time_it_refuses(db: None, option: str, time: str) -> None:
    with pytest.raises(CommandError, match=option):
        call_command("settleperiod", f"{option}={time}", stdout=StringIO())
    assert not Settlement.objects.exists()


@pytest.mark.parametrize(
    "period", ["", "9999-12", "0000-01", "1969-12", "2026-00", "2026-03-01", "\u0662026-03"]
)
def test_issueinvoices_names_the_month_it_refuses(charged: None, period: str) -> None:
    with pytest.raises(CommandError, match="--period"):
        call_command("issueinvoices", f"--period={period}", stdout=StringIO())
    assert not Invoice.objects.exists()


def test_a_month_that_has_not_begun_is_refused_even_early(charged: None, now: datetime) -> None:
    later = datetime(2099, 1, 1, tzinfo=now.tzinfo)
    with pytest.raises(InvalidInput, match="not begun"):
        issue_invoices(month_start=later, now=now, early=True)
    with pytest.raises(InvalidInput, match="not begun"):
        issue_statements(month_start=later, now=now, early=True)
    with pytest.raises(CommandError, match="not begun"):
        call_command("issueinvoices", "--period", "2099-01", "--early", stdout=StringIO())
    assert Charge.objects.filter(invoiced_as__isnull=True).count() == 1
    assert not Statement.objects.exists()


@pytest.mark.parametrize("command", ["clearauction", "replayauction"])
def test_clearing_and_replaying_say_that_there_is_no_such_auction(db: None, command: str) -> None:
    with pytest.raises(CommandError, match="no such auction"):
        call_command(command, "01a1f97e-4dd7-897e-af6c-4d5b4a049083", stdout=StringIO())
