"""A contract's terms in the browser: its history on its page, an early end, and the way to an amendment."""

from __future__ import annotations

import pytest
from django.test import Client

from marketplace.billing.models import Charge
from marketplace.contracts.models import ContractEvent, Entitlement, Quote
from marketplace.ids import uuid7
from tests.cast import Party, fund
from tests.portal.conftest import SignIn
from tests.portal.world import Day


@pytest.fixture
def buyer(acme: Party, day: Day, sign_in: SignIn) -> Client:
    fund(acme, 50_000_000, day.committed.created_at)
    return sign_in(acme)


def test_the_contracts_page_shows_its_history_and_leads_to_its_terms(buyer: Client, day: Day) -> None:
    shown = buyer.get(f"/buyer/contracts/{day.committed.id}").content.decode()
    assert f"/buyer/contracts/{day.committed.id}/terms" in shown
    assert "quote accepted" in shown
    terms = buyer.get(f"/buyer/contracts/{day.committed.id}/terms").content.decode()
    assert "30 days" in terms
    assert "End the contract" in terms


def test_a_contract_is_ended_once_by_the_same_form(buyer: Client, day: Day) -> None:
    page = f"/buyer/contracts/{day.committed.id}/terms"
    form = {"operation": str(uuid7()), "ends_at": "", "reason": "no longer needed", "end": "1"}
    first = buyer.post(page, form)
    assert first.status_code == 302, first.content.decode()
    assert buyer.post(page, form).status_code == 302
    assert ContractEvent.objects.filter(contract=day.committed, kind="terminated").count() == 1
    assert "no longer needed" in buyer.get(f"/buyer/contracts/{day.committed.id}").content.decode()
    assert Charge.objects.filter(contract=day.committed, kind="termination").count() <= 1


def test_what_cannot_be_is_said_at_the_field(buyer: Client, day: Day) -> None:
    page = f"/buyer/contracts/{day.committed.id}/terms"
    form = {"operation": str(uuid7()), "ends_at": "2026-03-10T15:10:00", "reason": "", "end": "1"}
    answer = buyer.post(page, form)
    assert answer.status_code == 422
    assert "at the earliest" in answer.content.decode()
    odd = {
        "amend": "1",
        "starts_at": "2026-03-12T00:00:00+00:00",
        "firm_lots": "1",
        "volume_lots": "1",
        "months": "1",
    }
    assert buyer.post(page, odd).status_code == 422
    assert not Quote.objects.filter(amends=day.committed).exists()
    assert Entitlement.objects.filter(contract=day.committed).count() == 1


def test_an_on_demand_contract_has_no_such_page(buyer: Client, day: Day) -> None:
    assert buyer.get(f"/buyer/contracts/{day.on_demand.id}/terms").status_code == 404
