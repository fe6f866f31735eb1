"""Hosts, offerings and heartbeats through the services."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, transaction

from marketplace.accounts.models import AuditEntry
from marketplace.accounts.services import SYSTEM, Actor
from marketplace.egress import check_url, is_public_address
from marketplace.errors import Conflict, Forbidden, InvalidInput, NotFound
from marketplace.ids import uuid7
from pricing.models import Grade, Rate
from pricing.services import publish_grade
from pricing.units import Bucket
from providers import selectors, services
from providers.models import Bench, Host, HostPeriod, Offering, Outage
from tests.cast import WEIGHTS, Party, Plant, make_grade

FIGURES = {
    "duration_ms": 3,
    "requests": 1,
    "concurrency": 1,
    "input_tokens": 10,
    "output_tokens": 7,
    "first_byte_p50_ms": 1,
    "first_byte_p95_ms": 1,
}


def beat(plant: Plant, now: datetime, **changes: Any) -> None:
    said: dict[str, Any] = {
        "boot_id": "b",
        "ready": True,
        "in_flight": 0,
        "registers": {},
        "energy_millijoules": None,
    }
    services.record_heartbeat(host_id=plant.host.id, now=now, **said | changes)


def list_again(plant: Plant, now: datetime, **changes: int) -> Offering:
    prices = {
        "spot_floor_micros_per_mtok": 200_000,
        "firm_rate_micros_per_mtok": 500_000,
        "list_rate_micros_per_mtok": 600_000,
    }
    return services.list_offering(
        host_id=plant.host.id, grade_slug="tiny-chat", now=now, actor=SYSTEM, **prices | changes
    )


def test_only_a_provider_sells(acme: Party, hyperion: Party, now: datetime) -> None:
    with pytest.raises(Forbidden):
        services.ensure_provider(organization_id=acme.id, display_name="Acme", now=now)
    with pytest.raises(Forbidden):
        services.create_host(organization_id=acme.id, name="h", region="eu", site="", now=now, actor=SYSTEM)
    first = services.ensure_provider(organization_id=hyperion.id, display_name="Hyperion", now=now)
    assert services.ensure_provider(organization_id=hyperion.id, display_name="Other", now=now) == first


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", " "),
        ("name", "n" * 65),
        ("name", "a\x00b"),
        ("region", ""),
        ("region", "r" * 33),
        ("site", "s" * 121),
    ],
)
def test_a_bad_host_is_named_and_not_made(hyperion: Party, now: datetime, field: str, value: str) -> None:
    values = {"name": "h", "region": "eu", "site": ""} | {field: value}
    with pytest.raises(InvalidInput) as refused:
        services.create_host(organization_id=hyperion.id, now=now, actor=SYSTEM, **values)
    assert refused.value.field == field
    assert not Host.objects.exists()


def test_a_host_name_is_unique_in_its_organization(hyperion: Party, mallory: Party, now: datetime) -> None:
    for party in (hyperion, mallory):
        services.create_host(organization_id=party.id, name="h", region="eu", site="", now=now, actor=SYSTEM)
    with pytest.raises(Conflict) as refused:
        services.create_host(
            organization_id=hyperion.id, name="h", region="us", site="", now=now, actor=SYSTEM
        )
    assert refused.value.field == "name"


def test_dependable_capacity_is_the_bench_at_the_grades_weights(plant: Plant, now: datetime) -> None:
    # 200 input x 0.25 + 800 output x 4 x 0.25 = 850 standard tokens a second.
    assert plant.offering.dependable_numerator_per_s == 850_000_000
    assert selectors.dependable_lots(plant.offering, 300) == 255
    assert selectors.share_ppm_of(1, plant.offering, 300) == 3_922  # ceil(1e6 / 255)
    assert selectors.share_ppm_of(255, plant.offering, 300) == 1_000_000
    plant.host.refresh_from_db()
    assert plant.host.source is not None
    assert plant.host.source.dependable_numerator_per_s == 850_000_000


def test_dependable_capacity_is_rounded_down(plant: Plant, now: datetime) -> None:
    services.record_bench(host_id=plant.host.id, figures=FIGURES, now=now + timedelta(seconds=1))
    # (10 x 250,000 + 7 x 1,000,000) x 1000 // 3 ms
    assert list_again(plant, now + timedelta(seconds=2)).dependable_numerator_per_s == 3_166_666_666


def test_listing_the_same_again_changes_nothing(plant: Plant, now: datetime) -> None:
    rates, entries = Rate.objects.count(), AuditEntry.objects.count()
    again = list_again(plant, now + timedelta(hours=1))
    assert again.pk == plant.offering.pk
    assert (Rate.objects.count(), AuditEntry.objects.count()) == (rates, entries)


def test_a_new_price_is_a_new_rate_and_the_old_one_stays(plant: Plant, now: datetime) -> None:
    before = plant.offering.list_rate
    after = list_again(plant, now + timedelta(hours=1), list_rate_micros_per_mtok=700_000)
    assert after.pk == plant.offering.pk
    assert (after.list_rate.micros_per_mtok, before.micros_per_mtok) == (700_000, 600_000)
    assert after.firm_rate_id == plant.offering.firm_rate_id
    assert after.list_rate.source_id == after.pk


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("list_rate_micros_per_mtok", 0),
        ("list_rate_micros_per_mtok", 10**12 + 1),
        ("firm_rate_micros_per_mtok", -1),
        ("spot_floor_micros_per_mtok", -1),
        ("spot_floor_micros_per_mtok", True),
    ],
)
def test_a_bad_price_is_named(plant: Plant, now: datetime, field: str, value: int) -> None:
    with pytest.raises(InvalidInput) as refused:
        list_again(plant, now, **{field: value})
    assert refused.value.field == field


def test_what_was_not_benched_is_not_sold(plant: Plant, hyperion: Party, now: datetime) -> None:
    Host.objects.filter(pk=plant.host.pk).update(region="us")
    with pytest.raises(InvalidInput, match="delivered from eu"):
        list_again(plant, now)
    Host.objects.filter(pk=plant.host.pk).update(region="eu", engine={"context_tokens": 1_024})
    with pytest.raises(InvalidInput, match="2048 tokens of context"):
        list_again(plant, now)
    bare = services.create_host(
        organization_id=hyperion.id, name="x", region="eu", site="", now=now, actor=SYSTEM
    )
    with pytest.raises(Conflict, match="not enrolled"):
        services.list_offering(
            host_id=bare.id,
            grade_slug="tiny-chat",
            spot_floor_micros_per_mtok=1,
            firm_rate_micros_per_mtok=1,
            list_rate_micros_per_mtok=1,
            now=now,
            actor=SYSTEM,
        )


def test_a_new_grade_version_is_a_new_offering(plant: Plant, grade: Grade, now: datetime) -> None:
    later = now + timedelta(days=1)
    family = grade.family
    publish_grade(
        slug=family.slug,
        title=family.title,
        model=family.model,
        precision_floor=family.precision_floor,
        context_tokens=family.context_tokens,
        region=family.region,
        service_class=family.service_class,
        currency="USD",
        tokenizer_digest="bytes",
        weights_ppm=WEIGHTS | {Bucket.OUTPUT: 5_000_000},
        kappa_ppm={},
        max_request_s=15,
        max_output_tokens=2_048,
        template_overhead_tokens=64,
        spot_minimum_take_ppm=500_000,
        reference_rate_micros_per_mtok=500_000,
        now=later,
    )
    second = list_again(plant, later)
    assert second.pk != plant.offering.pk
    assert second.dependable_numerator_per_s == (200 + 5 * 800) * 1_000_000
    assert list(selectors.listed_offerings(grade.id, later)) == [plant.offering]


def test_paused_and_withdrawn_offerings_are_not_for_sale(
    plant: Plant, hyperion: Party, grade: Grade, now: datetime
) -> None:
    who: dict[str, Any] = {
        "organization_id": hyperion.id,
        "offering_id": plant.offering.id,
        "now": now,
        "actor": SYSTEM,
    }
    assert list(selectors.listed_offerings(grade.id, now)) == [plant.offering]
    services.pause_offering(**who)
    assert (
        list_again(plant, now).status == Offering.Status.PAUSED
    )  # The agent's restart does not undo its owner.
    assert not selectors.listed_offerings(grade.id, now)
    services.resume_offering(**who)
    assert selectors.listed_offerings(grade.id, now).count() == 1
    services.withdraw_offering(**who)
    assert not selectors.listed_offerings(grade.id, now)
    with pytest.raises(Conflict):
        services.resume_offering(**who)
    assert list_again(plant, now).pk != plant.offering.pk


def test_another_organizations_things_do_not_exist(plant: Plant, mallory: Party, now: datetime) -> None:
    who: dict[str, Any] = {"organization_id": mallory.id, "now": now, "actor": SYSTEM}
    for move in (services.pause_offering, services.resume_offering, services.withdraw_offering):
        with pytest.raises(NotFound):
            move(offering_id=plant.offering.id, **who)
    for move_host in (services.pause_host, services.resume_host, services.issue_enrolment_code):
        with pytest.raises(NotFound):
            move_host(host_id=plant.host.id, **who)
    assert not selectors.hosts_of(mallory.id).exists()
    assert not selectors.offerings_of(mallory.id).exists()


def test_a_paused_host_is_not_for_sale(plant: Plant, hyperion: Party, grade: Grade, now: datetime) -> None:
    who: dict[str, Any] = {
        "organization_id": hyperion.id,
        "host_id": plant.host.id,
        "now": now,
        "actor": SYSTEM,
    }
    services.pause_host(**who)
    assert not selectors.listed_offerings(grade.id, now)
    services.resume_host(**who)
    assert selectors.listed_offerings(grade.id, now).count() == 1


def test_human_actions_leave_an_audit_entry(plant: Plant, hyperion: Party, now: datetime) -> None:
    actor = Actor("user", hyperion.user.id)
    services.pause_host(organization_id=hyperion.id, host_id=plant.host.id, now=now, actor=actor)
    entry = AuditEntry.objects.get(action="host.paused")
    assert (entry.actor_id, entry.object_id, entry.organization_id) == (
        hyperion.user.id,
        plant.host.id,
        hyperion.id,
    )
    actions = set(AuditEntry.objects.filter(organization_id=hyperion.id).values_list("action", flat=True))
    assert {"host.created", "host.enrolment_code_issued", "host.enrolled", "offering.listed"} <= actions


# Heartbeats ----------------------------------------------------------------------------------------------------


def test_fifteen_silent_seconds_open_an_outage_that_the_next_beat_ends(
    plant: Plant, grade: Grade, now: datetime
) -> None:
    assert services.check_heartbeats(now=now + timedelta(seconds=14)) == 0
    at = now + timedelta(seconds=40)
    assert services.check_heartbeats(now=at) == 1
    assert services.check_heartbeats(now=at) == 0
    outage = Outage.objects.get()
    assert (outage.started_at, outage.ended_at) == (now + timedelta(seconds=15), None)
    assert not Host.objects.get(pk=plant.host.pk).ready
    assert not selectors.listed_offerings(grade.id, at)
    back = now + timedelta(seconds=55)
    beat(plant, back)
    outage.refresh_from_db()
    assert outage.ended_at == back
    assert selectors.listed_offerings(grade.id, back).count() == 1


def test_an_overtaken_beat_says_nothing(plant: Plant, now: datetime) -> None:
    beat(plant, now + timedelta(seconds=5), in_flight=3)
    beat(plant, now + timedelta(seconds=4), in_flight=1)
    assert Host.objects.get(pk=plant.host.pk).in_flight == 3


def test_a_host_shows_how_far_its_clock_is_off(plant: Plant, now: datetime) -> None:
    beat(plant, now + timedelta(seconds=1), clock_skew_ms=-600_000)
    assert Host.objects.get(pk=plant.host.pk).clock_skew_ms == -600_000
    beat(plant, now + timedelta(seconds=2))
    assert Host.objects.get(pk=plant.host.pk).clock_skew_ms is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"boot_id": ""}, "boot_id"),
        ({"boot_id": "b" * 65}, "boot_id"),
        ({"in_flight": -1}, "in_flight"),
        ({"in_flight": 2**31}, "in_flight"),
        ({"registers": {"output_tokens_total": -1}}, "registers.output_tokens_total"),
        ({"registers": {"output_tokens_total": 1.5}}, "registers.output_tokens_total"),
        ({"energy_millijoules": 2**63}, "energy_millijoules"),
    ],
)
def test_a_bad_heartbeat_is_named(plant: Plant, now: datetime, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        beat(plant, now + timedelta(seconds=1), **changes)
    assert refused.value.field == field
    assert Host.objects.get(pk=plant.host.pk).last_heartbeat_at == now


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"duration_ms": 0}, "duration_ms"),
        ({"output_tokens": 0}, "output_tokens"),
        ({"output_tokens": 2**63}, "output_tokens"),
        ({"input_tokens": -1}, "input_tokens"),
        ({"requests": True}, "requests"),
        ({"first_byte_p50_ms": 2}, "first_byte_p95_ms"),
        ({"speed": 1}, "speed"),
    ],
)
def test_bad_figures_are_named(plant: Plant, now: datetime, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        services.record_bench(host_id=plant.host.id, figures=FIGURES | changes, now=now)
    assert refused.value.field == field
    assert Bench.objects.count() == 1


def test_an_impossible_bench_cannot_be_sold(plant: Plant, now: datetime) -> None:
    services.record_bench(
        host_id=plant.host.id, figures=FIGURES | {"output_tokens": 10**12}, now=now + timedelta(seconds=1)
    )
    with pytest.raises(InvalidInput, match="any host"):
        list_again(plant, now + timedelta(seconds=2))


def test_the_app_role_deletes_no_host_and_edits_no_bench(plant: Plant) -> None:
    with pytest.raises(DatabaseError, match="permission denied"), transaction.atomic():
        Offering.objects.filter(pk=plant.offering.pk)._raw_delete("default")
    with pytest.raises(DatabaseError, match="permission denied"), transaction.atomic():
        Bench.objects.update(output_tokens=10**6)
    assert HostPeriod.objects.exists()


# createhost ----------------------------------------------------------------------------------------------------


def test_createhost_prints_id_and_code_as_json(hyperion: Party) -> None:
    out = StringIO()
    call_command("createhost", "hyperion", "rack-1", "--region", "eu", stdout=out)
    said = json.loads(out.getvalue())
    assert Host.objects.get(pk=said["host_id"]).name == "rack-1"
    assert said["enrolment_code"].startswith("tye_")
    renewed = StringIO()
    call_command("createhost", str(hyperion.id), "rack-1", "--region", "eu", "--renew", stdout=renewed)
    assert json.loads(renewed.getvalue())["enrolment_code"] != said["enrolment_code"]


def test_createhost_says_what_is_wrong(hyperion: Party, acme: Party) -> None:
    for arguments in (["nobody", "h"], ["acme", "h"], ["hyperion", " "]):
        with pytest.raises(CommandError):
            call_command("createhost", *arguments, "--region", "eu")
    assert not Host.objects.exists()


# Addresses -----------------------------------------------------------------------------------------------------

PUBLIC = ["93.184.216.34"]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://host.example",
        "//host.example",
        "http://",
        "http://user@host.example",
        "http://user:word@host.example",
        "http://@host.example",
        "http://host.example:0",
        "http://host.example:65536",
        "http://host.example:22",
        "http://host.example:",
        "http://host.example/?a=1",
        "http://host.example/#a",
        "http://host.example?",
        "http://host.example/a/../b",
        "http://host .example",
        "http://host.example\n",
        "http://host.example\\@10.0.0.1",
        "http://h\u00f6st.example",
        "http://[::1",
        "http://[fe80::1%25eth0]",
        "http://host.example/" + "a" * 300,
    ],
)
def test_a_strange_base_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_url(url, allow_private=False, field="base_url", resolve=lambda *_: PUBLIC)
    assert refused.value.field == "base_url"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8101",
        "http://127.1:8101",
        "http://2130706433",
        "http://0x7f000001",
        "http://0177.0.0.1",
        "http://0.0.0.0",
        "http://10.0.0.1",
        "http://169.254.169.254",
        "http://100.64.0.1",
        "http://224.0.0.1",
        "http://240.0.0.1",
        "http://[::1]",
        "http://[::]",
        "http://[::ffff:127.0.0.1]",
        "http://[::ffff:a00:1]",
        "http://[fc00::1]",
        "http://[64:ff9b::a00:1]",
        "http://[2002:a00:1::]",
        "http://localhost",
    ],
)
def test_our_own_network_is_refused_in_every_notation(url: str) -> None:
    with pytest.raises(InvalidInput, match="public internet"):
        check_url(url, allow_private=False, field="base_url")
    assert check_url(url, allow_private=True, field="base_url") == url


def test_every_address_of_a_name_must_be_public() -> None:
    def resolve(*addresses: str) -> str:
        return check_url(
            "https://Host.example:8443/agent/",
            allow_private=False,
            field="base_url",
            resolve=lambda *_: list(addresses),
        )

    assert resolve("93.184.216.34", "2606:4700::1111") == "https://host.example:8443/agent"
    for addresses in ((), ("93.184.216.34", "10.0.0.1"), ("nonsense",)):
        with pytest.raises(InvalidInput):
            resolve(*addresses)
    assert not is_public_address("fe80::1%eth0")


def test_fixtures_of_two_grades_share_one_host(plant: Plant, now: datetime) -> None:
    make_grade(now, slug="other", model="other")
    second = services.list_offering(
        host_id=plant.host.id,
        grade_slug="other",
        spot_floor_micros_per_mtok=1,
        firm_rate_micros_per_mtok=1,
        list_rate_micros_per_mtok=1,
        now=now,
        actor=SYSTEM,
    )
    assert set(selectors.offerings_of(plant.host.provider.organization_id)) == {plant.offering, second}
    assert not selectors.listed_offerings(uuid7(), now)
