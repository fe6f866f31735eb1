"""Announcing outages on a host's page: whole hours, refused at their field, taken back in time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from django.test import Client

from marketplace.accounts.models import AuditEntry
from marketplace.accounts.services import SYSTEM
from providers.models import HostHour, Outage
from providers.services import announce_outage
from tests.cast import Party, Plant
from tests.portal.conftest import SignIn

HOUR = timedelta(hours=1)


@pytest.fixture
def host(plant: Plant, clock_at: datetime) -> str:
    """Its page; the clock stands at 2026-03-10, two minutes past an hour."""
    return f"/provider/hosts/{plant.host.id}"


def typed(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M")


def window(clock_at: datetime, first: int, last: int) -> dict[str, str]:
    """From `first` to `last` whole hours after the hour that runs."""
    start = clock_at.replace(minute=0, second=0, microsecond=0)
    return {"starts_at": typed(start + first * HOUR), "ends_at": typed(start + last * HOUR)}


def test_it_is_announced_listed_and_withdrawn(
    host: str, plant: Plant, hyperion: Party, clock_at: datetime, sign_in: SignIn
) -> None:
    provider = sign_in(hyperion)
    shown = provider.get(host).content.decode()
    assert "No outage is announced" in shown
    # What the form proposes can be announced as it stands.
    proposed = window(clock_at, 2, 3)
    assert f'value="{proposed["starts_at"]}"' in shown
    assert f'value="{proposed["ends_at"]}"' in shown
    assert provider.post(f"{host}/outages", window(clock_at, 24, 26)).status_code == 302
    outage = Outage.objects.get()
    assert (outage.kind, outage.ended_at) == ("planned", outage.started_at + 2 * HOUR)
    assert outage.started_at == clock_at.replace(minute=0, second=0, microsecond=0) + 24 * HOUR
    hours = HostHour.objects.filter(
        host=plant.host, hour_start__gte=outage.started_at, hour_start__lt=outage.ended_at
    )
    assert set(hours.values_list("sellable_ppm", flat=True)) == {0}
    shown = provider.get(host).content.decode()
    assert "to come" in shown
    assert "Withdraw the outage of" in shown
    entry = AuditEntry.objects.get(action="host.outage_announced")
    assert (entry.actor_kind, entry.actor_id) == ("user", hyperion.user.id)
    # Twice is once.
    for _ in range(2):
        assert provider.post(f"{host}/outages/{outage.id}/withdraw").status_code == 302
    outage.refresh_from_db()
    assert outage.ended_at == outage.started_at
    assert not hours.filter(sellable_ppm=0).exists()
    shown = provider.get(host).content.decode()
    assert "withdrawn" in shown
    assert "Withdraw the outage of" not in shown


@pytest.mark.parametrize(
    ("changes", "named", "said"),
    [
        ({"starts_at": "2026-03-12T10:30"}, "starts_at", "whole UTC hour"),
        ({"ends_at": "2026-03-12T12:00:01"}, "ends_at", "whole UTC hour"),
        ({"starts_at": "2020-03-12T10:00"}, "starts_at", "at least an hour ahead"),
        ({"starts_at": "2028-03-12T10:00"}, "starts_at", "at most a year ahead"),
        ({"ends_at": "2026-03-12T10:00"}, "ends_at", "must lie after"),
        ({"ends_at": "2026-03-26T11:00"}, "ends_at", "at most 14 days"),
        ({"starts_at": "soon"}, "starts_at", "valid date"),
        ({"starts_at": ""}, "starts_at", "required"),
        ({"ends_at": ""}, "ends_at", "required"),
        ({"ends_at": "0001-01-01T00:00"}, "ends_at", "must lie after"),
    ],
)
def test_what_cannot_be_announced_is_said_at_its_field(
    host: str, hyperion: Party, sign_in: SignIn, changes: dict[str, str], named: str, said: str
) -> None:
    data = {"starts_at": "2026-03-12T10:00", "ends_at": "2026-03-12T12:00", **changes}
    answer = sign_in(hyperion).post(f"{host}/outages", data)
    assert answer.status_code == 422
    shown = answer.content.decode()
    assert f"id_{named}_error" in shown
    assert said in shown
    assert not Outage.objects.exists()


def test_sold_hours_and_a_second_announcement_are_refused_at_the_start(
    host: str, plant: Plant, hyperion: Party, clock_at: datetime, sign_in: SignIn
) -> None:
    provider = sign_in(hyperion)
    assert provider.post(f"{host}/outages", window(clock_at, 24, 26)).status_code == 302
    overlap = provider.post(f"{host}/outages", window(clock_at, 25, 27))
    assert overlap.status_code == 422
    assert "Another outage is announced in this time" in overlap.content.decode()
    start = clock_at.replace(minute=0, second=0, microsecond=0)
    HostHour.objects.create(host=plant.host, hour_start=start + 48 * HOUR, sellable_ppm=950_000, sold_ppm=1)
    sold = provider.post(f"{host}/outages", window(clock_at, 48, 49))
    assert sold.status_code == 422
    assert "id_starts_at_error" in sold.content.decode()
    assert "is sold in this time" in sold.content.decode()
    assert Outage.objects.count() == 1


def test_what_has_begun_stays_on_record(
    host: str, plant: Plant, hyperion: Party, clock_at: datetime, sign_in: SignIn
) -> None:
    start = clock_at.replace(minute=0, second=0, microsecond=0)
    outage = announce_outage(
        organization_id=hyperion.id,
        host_id=plant.host.id,
        starts_at=start,
        ends_at=start + HOUR,
        now=start - 2 * HOUR,
        actor=SYSTEM,
    )
    provider = sign_in(hyperion)
    answer = provider.post(f"{host}/outages/{outage.id}/withdraw", follow=True)
    assert "The outage has begun; it stays on record." in answer.content.decode()
    outage.refresh_from_db()
    assert outage.ended_at == start + HOUR


def test_others_and_viewers_announce_nothing(
    host: str,
    plant: Plant,
    hyperion: Party,
    mallory: Party,
    clock_at: datetime,
    sign_in: SignIn,
    viewer_of: Callable[[Party], Client],
) -> None:
    data = window(clock_at, 24, 26)
    assert sign_in(mallory).post(f"{host}/outages", data).status_code == 404
    assert sign_in(mallory).post(f"{host}/outages", {}).status_code == 404
    viewer = viewer_of(hyperion)
    assert viewer.post(f"{host}/outages", data).status_code == 403
    assert "Announce</button>" not in viewer.get(host).content.decode()
    assert not Outage.objects.exists()
