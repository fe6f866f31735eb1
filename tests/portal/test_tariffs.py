"""A list tariff on the offer's page: announced, drawn, taken back; the market says when a price ends."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
import time_machine
from django.test import Client

from marketplace.accounts.models import AuditEntry
from marketplace.accounts.services import SYSTEM
from pricing.tariffs import Tariff, Tier, Window, graduated, package, volume
from providers.list_rates import month_tariff_of, slots_of
from providers.models import ListTariff
from providers.services import announce_tariff
from tests.cast import Party, Plant
from tests.portal.conftest import SignIn

HOUR = timedelta(hours=1)
MTOK = 10**12


@pytest.fixture
def offer(plant: Plant, clock_at: datetime) -> str:
    """Its page; the clock stands at 15:02 of 2026-03-10."""
    return f"/provider/offerings/{plant.offering.id}"


def typed(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M")


def test_a_tariff_is_announced_shown_and_withdrawn(
    offer: str, plant: Plant, hyperion: Party, clock_at: datetime, sign_in: SignIn
) -> None:
    provider = sign_in(hyperion)
    shown = provider.get(offer).content.decode()
    assert "No tariff was announced" in shown
    # What the form proposes can be announced as it stands.
    first = clock_at.replace(minute=10)
    assert f'value="{typed(first)}"' in shown
    form = {
        "valid_from": typed(first), "tariff_rate": "0.5",
        "start_0": "22:00", "end_0": "06:00", "rate_0": "0.25",
        "start_1": "12:00", "end_1": "13:00", "rate_1": "0.75",
    }  # fmt: skip
    assert provider.post(f"{offer}/tariffs", form).status_code == 302
    tariff = ListTariff.objects.get()
    assert (tariff.kind, tariff.valid_from) == ("time_of_use", first)
    assert slots_of(tariff) == [
        (0, 21_600, 250_000), (21_600, 43_200, 500_000), (43_200, 46_800, 750_000), (46_800, 79_200, 500_000),
        (79_200, 86_400, 250_000),
    ]  # fmt: skip
    entry = AuditEntry.objects.get(action="offering.tariff_announced")
    assert (entry.actor_kind, entry.actor_id) == ("user", hyperion.user.id)
    shown = provider.get(offer).content.decode()
    for part in ("to come", "12:00 to 13:00: 0.75", "22:00 to 24:00: 0.25", "now <b>0.60</b>"):
        assert part in shown
    with time_machine.travel(first, tick=False):
        shown = provider.get(offer).content.decode()
        assert "in force" in shown
        assert "now <b>0.50</b>" in shown
        assert "Withdraw the tariff of" not in shown
        # The host's table, too.
        assert "0.50" in provider.get(f"/provider/hosts/{plant.host.id}").content.decode()
    assert provider.post(f"{offer}/tariffs/{tariff.id}/withdraw").status_code == 302
    shown = provider.get(offer).content.decode()
    assert ">withdrawn<" in shown
    assert "Withdraw the tariff of" not in shown


@pytest.mark.parametrize(
    ("form", "tariff", "lines"),
    [
        (
            {
                "kind": "graduated",
                "up_to_0": "2",
                "tier_rate_0": "0.9",
                "up_to_1": "5.5",
                "tier_rate_1": "0.6",
                "tier_rate_2": "0.3",
            },
            graduated([Tier(2 * MTOK, 900_000), Tier(11 * MTOK // 2, 600_000), Tier(None, 300_000)]),
            ["up to 2 Mtok: 0.90", "up to 5.5 Mtok: 0.60", "beyond 5.5 Mtok: 0.30"],
        ),
        (
            {"kind": "volume", "up_to_0": "2", "tier_rate_0": "0.9", "tier_rate_1": "0.3"},
            volume([Tier(2 * MTOK, 900_000), Tier(None, 300_000)]),
            ["up to 2 Mtok: the whole month at 0.90", "beyond 2 Mtok: the whole month at 0.30"],
        ),
        (
            {"kind": "package", "package_size": "10", "package_price": "7.5"},
            package(10 * MTOK, 7_500_000),
            ["7.50 USD for each begun 10 Mtok of a month"],
        ),
    ],
)
def test_a_months_volume_is_priced_and_shown_to_buyers(
    offer: str,
    plant: Plant,
    hyperion: Party,
    clock_at: datetime,
    sign_in: SignIn,
    form: dict[str, str],
    tariff: Tariff,
    lines: list[str],
) -> None:
    provider, first = sign_in(hyperion), clock_at.replace(minute=10)
    assert provider.post(f"{offer}/tariffs", {"valid_from": typed(first), **form}).status_code == 302
    assert month_tariff_of(ListTariff.objects.get()) == tariff
    api = f"/api/v1/grades/{plant.offering.grade_id}/list-tariffs"
    for at, when in ((clock_at, "<td>from <time"), (first, "<td>now</td>")):
        with time_machine.travel(at, tick=False):
            plant.host.__class__.objects.update(last_heartbeat_at=at)
            market = Client().get("/market/tiny-chat").content.decode()
            assert when in market
            for line in lines:
                assert line in market
                assert line in provider.get(offer).content.decode()
            [shown] = Client().get(api).json()["items"]
            assert shown["kind"] == form["kind"]
            assert len(shown["tiers"]) == len(tariff.tiers)
    with time_machine.travel(clock_at, tick=False):
        [version] = ListTariff.objects.all()
    assert provider.post(f"{offer}/tariffs/{version.id}/withdraw").status_code == 302
    assert Client().get(api).json()["items"] == []


def test_one_rate_needs_no_windows(offer: str, hyperion: Party, clock_at: datetime, sign_in: SignIn) -> None:
    form = {"valid_from": typed(clock_at.replace(minute=30)), "tariff_rate": "0.5"}
    assert sign_in(hyperion).post(f"{offer}/tariffs", form).status_code == 302
    tariff = ListTariff.objects.get()
    assert (tariff.kind, slots_of(tariff)) == ("per_unit", [(0, 86_400, 500_000)])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"valid_from": "2026-03-10T15:11:00"}, "It must be the start of a delivery period."),
        ({"valid_from": "2026-03-10T15:05:00"}, "announced a whole delivery period ahead"),
        ({"tariff_rate": "0"}, "must be from 1 to"),
        ({"tariff_rate": "cheap"}, "tariff_rate_error"),
        ({"tariff_rate": ""}, "A tariff of kind per_unit needs it."),
        ({"kind": "free"}, "Select a valid choice."),
        ({"kind": "graduated"}, "A tariff of kind graduated has none."),
        ({"kind": "graduated", "tariff_rate": ""}, "A tariff of kind graduated needs it."),
        ({"up_to_0": "1"}, "A tier has a rate."),
        ({"up_to_0": "1", "tier_rate_0": "1"}, "A tariff of kind per_unit has none."),
        ({"kind": "volume", "tariff_rate": "", "up_to_0": "1", "tier_rate_0": "1", "tier_rate_1": "2"},
         "The rates of a volume price must fall."),
        ({"kind": "volume", "tariff_rate": "", "up_to_0": "1.0001", "tier_rate_0": "1"}, "up_to_0_error"),
        ({"kind": "package", "tariff_rate": "", "package_price": "7"}, "A tariff of kind package needs it."),
        ({"start_0": "12:00", "end_0": "13:00"}, "A window has a start, an end and a rate."),
        ({"start_0": "12:00", "end_0": "12:01", "rate_0": "1"}, "A window begins and ends with a delivery period"),
        ({"start_3": "12:00", "end_3": "12:30", "rate_3": "1", "start_0": "11:00", "end_0": "12:05", "rate_0": "2"},
         "Two of them overlap."),
    ],
)  # fmt: skip
def test_what_is_refused_is_said_at_its_field(
    offer: str, hyperion: Party, sign_in: SignIn, changes: dict[str, str], said: str
) -> None:
    form = {"valid_from": "2026-03-10T18:00:00", "tariff_rate": "0.5", **changes}
    answer = sign_in(hyperion).post(f"{offer}/tariffs", form)
    assert answer.status_code == 422
    assert said in answer.content.decode()
    assert not ListTariff.objects.exists()


def test_the_market_says_when_the_list_rate_ends(offer: str, plant: Plant, clock_at: datetime) -> None:
    def shown() -> str:
        return Client().get("/market/tiny-chat").content.decode()

    assert "On demand by time" not in shown()
    announce_tariff(
        organization_id=plant.host.provider.organization_id,
        offering_id=plant.offering.id,
        kind="time_of_use",
        valid_from=clock_at.replace(minute=10),
        rate_micros_per_mtok=500_000,
        windows=[Window(22 * 3_600, 6 * 3_600, 250_000)],
        now=clock_at,
        actor=SYSTEM,
    )
    # It is known before it begins.
    page = shown()
    assert "On demand by time" in page
    assert "0.60 <span" in page
    assert ">15:10</time>" in page
    assert ">0.25<" in page
    with time_machine.travel(clock_at + HOUR, tick=False):
        plant.host.__class__.objects.update(last_heartbeat_at=clock_at + HOUR)
        page = shown()
        assert "0.50 <span" in page
        assert ">22:00</time>" in page
    answer = Client().get(f"/api/v1/grades/{plant.offering.grade_id}/list-rates").json()["items"]
    assert [one["rate_micros_per_mtok"] for one in answer] == [600_000, 500_000, 250_000, 500_000]
    assert [one["end"] for one in answer][:2] == ["2026-03-10T15:10:00Z", "2026-03-10T22:00:00Z"]


def test_others_see_and_change_nothing(
    offer: str,
    plant: Plant,
    hyperion: Party,
    mallory: Party,
    clock_at: datetime,
    sign_in: SignIn,
    viewer_of: Callable[[Party], Client],
) -> None:
    form = {"valid_from": typed(clock_at.replace(minute=30)), "tariff_rate": "0.5"}
    assert sign_in(mallory).post(f"{offer}/tariffs", form).status_code == 404
    viewer = viewer_of(hyperion)
    assert "Announce a tariff" not in viewer.get(offer).content.decode()
    assert viewer.post(f"{offer}/tariffs", form).status_code == 403
    assert not ListTariff.objects.exists()
    assert sign_in(hyperion).post(f"{offer}/tariffs", form).status_code == 302
    tariff = ListTariff.objects.get()
    for client, refusal in ((sign_in(mallory), 404), (viewer, 403)):
        assert client.post(f"{offer}/tariffs/{tariff.id}/withdraw").status_code == refusal
    tariff.refresh_from_db()
    assert tariff.withdrawn_at is None
