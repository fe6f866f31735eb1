"""The pages of market data and monitoring: in plain words, for whom they are, in a constant number of queries."""

from __future__ import annotations

from datetime import datetime

from django.test import Client
from pytest_django import DjangoAssertNumQueries

from marketplace.accounts.models import Membership
from marketplace.billing.services.settling import settle_period
from marketplace.orders.models import PriceIndex
from marketplace.orders.services.indexing import publish_index
from marketplace.periods import settlement_period
from pricing.models import Grade
from tests.billing.test_grant_earnings import give, stop, use
from tests.cast import Party, Plant
from tests.portal.conftest import SignIn
from tests.portal.world import HOUR, Day

# Session, user, memberships and the market's clock, on every page.
DOOR = 6


def test_the_index_explains_itself_and_says_what_it_rests_on(
    day: Day, acme: Party, hyperion: Party, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    assert "No index has been published yet" in Client().get("/price-index").content.decode()
    publish_index(now=day.now + 12 * HOUR)
    with django_assert_max_num_queries(DOOR + 3):
        shown = Client().get("/price-index").content.decode()
    value = PriceIndex.objects.order_by("-pk")[0]
    for said in ("median-1", "volume-weighted median", "nothing to rest on", f"/index/{value.id}/recompute"):
        assert said in shown
    assert "style=" not in shown
    assert not [name for name in (acme.organization.name, hyperion.organization.name) if name in shown]


def test_the_leaderboard_names_providers_and_no_hosts(
    day: Day, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    with django_assert_max_num_queries(DOOR + 6):
        shown = Client().get("/leaderboard").content.decode()
    assert shown.count("Hyperion") == 2
    assert not [name for name in ("alpha", "beta", "Acme", str(day.plant.host.id)) if name in shown]


def test_monitoring_shows_the_operator_names_and_powers(
    day: Day,
    operator: Party,
    acme: Party,
    sign_in: SignIn,
    django_assert_max_num_queries: DjangoAssertNumQueries,
) -> None:
    client = sign_in(operator)
    with django_assert_max_num_queries(DOOR + 17):
        shown = client.get("/operator/monitoring").content.decode()
    # One buyer and one seller: a monopoly on both sides.
    assert "10\u202f000" in shown
    assert "Hyperion" in shown
    assert "pivotal" in shown
    assert sign_in(acme).get("/operator/monitoring").status_code == 404


def test_monitoring_shows_the_operator_whom_grants_pay(
    operator: Party,
    acme: Party,
    hyperion: Party,
    grade: Grade,
    plant: Plant,
    clock_at: datetime,
    sign_in: SignIn,
) -> None:
    hour = settlement_period(clock_at).start - 2 * HOUR
    give(acme, 5_000, hour)
    use(acme, grade, plant, 5, hour)
    settle_period(settlement_start=hour, now=clock_at)
    Membership.objects.create(
        organization_id=hyperion.id, user=acme.user, role=Membership.Role.VIEWER, created_at=hour
    )
    shown = sign_in(operator).get("/operator/monitoring").content.decode()
    assert "Whom grants pay" in shown
    assert "people in common" in shown
    assert "payouts stopped" not in shown
    stop(hyperion, now=clock_at)
    assert "payouts stopped" in sign_in(operator).get("/operator/monitoring").content.decode()
