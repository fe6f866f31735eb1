"""Pages of spend caps, automatic top-ups and credit lines: what they change, who may, and what they refuse."""

from __future__ import annotations

from datetime import datetime

import pytest
from django.test import Client

from marketplace.accounts.models import Organization
from marketplace.billing.auto_top_up_models import AutoTopUp
from marketplace.billing.services.credit_lines import credit_line_of
from marketplace.contracts.models import SpendCap
from tests.cast import Party
from tests.portal.conftest import SignIn


@pytest.fixture
def buyer(acme: Party, clock_at: datetime, sign_in: SignIn) -> Client:
    return sign_in(acme)


def test_a_cap_is_set_shown_and_lifted(buyer: Client, acme: Party) -> None:
    form = {"subject": f"api_key:{acme.api_key_id}", "period": "day", "limit": "12.50"}
    assert buyer.post("/buyer/spend-caps", form).status_code == 302
    cap = SpendCap.objects.get()
    assert (cap.api_key_id, cap.period, cap.limit_micros) == (acme.api_key_id, "day", 12_500_000)
    assert "12.50" in buyer.get("/buyer/spend-caps").content.decode()
    assert buyer.post("/buyer/spend-caps", {**form, "limit": ""}).status_code == 302
    cap.refresh_from_db()
    assert cap.limit_micros is None
    assert "There is no cap" in buyer.get("/buyer/spend-caps").content.decode()


@pytest.mark.parametrize("changes", [{"subject": "project:other"}, {"period": "year"}, {"limit": "-1"}])
def test_a_bad_cap_changes_nothing(buyer: Client, changes: dict[str, str]) -> None:
    form = {"subject": "organization", "period": "day", "limit": "1", **changes}
    assert buyer.post("/buyer/spend-caps", form).status_code == 422
    assert not SpendCap.objects.exists()


def test_anothers_key_cannot_be_capped(buyer: Client, mallory: Party, sign_in: SignIn, acme: Party) -> None:
    form = {"subject": f"api_key:{acme.api_key_id}", "period": "day", "limit": "0"}
    assert sign_in(mallory).post("/buyer/spend-caps", form).status_code == 422
    assert not SpendCap.objects.exists()


def test_automatic_top_ups_are_set_and_shown(buyer: Client) -> None:
    form = {"enabled": "on", "threshold": "5", "each": "10", "monthly_limit": "30.00"}
    assert buyer.post("/buyer/auto-top-up", form).status_code == 302
    watch = AutoTopUp.objects.get()
    assert (watch.status, watch.threshold_micros, watch.monthly_limit_micros) == (
        "active", 5_000_000, 30_000_000,
    )  # fmt: skip
    assert 'value="30.00"' in buyer.get("/buyer/auto-top-up").content.decode()
    refused = buyer.post("/buyer/auto-top-up", {**form, "monthly_limit": "9"})
    assert refused.status_code == 422
    assert "id_monthly_limit_error" in refused.content.decode()


def test_a_line_is_given_by_the_operator_and_chosen_by_the_buyer(
    buyer: Client, acme: Party, operator: Party, sign_in: SignIn
) -> None:
    choice = {"on_demand_payment": "arrears"}
    refused = buyer.post("/buyer/on-demand-payment", choice)
    assert refused.status_code == 422
    assert "no credit line" in refused.content.decode()
    form = {"organization": str(acme.id), "limit": "250"}
    assert buyer.post("/operator/credit-lines", form).status_code == 404
    seat = sign_in(operator)
    assert seat.post("/operator/credit-lines", form).status_code == 302
    assert credit_line_of(acme.id).limit_micros == 250_000_000
    assert "250.00" in seat.get("/operator/credit-lines").content.decode()
    assert seat.post("/operator/credit-lines", {**form, "limit": "-1"}).status_code == 422
    assert "250.00" in buyer.get("/buyer/auto-top-up").content.decode()
    assert buyer.post("/buyer/on-demand-payment", choice).status_code == 302
    assert Organization.objects.get(pk=acme.id).on_demand_payment == "arrears"
