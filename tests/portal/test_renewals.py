"""Whether a contract renews itself, in the browser."""

from __future__ import annotations

from datetime import timedelta

import pytest
import time_machine
from django.test import Client

from marketplace.contracts.models import Contract, Renewal
from marketplace.contracts.renewing import decided_until, renew_due
from tests.cast import Party, fund
from tests.portal.conftest import SignIn
from tests.portal.world import Day


@pytest.fixture
def buyer(acme: Party, day: Day, sign_in: SignIn) -> Client:
    fund(acme, 50_000_000, day.committed.created_at)
    return sign_in(acme)


def text(client: Client, path: str) -> str:
    return client.get(path).content.decode()


def test_it_is_set_shown_and_turned_off(buyer: Client, day: Day) -> None:
    contract = f"/buyer/contracts/{day.committed.id}"
    assert "does not renew" in text(buyer, contract)
    assert "Your highest rate per Mtok" in text(buyer, f"{contract}/renewal")
    assert buyer.post(f"{contract}/renewal", {"renews": "yes", "max_rate": "0.62"}).status_code == 302
    assert Renewal.objects.get().max_rate_micros_per_mtok == 620_000
    assert "renews at 0.62 USD per Mtok at most" in text(buyer, contract)
    assert 'value="0.62' in text(buyer, f"{contract}/renewal")
    # The rate that still stands in the field is of no matter.
    assert buyer.post(f"{contract}/renewal", {"renews": "no", "max_rate": "0.62"}).status_code == 302
    assert Renewal.objects.get().status == "off"
    assert "does not renew" in text(buyer, contract)


@pytest.mark.parametrize("rate", ["", "0", "much", "-1"])
def test_what_is_no_highest_rate_is_said_at_the_field(buyer: Client, day: Day, rate: str) -> None:
    answer = buyer.post(f"/buyer/contracts/{day.committed.id}/renewal", {"renews": "yes", "max_rate": rate})
    assert answer.status_code == 422
    assert not Renewal.objects.exists()


def test_its_page_leads_to_what_follows_and_back(acme: Party, buyer: Client, day: Day) -> None:
    contract = day.committed
    page = f"/buyer/contracts/{contract.id}/renewal"
    buyer.post(page, {"renews": "yes", "max_rate": "1000"})
    assert contract.ends_at is not None
    at = contract.ends_at - timedelta(days=1)
    renew_due(now=at)
    after = Contract.objects.get(renews=contract)
    assert f"/buyer/contracts/{after.id}" in text(buyer, page)
    assert f"/buyer/contracts/{after.id}" in text(buyer, f"/buyer/contracts/{contract.id}")
    assert f"/buyer/contracts/{contract.id}" in text(buyer, f"/buyer/contracts/{after.id}")
    assert buyer.post(page, {"renews": "no"}).status_code == 422


def test_after_the_gate_it_cannot_be_set_and_the_reason_stands_there(
    acme: Party, buyer: Client, day: Day
) -> None:
    contract = day.committed
    page = f"/buyer/contracts/{contract.id}/renewal"
    buyer.post(page, {"renews": "yes", "max_rate": "0.000001"})
    assert contract.ends_at is not None
    renew_due(now=contract.ends_at - timedelta(days=1))
    with time_machine.travel(contract.ends_at - timedelta(hours=23, minutes=59), tick=False):
        buyer.force_login(acme.user)
        assert "the highest you set is 0.000001" in text(buyer, page)
        assert "Save" in text(buyer, page)
    gate = decided_until(contract)
    renew_due(now=gate)
    assert "It does not renew itself" in text(buyer, page)


def test_an_on_demand_contract_has_no_such_page(buyer: Client, day: Day) -> None:
    assert buyer.get(f"/buyer/contracts/{day.on_demand.id}/renewal").status_code == 404
