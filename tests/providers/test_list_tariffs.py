"""List tariffs: announced, dated versions; every reader sees the rate of its own time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
import time_machine
from django.db import IntegrityError, ProgrammingError, connection, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marketplace.accounts.models import AuditEntry
from marketplace.accounts.services import SYSTEM
from marketplace.errors import Conflict, InvalidInput, NotFound
from marketplace.ids import uuid7
from pricing.models import Rate
from pricing.rate_tariffs import tariffs_by_rate
from pricing.tariffs import Tariff, Tier, TimeOfUse, Window, graduated, package, volume
from pricing.units import NUMERATOR_PER_LOT
from providers.list_rates import (
    list_rate_moves,
    list_rate_schedule,
    list_rates_at,
    month_tariff_of,
    slots_of,
    tariffs_of,
    with_list_rate,
)
from providers.models import Host, ListTariff, ListTariffSlot, Offering
from providers.selectors import list_rate_schedules, supply_of
from providers.services import announce_tariff, withdraw_offering, withdraw_tariff
from tests.cast import Party, Plant, make_plant

HOUR = timedelta(hours=1)
PERIOD = timedelta(minutes=5)
DAY = timedelta(days=1)
# The cast's plain list rate.
PLAIN = 600_000
NIGHT = Window(22 * 3_600, 6 * 3_600, 200_000)


def announce(
    plant: Plant,
    valid_from: datetime,
    now: datetime,
    *,
    rate: int = 500_000,
    windows: Sequence[Window] = (),
    **changes: Any,
) -> ListTariff:
    terms: dict[str, Any] = {
        "organization_id": plant.host.provider.organization_id,
        "offering_id": plant.offering.id,
        "kind": "time_of_use" if windows else "per_unit",
        "valid_from": valid_from,
        "rate_micros_per_mtok": rate,
        "windows": windows,
        "now": now,
        "actor": SYSTEM,
    }
    return announce_tariff(**{**terms, **changes})


LOT = NUMERATOR_PER_LOT
TIERS = (Tier(5 * LOT, 500_000), Tier(10 * LOT, 700_000), Tier(None, 100_000))


def announce_month(plant: Plant, valid_from: datetime, now: datetime, kind: str, **terms: Any) -> ListTariff:
    return announce(plant, valid_from, now, kind=kind, rate_micros_per_mtok=None, windows=(), **terms)


def rate_at(plant: Plant, at: datetime) -> int:
    [rate] = list_rates_at([plant.offering], at).values()
    return rate.micros_per_mtok


def test_a_version_holds_from_its_instant_until_the_next(plant: Plant, now: datetime) -> None:
    first, second = now + HOUR, now + 3 * HOUR
    announce(plant, second, now, rate=400_000)
    announce(plant, first, now, rate=700_000)
    instant = timedelta(microseconds=1)
    moments = (now, first - instant, first, second - instant, second, second + 300 * DAY)
    assert [rate_at(plant, at) for at in moments] == [PLAIN, PLAIN, 700_000, 700_000, 400_000, 400_000]


def test_windows_are_half_open_and_reach_over_midnight(plant: Plant, now: datetime) -> None:
    start = now + HOUR
    announce(plant, start, now, windows=[NIGHT])
    midnight = (now + 2 * DAY).replace(hour=0, minute=0, second=0, microsecond=0)
    instant = timedelta(microseconds=1)
    moments = [
        midnight - 2 * HOUR - instant, midnight - 2 * HOUR, midnight - instant, midnight, midnight + 6 * HOUR - instant,
        midnight + 6 * HOUR,
    ]  # fmt: skip
    expected = [500_000, 200_000, 200_000, 200_000, 200_000, 500_000]
    assert [rate_at(plant, at) for at in moments] == expected
    [tariff] = tariffs_of(plant.offering.id)
    assert slots_of(tariff) == [
        (0, 6 * 3_600, 200_000), (6 * 3_600, 22 * 3_600, 500_000), (22 * 3_600, 86_400, 200_000)
    ]  # fmt: skip


def test_a_rate_is_one_row_that_names_its_offering_and_its_time(plant: Plant, now: datetime) -> None:
    tariff = announce(plant, now + HOUR, now, windows=[NIGHT])
    rows = Rate.objects.filter(pk__in=tariff.slots.values("rate_id"))
    # Two slots of the night, one rate.
    assert sorted(rows.values_list("micros_per_mtok", flat=True)) == [200_000, 500_000]
    assert set(rows.values_list("kind", "source_id", "grade_id", "valid_from", "created_at")) == {
        ("list", plant.offering.id, plant.offering.grade_id, now + HOUR, now)
    }


windows = st.lists(
    st.tuples(st.integers(0, 287), st.integers(1, 287), st.integers(1, 5)), min_size=1, max_size=4
).map(
    lambda found: [Window(start * 300, (start + length) % 288 * 300, rate) for start, length, rate in found]
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(windows=windows, rate=st.integers(1, 5), seconds=st.lists(st.integers(0, 2 * 86_400 - 1), min_size=3))
def test_sql_schedule_and_the_pure_module_say_the_same(
    plant: Plant, now: datetime, windows: list[Window], rate: int, seconds: list[int]
) -> None:
    try:
        terms = TimeOfUse(rate, tuple(windows))
    except ValueError:
        return  # Two of them overlap: tests of the pure module.
    start = now + HOUR
    with transaction.atomic():
        announce(plant, start, now, rate=rate, windows=windows)
        [schedule] = list_rate_schedule(Offering.objects.all(), now, start + 2 * DAY).values()
        assert (schedule[0].start, schedule[-1].end) == (now, start + 2 * DAY)
        assert all(one.end == other.start for one, other in pairwise(schedule))
        for at in [start + timedelta(seconds=second) for second in seconds]:
            [span] = [span for span in schedule if span.start <= at < span.end]
            assert rate_at(plant, at) == terms.rate_at(at) == span.rate
        transaction.set_rollback(True)


def test_the_cheapest_offering_makes_the_schedule(plant: Plant, hyperion: Party, now: datetime) -> None:
    other = make_plant(hyperion, plant.offering.grade, now, name="h2", list_rate=450_000)
    start = now + 2 * HOUR
    announce(plant, start, now, rate=300_000)
    grade_id = plant.offering.grade_id
    offerings = Offering.objects.filter(pk__in=[plant.offering.pk, other.offering.pk])
    expected = {grade_id: [(now, start, 450_000), (start, now + DAY, 300_000)]}
    assert list_rate_schedule(offerings, now, now + DAY) == expected
    assert list_rate_schedules([grade_id, uuid7()], now + timedelta(minutes=4)) == expected
    assert list_rate_schedule(Offering.objects.none(), now, now + DAY) == {}
    assert supply_of([grade_id], now)[grade_id].list_rate_micros_per_mtok == 450_000


def test_a_schedule_of_many_versions_and_windows_is_cut_at_each_change(
    plant: Plant, hyperion: Party, now: datetime
) -> None:
    """Versions of two offerings that begin inside windows and nights, against the rate of each moment."""
    other = make_plant(hyperion, plant.offering.grade, now, name="h2", list_rate=450_000)
    for number, one in enumerate((plant, other, plant, other, plant)):
        start = now + HOUR + number * (5 * HOUR + PERIOD)
        announce(
            one, start, now, rate=500_000 - number, windows=[NIGHT, Window(43_200, 46_800, 300 + number)]
        )
    [schedule] = list_rate_schedule(Offering.objects.all(), now, now + 2 * DAY).values()
    assert [span.start for span in schedule[1:]] == [span.end for span in schedule[:-1]]
    assert all(one.rate != following.rate for one, following in pairwise(schedule))
    for number in range(2 * 288):
        at = now + number * PERIOD
        [span] = [span for span in schedule if span.start <= at < span.end]
        rates = list_rates_at([plant.offering, other.offering], at).values()
        assert span.rate == min(rate.micros_per_mtok for rate in rates), at


def test_the_moves_of_list_rates_are_what_each_moment_had(
    plant: Plant, hyperion: Party, now: datetime
) -> None:
    """What a simulation reads of the past, against the rate of each moment; from the day of its start on."""
    other = make_plant(hyperion, plant.offering.grade, now, name="h2", list_rate=450_000)
    for number, one in enumerate((plant, other, plant, other, plant)):
        start = now + HOUR + number * (5 * HOUR + PERIOD)
        announce(
            one, start, now, rate=500_000 - number, windows=[NIGHT, Window(43_200, 46_800, 300 + number)]
        )
    end = now + 2 * DAY
    for begin in (now, now + DAY):
        moves = list(list_rate_moves(Offering.objects.all(), begin, end))
        assert [move[0] for move in moves] == sorted(move[0] for move in moves)
        assert moves[-1][0] < end
        for number in range((end - begin) // PERIOD):
            at = begin + number * PERIOD
            found = {offering_id: rate for moved_at, offering_id, rate in moves if moved_at <= at}
            assert found == list_rates_at([plant.offering, other.offering], at), at


def test_a_schedule_begins_with_the_version_in_force(plant: Plant, now: datetime) -> None:
    for number, rate in enumerate((100, 200, 300, 400)):
        announce(plant, now + (number + 1) * HOUR, now, rate=rate)
    at = now + 2 * HOUR
    [schedule] = list_rate_schedule(Offering.objects.all(), at, at + 2 * HOUR).values()
    assert schedule == [(at, at + HOUR, 200), (at + HOUR, at + 2 * HOUR, 300)]


def test_supply_and_offerings_show_the_rate_in_force(plant: Plant, now: datetime) -> None:
    start = now + PERIOD
    tariff = announce(plant, start, now, rate=5)
    grade_id = plant.offering.grade_id
    for at, expected in ((now, PLAIN), (start, 5)):
        assert supply_of([grade_id], at)[grade_id].list_rate_micros_per_mtok == expected
        shown: Any = with_list_rate(Offering.objects.all(), at).get()
        assert shown.listed_micros_per_mtok == expected
    assert shown.listed_rate_id == tariff.slots.get().rate_id


def test_a_package_is_no_cheapest_rate(plant: Plant, hyperion: Party, now: datetime) -> None:
    """For an hour: whoever lists a rate beside it is the cheapest, and where nobody does there is none."""
    # The last hour of a month: what follows a month's price begins with a month.
    now = datetime(2026, 3, 31, 22, tzinfo=UTC)
    grade_id, start = plant.offering.grade_id, now + HOUR
    announce_month(plant, start, now, "package", package_lots=1_000, package_micros=1)
    announce(plant, start + HOUR, now, rate=500_000)
    Host.objects.update(last_heartbeat_at=now + 48 * HOUR)
    offerings = Offering.objects.all()
    [spans] = list_rate_schedule(offerings, now, now + DAY).values()
    assert spans == [(now, start, PLAIN), (start + HOUR, now + DAY, 500_000)]
    assert supply_of([grade_id], start)[grade_id].list_rate_micros_per_mtok is None
    other = make_plant(hyperion, plant.offering.grade, now, name="h2", list_rate=900_000)
    assert supply_of([grade_id], start)[grade_id].list_rate_micros_per_mtok == 900_000
    [spans] = list_rate_schedule(offerings, now, now + DAY).values()
    assert [span.rate for span in spans] == [PLAIN, 900_000, 500_000]
    rates = list_rates_at([plant.offering, other.offering], start)
    assert [rates[one.offering.pk].comparable for one in (plant, other)] == [None, 900_000]
    comparable = [rate.comparable for _, _, rate in list_rate_moves(offerings, now, now + DAY)]
    assert comparable == [PLAIN, 900_000, None, 500_000]


def test_saying_the_same_again_is_the_same_version(plant: Plant, now: datetime) -> None:
    first = announce(plant, now + HOUR, now, windows=[NIGHT])
    # The same day in other words.
    parts = [Window(0, 6 * 3_600, 200_000), Window(22 * 3_600, 86_400, 200_000)]
    assert announce(plant, now + HOUR, now, windows=parts) == first
    assert ListTariff.objects.count() == 1
    assert AuditEntry.objects.filter(action="offering.tariff_announced").count() == 1
    with pytest.raises(Conflict, match="Another version begins then"):
        announce(plant, now + HOUR, now, rate=1)


def test_a_version_is_taken_back_ahead_and_never_later(plant: Plant, hyperion: Party, now: datetime) -> None:
    start = now + HOUR
    tariff = announce(plant, start, now, rate=5)

    def withdraw(at: datetime) -> None:
        withdraw_tariff(
            organization_id=hyperion.id,
            offering_id=plant.offering.id,
            tariff_id=tariff.id,
            now=at,
            actor=SYSTEM,
        )

    with pytest.raises(Conflict, match="has begun or is about to"):
        withdraw(start - PERIOD + timedelta(microseconds=1))
    withdraw(start - PERIOD)
    withdraw(start - PERIOD)
    assert rate_at(plant, start) == PLAIN
    assert AuditEntry.objects.filter(action="offering.tariff_withdrawn").count() == 1
    # Its instant is free again.
    announce(plant, start, now, rate=6)
    assert rate_at(plant, start) == 6


@pytest.mark.parametrize(
    ("kind", "terms", "tariff", "highest"),
    [
        ("graduated", {"tiers": TIERS}, graduated(TIERS), 700_000),
        ("volume", {"tiers": TIERS[::2]}, volume(TIERS[::2]), 500_000),
        # 7 micros for three lots are 2,333.3 the Mtok, rounded up.
        ("package", {"package_lots": 3, "package_micros": 7}, package(3 * LOT, 7), 2_334),
    ],
)
def test_a_price_of_a_months_volume_is_listed_at_its_highest_rate(
    plant: Plant, now: datetime, kind: str, terms: dict[str, Any], tariff: Tariff, highest: int
) -> None:
    start = now + HOUR
    version = announce_month(plant, start, now, kind, **terms)
    assert announce_month(plant, start, now, kind, **terms) == version
    assert [rate_at(plant, at) for at in (now, start)] == [PLAIN, highest]
    assert slots_of(version) == [(0, 86_400, highest)]
    [version] = tariffs_of(plant.offering.id)
    assert month_tariff_of(version) == tariff
    [rate] = list_rates_at([plant.offering], start).values()
    assert tariffs_by_rate([rate.rate_id, plant.offering.list_rate_id]) == {rate.rate_id: tariff}
    with pytest.raises(Conflict, match="Another version begins then"):
        announce_month(plant, start, now, "package", package_lots=1, package_micros=1)
    refused = pytest.raises(ProgrammingError, match="permission denied")
    with refused, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("UPDATE pricing_ratetariff SET unit_numerator = unit_numerator + 1")


def test_a_months_price_ends_with_a_month(plant: Plant, hyperion: Party, now: datetime) -> None:
    """Or its count began anew with each version, before anybody reached the tier that he was shown."""
    april, may = datetime(2026, 4, 1, tzinfo=UTC), datetime(2026, 5, 1, tzinfo=UTC)
    tiers = {"tiers": TIERS}
    plain = announce(plant, april + DAY, now)
    for at in (now + HOUR, april):
        with pytest.raises(Conflict, match="begins within its month") as refused:
            announce_month(plant, at, now, "graduated", **tiers)
        assert refused.value.field == "valid_from"
    announce_month(plant, april + 2 * DAY, now, "graduated", **tiers)
    for at in (april + 2 * DAY + PERIOD, may - PERIOD, may + PERIOD):
        with pytest.raises(Conflict, match="begins with a calendar month") as refused:
            announce(plant, at, now)
        assert refused.value.field == "valid_from"
    follows = announce(plant, may, now)
    announce(plant, may + DAY, now)
    terms: dict[str, Any] = {
        "organization_id": hyperion.id,
        "offering_id": plant.offering.id,
        "actor": SYSTEM,
    }
    with pytest.raises(Conflict, match="would end a month's price within the month"):
        withdraw_tariff(**terms, tariff_id=follows.id, now=now)
    withdraw_tariff(**terms, tariff_id=plain.id, now=now)


def test_tiers_and_packages_are_announced_over_rest_and_refused_by_their_field(
    plant: Plant, hyperion: Party, now: datetime
) -> None:
    url = f"/api/v1/offerings/{plant.offering.id}/tariffs"

    def post(**terms: Any) -> Any:
        with time_machine.travel(now, tick=False):
            return hyperion.api.post(url, {"valid_from": (now + HOUR).isoformat(), **terms}, format="json")

    refused: list[tuple[dict[str, Any], str]] = [
        ({"kind": "package", "package_lots": 3}, "package_micros"),
        ({"kind": "package", "package_micros": 3}, "package_lots"),
        ({"kind": "package", "package_lots": "3", "package_micros": 3}, "package_lots"),
        ({"kind": "volume", "rate_micros_per_mtok": 3}, "rate_micros_per_mtok"),
        ({"kind": "volume", "tiers": [{"up_to_lots": 1, "rate_micros_per_mtok": 1}]}, "tiers"),
        ({"kind": "volume", "tiers": [{"up_to_lots": 1}]}, "tiers.0.rate_micros_per_mtok"),
        ({"kind": "volume", "tiers": [{"up_to_lots": 0, "rate_micros_per_mtok": 1}]}, "tiers.0.up_to_lots"),
    ]
    for terms, field in refused:
        answer = post(**terms)
        assert answer.status_code == 422, terms
        assert answer.json()["field"] == field
    assert not ListTariff.objects.exists()
    tiers = [{"up_to_lots": 5, "rate_micros_per_mtok": 500_000}, {"rate_micros_per_mtok": 100_000}]
    answer = post(kind="graduated", tiers=tiers)
    assert answer.status_code == 201
    shown = answer.json()
    assert shown["tiers"] == [tiers[0], {"up_to_lots": None, **tiers[1]}]
    assert [slot["rate_micros_per_mtok"] for slot in shown["slots"]] == [500_000]
    [version] = tariffs_of(plant.offering.id)
    assert month_tariff_of(version) == graduated([Tier(5 * LOT, 500_000), Tier(None, 100_000)])


@pytest.mark.parametrize(
    ("kind", "terms", "field"),
    [
        ("graduated", {}, "tiers"),
        ("graduated", {"tiers": TIERS, "rate_micros_per_mtok": 1}, "rate_micros_per_mtok"),
        ("graduated", {"tiers": TIERS, "windows": [NIGHT]}, "windows"),
        ("graduated", {"tiers": TIERS[2:]}, "tiers"),
        ("graduated", {"tiers": TIERS[:2]}, "tiers"),
        ("graduated", {"tiers": TIERS[1::-1] + TIERS[2:]}, "tiers"),
        ("graduated", {"tiers": [Tier(LOT, 0), Tier(None, 0)]}, "tiers"),
        ("graduated", {"tiers": [Tier(LOT + 1, 2), Tier(None, 1)]}, "tiers"),
        ("graduated", {"tiers": [Tier(LOT, 10**12 + 1), Tier(None, 1)]}, "tiers"),
        ("graduated", {"tiers": [Tier(n * LOT, n) for n in range(1, 21)] + [Tier(None, 1)]}, "tiers"),
        ("graduated", {"tiers": [Tier(LOT, 2, 1), Tier(None, 1)]}, "tiers"),
        ("volume", {"tiers": TIERS}, "tiers"),
        ("package", {"package_lots": 1}, "package_micros"),
        ("package", {"package_micros": 1}, "package_lots"),
        ("package", {"package_lots": 0, "package_micros": 1}, "package_lots"),
        ("package", {"package_lots": 10**10, "package_micros": 1}, "package_lots"),
        ("package", {"package_lots": 1, "package_micros": 0}, "package_micros"),
        ("package", {"package_lots": 1, "package_micros": 10**9 + 1}, "package_micros"),
        ("package", {"package_lots": 1, "package_micros": 1, "tiers": TIERS}, "tiers"),
        ("per_unit", {"tiers": TIERS, "rate_micros_per_mtok": 1}, "tiers"),
        ("per_unit", {"rate_micros_per_mtok": 1, "package_micros": 1}, "package_micros"),
        ("per_unit", {}, "rate_micros_per_mtok"),
    ],
)  # fmt: skip
def test_a_months_price_that_is_none_is_refused_by_its_field(
    plant: Plant, now: datetime, kind: str, terms: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        announce(plant, now + HOUR, now, **{"rate_micros_per_mtok": None, "kind": kind, **terms})
    assert refused.value.field == field
    assert not ListTariff.objects.exists()
    assert Rate.objects.filter(kind="list").count() == 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"kind": "free"}, "kind"),
        ({"rate_micros_per_mtok": 0}, "rate_micros_per_mtok"),
        ({"rate_micros_per_mtok": 10**12 + 1}, "rate_micros_per_mtok"),
        ({"kind": "time_of_use"}, "windows"),
        ({"kind": "per_unit", "windows": [Window(0, 300, 1)]}, "windows"),
        ({"kind": "time_of_use", "windows": [Window(0, 300, 0)]}, "windows"),
        ({"kind": "time_of_use", "windows": [Window(0, 301, 1)]}, "windows"),
        ({"kind": "time_of_use", "windows": [Window(150, 300, 1)]}, "windows"),
        ({"kind": "time_of_use", "windows": [Window(300, 300, 1)]}, "windows"),
        ({"kind": "time_of_use", "windows": [Window(0, 86_400, 1), Window(300, 600, 2)]}, "windows"),
        ({"kind": "time_of_use", "windows": [Window(86_400, 300, 1)]}, "windows"),
        ({"kind": "time_of_use", "windows": [Window(600 * n, 600 * n + 300, 1) for n in range(25)]}, "windows"),
    ],
)  # fmt: skip
def test_terms_that_are_no_tariff_are_refused(
    plant: Plant, now: datetime, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        announce(plant, now + HOUR, now, **changes)
    assert refused.value.field == field
    assert not ListTariff.objects.exists()


def test_it_begins_with_a_period_that_is_a_whole_one_ahead(plant: Plant, now: datetime) -> None:
    """`now` is the start of a period."""
    later = now + timedelta(microseconds=1)
    for valid_from in (now + HOUR + timedelta(seconds=1), now + PERIOD, now, now - HOUR, now + 367 * DAY):
        with pytest.raises(InvalidInput) as refused:
            announce(plant, valid_from, later)
        assert refused.value.field == "valid_from"
    announce(plant, now + PERIOD, now)
    announce(plant, now + 2 * PERIOD, later)


def test_what_is_withdrawn_or_anothers_has_no_versions(
    plant: Plant, hyperion: Party, mallory: Party, now: datetime
) -> None:
    tariff = announce(plant, now + HOUR, now)
    with pytest.raises(NotFound):
        announce(plant, now + 2 * HOUR, now, organization_id=mallory.id)
    terms: dict[str, Any] = {
        "offering_id": plant.offering.id,
        "tariff_id": tariff.id,
        "now": now,
        "actor": SYSTEM,
    }
    with pytest.raises(NotFound):
        withdraw_tariff(organization_id=mallory.id, **terms)
    with pytest.raises(NotFound):
        withdraw_tariff(organization_id=hyperion.id, **{**terms, "tariff_id": uuid7()})
    withdraw_offering(organization_id=hyperion.id, offering_id=plant.offering.id, now=now, actor=SYSTEM)
    with pytest.raises(Conflict, match="offering is withdrawn"):
        announce(plant, now + 2 * HOUR, now)


def test_versions_to_come_are_bounded(plant: Plant, now: datetime) -> None:
    for number in range(20):
        announce(plant, now + HOUR + number * PERIOD, now, rate=1 + number)
    with pytest.raises(Conflict, match="At most 20"):
        announce(plant, now + DAY, now)
    # What has begun is not to come.
    announce(plant, now + DAY, now + HOUR)


def test_the_database_keeps_versions_as_they_were(plant: Plant, now: datetime) -> None:
    tariff = announce(plant, now + HOUR, now, windows=[NIGHT])
    slot = tariff.slots.order_by("start_s")[0]
    refused: list[tuple[type[Any], dict[str, Any], str]] = [
        (ListTariff, {"valid_from": now + 2 * HOUR}, "immutable"),
        (ListTariff, {"withdrawn_at": now + 2 * HOUR}, "providers_listtariff_withdrawn_ahead"),
        (ListTariffSlot, {"end_s": 3_600}, "permission denied"),
    ]
    for model, change, reason in refused:
        with pytest.raises(Exception, match=reason), transaction.atomic():
            model._default_manager.filter(pk__in=[tariff.pk, slot.pk]).update(**change)
    with pytest.raises(Exception, match="permission denied"), transaction.atomic():
        ListTariff.objects.filter(pk=tariff.pk)._raw_delete("default")
    with pytest.raises(IntegrityError, match="providers_listtariffslot_apart"), transaction.atomic():
        ListTariffSlot.objects.create(tariff=tariff, start_s=3_600, end_s=7_200, rate=slot.rate)
    with pytest.raises(IntegrityError, match="providers_listtariff_never_retroactive"), transaction.atomic():
        ListTariff.objects.create(offering=plant.offering, kind="per_unit", valid_from=now, created_at=now)
    ListTariff.objects.filter(pk=tariff.pk).update(withdrawn_at=now)
    with pytest.raises(IntegrityError, match="immutable"), transaction.atomic():
        ListTariff.objects.filter(pk=tariff.pk).update(withdrawn_at=None)


def test_a_query_takes_the_function_in(plant: Plant) -> None:
    """No call per row is left in the plan of the market's busiest statement."""
    with connection.cursor() as cursor:
        cursor.execute(
            "EXPLAIN SELECT o.id, r.* FROM providers_offering o"
            " CROSS JOIN LATERAL providers_list_rate(o.id, o.list_rate_id, %s) r",
            [datetime(2026, 3, 10, tzinfo=UTC)],
        )
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert "Function Scan" not in plan
    assert "providers_listtariff_one_at_a_time" in plan
