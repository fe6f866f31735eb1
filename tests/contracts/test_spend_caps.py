"""Spend caps: exact at the cap, by day and month of admission, given back when a hold ends below its amount."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import connection

from marketplace.accounts.models import ApiKey
from marketplace.accounts.services import SYSTEM, create_api_key
from marketplace.contracts.holds import Opened
from marketplace.contracts.models import Accrual, Hold, SpendCap, SpendCounter
from marketplace.contracts.services import capture_hold, extend_hold, open_hold, void_hold
from marketplace.contracts.spending import set_spend_cap, spend_window, spent_of
from marketplace.errors import Forbidden, InvalidInput, NotFound
from marketplace.gateway.refusals import refusal_of
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import check_ledger
from marketplace.ledger.services import account_id, set_overdraft_limit
from metering.services import gateway_source
from providers.services import record_heartbeat
from tests.cast import make_party
from tests.conftest import TestDatabase
from tests.contracts.world import LOT, World, commit, give_money, make_world

DAY = timedelta(days=1)
# One lot costs 600 micros at the world's list rate.
LOT_MICROS = 600


@pytest.fixture
def world(db: None, now: datetime) -> World:
    made = make_world(now)
    give_money(made, 10**9, now)
    return made


def beat(world: World, at: datetime) -> None:
    record_heartbeat(
        host_id=world.plant.host.id, boot_id="b", ready=True, in_flight=0, registers={}, energy_millijoules=None,
        now=at,
    )  # fmt: skip


def cap(world: World, limit: int | None, at: datetime, **terms: Any) -> SpendCap:
    terms = {"scope": "api_key", "period": "day", **terms}
    if terms["scope"] == "api_key":
        terms.setdefault("api_key_id", world.acme.api_key_id)
    return set_spend_cap(organization_id=world.acme.id, limit_micros=limit, now=at, actor=SYSTEM, **terms)


def ask(
    world: World, at: datetime, *, numerator: int = LOT, key: UUID | None = None, contract: UUID | None = None
) -> tuple[UUID, Opened]:
    hold_id = uuid7(at)
    opened = open_hold(
        id=hold_id,
        organization_id=world.acme.id,
        api_key_id=key or world.acme.api_key_id,
        grade_ids=[world.grade.id],
        numerators=[numerator],
        contract_id=contract,
        now=at,
    )
    return hold_id, opened


def spent(one: SpendCap, at: datetime) -> int:
    return spent_of([one], now=at)[0].spent_micros


def capture(hold_id: UUID, numerator: int, at: datetime) -> None:
    answer = capture_hold(
        id=hold_id, numerator=numerator, event=b"{}\n", source_id=gateway_source(at).id, now=at
    )
    assert answer.outcome == "ok"


def test_what_fits_is_held_and_the_next_is_told_which_cap_and_until_when(world: World, now: datetime) -> None:
    capped = cap(world, 2 * LOT_MICROS, now)
    assert [ask(world, now)[1].outcome for _ in range(2)] == ["ok", "ok"]
    refused = ask(world, now)[1]
    assert (refused.outcome, refused.spend_cap) == ("spend_cap_reached", "api_key/day")
    midnight = spend_window("day", now).end
    assert refused.retry_after_ms == (midnight - now) // timedelta(milliseconds=1)
    assert spent(capped, now) == 2 * LOT_MICROS
    # Nothing of the refused request stays: no hold, no money, no pace.
    assert Hold.objects.count() == 2
    assert Accrual.objects.get().held_micros == 2 * LOT_MICROS
    error = refusal_of(refused)
    assert (error.status, error.code, error.kind) == (402, "spend_cap_reached", "insufficient_quota")
    assert "this API key per UTC day" in error.message
    assert error.headers["retry-after"] == str((midnight - now) // timedelta(seconds=1))
    assert "x-ratelimit-limit-tokens" not in error.headers
    assert check_ledger() == []


def test_what_a_hold_gives_back_may_be_spent_again(world: World, now: datetime) -> None:
    capped = cap(world, 2 * LOT_MICROS, now)
    first, second = ask(world, now)[0], ask(world, now)[0]
    capture(first, LOT // 2, now)
    assert spent(capped, now) == LOT_MICROS // 2 + LOT_MICROS
    assert void_hold(id=second, now=now) == "ok"
    assert spent(capped, now) == LOT_MICROS // 2
    assert ask(world, now)[1].outcome == "ok"
    assert ask(world, now)[1].outcome == "spend_cap_reached"
    # Ended twice, given back once.
    assert void_hold(id=second, now=now) == "voided"
    assert spent(capped, now) == LOT_MICROS // 2 + LOT_MICROS


def test_an_extension_is_under_the_cap_too(world: World, now: datetime) -> None:
    capped = cap(world, 2 * LOT_MICROS, now)
    hold_id, _ = ask(world, now)
    assert extend_hold(id=hold_id, delta_numerator=LOT // 2, now=now) == "ok"
    assert extend_hold(id=hold_id, delta_numerator=LOT, now=now) == "spend_cap_reached"
    assert spent(capped, now) == 900
    assert Accrual.objects.get().held_micros == 900
    assert extend_hold(id=hold_id, delta_numerator=-LOT, now=now) == "ok"
    assert spent(capped, now) == 300


def test_spend_belongs_to_the_day_of_admission(world: World, now: datetime) -> None:
    midnight = spend_window("day", now).end
    before, after = midnight - timedelta(seconds=1), midnight + timedelta(seconds=1)
    beat(world, before)
    capped = cap(world, 2 * LOT_MICROS, now)
    running, other = ask(world, before)[0], ask(world, before)[0]
    assert ask(world, before)[1].outcome == "spend_cap_reached"
    # It runs over midnight: the new day is empty, and what it grows by is still asked of the old one.
    assert spent(capped, after) == 0
    assert extend_hold(id=running, delta_numerator=1, now=after) == "spend_cap_reached"
    beat(world, after)
    assert [ask(world, after)[1].outcome for _ in range(3)] == ["ok", "ok", "spend_cap_reached"]
    capture(running, LOT // 3, after)
    void_hold(id=other, now=after)
    assert spent(capped, before) == 200
    assert spent(capped, after) == 2 * LOT_MICROS
    assert extend_hold(id=ask(world, midnight - DAY / 2)[0], delta_numerator=1, now=after) == "ok"


def test_a_months_cap_ends_with_the_calendar_month(world: World) -> None:
    at = datetime(2028, 2, 29, 23, 59, 59, 500_000, tzinfo=UTC)
    beat(world, at)
    cap(world, LOT_MICROS, at, period="month")
    assert ask(world, at)[1].outcome == "ok"
    refused = ask(world, at)[1]
    assert (refused.spend_cap, refused.retry_after_ms) == ("api_key/month", 500)
    assert ask(world, at + timedelta(milliseconds=500))[1].outcome == "ok"


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "America/Los_Angeles"])
def test_windows_are_utc_in_any_session(world: World, now: datetime, zone: str) -> None:
    def use(name: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('TimeZone', %s, true)", (name,))

    cap(world, LOT_MICROS, now)
    cap(world, 10**9, now, period="month")
    use(zone)
    ask(world, now)
    refused = ask(world, now)[1]
    # Django reads every session's times as if they were UTC.
    use("UTC")
    starts = {counter.window_start.astimezone(UTC) for counter in SpendCounter.objects.all()}
    assert starts == {spend_window("day", now).start, spend_window("month", now).start}
    assert refused.retry_after_ms == (spend_window("day", now).end - now) // timedelta(milliseconds=1)


def test_a_key_is_not_held_to_anothers_cap_but_to_its_projects_and_organizations(
    world: World, now: datetime
) -> None:
    def key(project: str) -> UUID:
        made, _ = create_api_key(
            organization_id=world.acme.id,
            label="k",
            scopes=["inference"],
            project=project,
            now=now,
            actor=SYSTEM,
        )
        return made.id

    in_lab, in_lab_too, free = key("lab"), key("lab"), key("")
    cap(world, 0, now)
    cap(world, 2 * LOT_MICROS, now, scope="project", project="lab")
    cap(world, 4 * LOT_MICROS, now, scope="organization")
    assert ask(world, now)[1].spend_cap == "api_key/day"
    assert [ask(world, now, key=one)[1].spend_cap for one in (in_lab, in_lab_too, in_lab)] == [
        None, None, "project/day",
    ]  # fmt: skip
    assert [ask(world, now, key=free)[1].spend_cap for _ in range(3)] == [None, None, "organization/day"]
    # What a narrower cap refused is not counted under a wider one.
    assert sorted(SpendCounter.objects.values_list("spent_micros", flat=True)) == [
        2 * LOT_MICROS, 4 * LOT_MICROS,
    ]  # fmt: skip


def test_a_cap_counts_from_when_it_is_set_and_a_lower_one_ends_nothing(world: World, now: datetime) -> None:
    uncapped, _ = ask(world, now)
    capped = cap(world, 2 * LOT_MICROS, now)
    running, _ = ask(world, now)
    cap(world, 100, now)
    assert ask(world, now)[1].outcome == "spend_cap_reached"
    capture(running, LOT, now)
    assert extend_hold(id=uncapped, delta_numerator=LOT, now=now) == "ok"
    capture(uncapped, 2 * LOT, now)
    assert spent(capped, now) == LOT_MICROS
    cap(world, None, now)
    assert ask(world, now)[1].outcome == "ok"
    cap(world, 2 * LOT_MICROS, now)
    assert [ask(world, now)[1].outcome for _ in range(2)] == ["ok", "spend_cap_reached"]


def test_volume_that_is_paid_for_costs_nothing_under_a_cap(world: World, now: datetime) -> None:
    prepaid = commit(world, now, firm_lots=30, volume_lots=50)
    cap(world, 0, now)
    beat(world, prepaid.starts_at)
    assert ask(world, prepaid.starts_at)[1].kind == "committed"
    assert ask(world, prepaid.starts_at, contract=prepaid.id)[1].outcome == "ok"
    assert not SpendCounter.objects.exists()


def test_volume_in_arrears_is_under_the_cap(world: World, now: datetime) -> None:
    receivable = account_id(
        organization_id=world.acme.id, kind=AccountKind.RECEIVABLE, currency="USD", now=now
    )
    set_overdraft_limit(account_id=receivable, limit_micros=10**9)
    contract = commit(world, now, firm_lots=30, volume_lots=50, payment="arrears")
    at = contract.starts_at
    beat(world, at)
    price = ask(world, at, contract=contract.id)[1].amount_micros
    assert price
    capped = cap(world, price, at)
    hold_id, _ = ask(world, at, contract=contract.id)
    refused = ask(world, at, contract=contract.id)[1]
    assert (refused.outcome, refused.spend_cap) == ("spend_cap_reached", "api_key/day")
    capture(hold_id, 0, at)
    assert spent(capped, at) == 0
    assert check_ledger() == []


@pytest.mark.parametrize(
    ("terms", "field"),
    [
        ({"scope": "world"}, "scope"),
        ({"scope": "organization", "period": "week"}, "period"),
        ({"scope": "organization", "limit_micros": -1}, "limit_micros"),
        ({"scope": "organization", "limit_micros": 10**15 + 1}, "limit_micros"),
        ({"scope": "organization", "project": "lab"}, "project"),
        ({"scope": "project"}, "project"),
        ({"scope": "project", "project": " lab"}, "project"),
        ({"scope": "api_key"}, "api_key_id"),
    ],
)
def test_terms_that_are_refused_name_the_field(
    world: World, now: datetime, terms: dict[str, Any], field: str
) -> None:
    given = {"period": "day", "limit_micros": 1, **terms}
    with pytest.raises(InvalidInput) as refused:
        set_spend_cap(organization_id=world.acme.id, now=now, actor=SYSTEM, **given)
    assert refused.value.field == field
    assert not SpendCap.objects.exists()


def test_anothers_key_is_not_found_and_a_seller_spends_nothing(world: World, now: datetime) -> None:
    mallory = make_party("Mallory", ["buyer"], now)
    with pytest.raises(NotFound):
        cap(world, 1, now, api_key_id=mallory.api_key_id)
    with pytest.raises(Forbidden):
        set_spend_cap(
            organization_id=world.hyperion.id,
            scope="organization",
            period="day",
            limit_micros=1,
            now=now,
            actor=SYSTEM,
        )
    assert not SpendCap.objects.exists()


def test_rest_sets_lists_and_lifts(world: World, now: datetime) -> None:
    assert ApiKey.objects.filter(pk=world.acme.api_key_id).exists()
    body = {
        "scope": "api_key",
        "api_key_id": str(world.acme.api_key_id),
        "period": "day",
        "limit_micros": 5_000_000,
    }
    made = world.acme.api.put("/api/v1/spend-caps", body, format="json")
    assert made.status_code == 200, made.content
    again = world.acme.api.put("/api/v1/spend-caps", {**body, "limit_micros": None}, format="json")
    assert (again.json()["id"], again.json()["limit_micros"]) == (made.json()["id"], None)
    [listed] = world.acme.api.get("/api/v1/spend-caps").json()["items"]
    assert (listed["left_micros"], listed["spent_micros"]) == (None, 0)


def test_five_hundred_at_once_at_the_cap_are_exactly_what_fits(
    committed_db: TestDatabase, now: datetime
) -> None:
    world = make_world(now)
    give_money(world, 10**9, now)
    # A lot's hundredth costs 6 micros: 37 fit under the key's cap, whatever the month's is.
    day, month = cap(world, 37 * 6 + 5, now), cap(world, 10**6, now, period="month", scope="organization")
    source_id = gateway_source(now).id

    def one(number: int) -> str:
        try:
            hold_id, opened = ask(world, now, numerator=LOT // 100)
            if opened.outcome == "ok" and number % 2:
                capture_hold(id=hold_id, numerator=LOT // 100, event=b"{}\n", source_id=source_id, now=now)
            return opened.outcome
        finally:
            connection.close()

    with ThreadPoolExecutor(16) as pool:
        outcomes = Counter(pool.map(one, range(500)))
    assert outcomes == {"ok": 37, "spend_cap_reached": 463}
    assert [spent(day, now), spent(month, now)] == [37 * 6, 37 * 6]
    accrual = Accrual.objects.get()
    assert accrual.held_micros + accrual.captured_micros == 37 * 6
    assert check_ledger() == []
