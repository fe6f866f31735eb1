"""Releasing volume in the browser: on the contract's page, with what became of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.test import Client

from marketplace.contracts.models import Nomination
from marketplace.ids import uuid7
from marketplace.orders.models import Release
from tests.cast import Party
from tests.portal.conftest import SignIn
from tests.portal.world import Day


@pytest.fixture
def buyer(acme: Party, day: Day, sign_in: SignIn) -> Client:
    return sign_in(acme)


def filled(**changes: str) -> dict[str, str]:
    # The next period's gate is open at two minutes past three.
    return {
        "operation": str(uuid7()),
        "period_start": "2026-03-10T15:05:00",
        "periods": "3",
        "lots": "1",
        "floor": "0.12",
        **changes,
    }


def test_a_release_is_made_once_from_the_contracts_page_and_listed(buyer: Client, day: Day) -> None:
    page = f"/buyer/contracts/{day.committed.id}/releases"
    assert page in buyer.get(f"/buyer/contracts/{day.committed.id}").content.decode()
    shown = buyer.get(page).content.decode()
    assert 'value="2026-03-10T15:05:00"' in shown
    form = filled()
    assert buyer.post(page, form).status_code == 302
    assert buyer.post(page, form).status_code == 302
    assert (
        list(Release.objects.order_by("period_start").values_list("lots", "floor_micros_per_mtok"))
        == [(1, 120_000)] * 3
    )
    assert Nomination.objects.count() == 3
    listed = buyer.get(page).content.decode()
    assert listed.count("0.12") >= 3
    assert "placed" in listed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lots", "0"),
        ("lots", "1000000"),
        ("lots", "1.5"),
        ("floor", "-1"),
        ("floor", "NaN"),
        ("floor", "99999"),
        ("periods", "0"),
        ("periods", "289"),
        ("period_start", "2026-03-10T15:06:00"),
        ("period_start", "2026-03-10T15:00:00"),
        ("period_start", "2030-01-01T00:00:00"),
        ("period_start", "soon"),
    ],
)
def test_what_cannot_be_released_is_said_at_its_field(buyer: Client, day: Day, name: str, value: str) -> None:
    answer = buyer.post(f"/buyer/contracts/{day.committed.id}/releases", filled(**{name: value}))
    assert answer.status_code == 422
    assert f"id_{name}_error" in answer.content.decode()
    assert not Release.objects.exists()


def test_who_may_only_read_sees_no_form_and_releases_nothing(
    acme: Party, day: Day, viewer_of: Callable[[Party], Client]
) -> None:
    client = viewer_of(acme)
    page = f"/buyer/contracts/{day.committed.id}/releases"
    assert "<button>Release" not in client.get(page).content.decode()
    assert client.post(page, filled()).status_code == 403
    assert not Release.objects.exists()
