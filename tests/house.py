"""One day of the whole market, committed once per test module, for tests that ask something of every door."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from fcntl import LOCK_EX, flock
from functools import cached_property
from pathlib import Path
from uuid import UUID

import pytest
import time_machine
from django.apps import apps
from django.db import connections, models
from django.urls import URLPattern, URLResolver, get_resolver
from pytest_django import DjangoDbBlocker
from rest_framework.test import APIClient

from marketplace.accounts.models import ApiKey, Membership
from marketplace.accounts.services import SYSTEM, create_api_key
from marketplace.billing.models import ProcessorOperation, TopUp
from marketplace.billing.services.bonds import deposit_bond
from marketplace.billing.services.crediting import issue_credit_note
from marketplace.billing.services.discounts import give_discount
from marketplace.billing.services.payout_destinations import request_destination
from marketplace.billing.services.payout_stops import release_payouts, stop_payouts
from marketplace.billing.services.taxes import add_tax_rule
from marketplace.contracts.services import derate_host, open_hold
from marketplace.ids import uuid7
from marketplace.ledger.grants import GrantTerms, give_grant
from marketplace.ledger.models import Grant, LedgerAccount
from marketplace.orders.models import Auction, CapReview, PriceIndex
from marketplace.orders.services.controls import schedule_cap
from marketplace.orders.services.indexing import publish_index
from marketplace.webhooks.models import WebhookDelivery
from marketplace.webhooks.services import create_endpoint, send_test
from metering.models import UsageBatch
from metering.services import accept_batch, add_meter_point, gateway_source, ingest_batches
from metering.usage import Finish, UsageEvent, encode_event, encode_lines
from pricing.services import publish_known_calibrations
from pricing.units import Bucket
from providers.models import Derating, ListTariff, Outage
from providers.services import announce_outage, announce_tariff
from tests.cast import Party, make_grade, make_party
from tests.conftest import TestDatabase, own_database
from tests.database import Services
from tests.portal.world import HOUR, HOURS_BEHIND, Day, make_day

ROOMS = (
    "marketplace",
    "accounts",
    "api",
    "webhooks",
    "ledger",
    "pricing",
    "metering",
    "providers",
    "contracts",
    "orders",
    "billing",
)
TEMPLATE = "tokenyard_house"
NOW = datetime(2026, 3, 10, 12, 0, tzinfo=UTC) + HOURS_BEHIND * HOUR + timedelta(minutes=2)


@dataclass(frozen=True)
class House:
    """Everybody, and rows of every kind that acme and hyperion have; mallory has nothing but her key."""

    database: TestDatabase
    operator: Party
    acme: Party
    hyperion: Party
    mallory: Party
    day: Day
    auction: Auction
    index: PriceIndex
    batch: UsageBatch
    cap_review: CapReview
    generation_id: UUID
    event_id: UUID
    outage: Outage
    tariff: ListTariff
    webhook: WebhookDelivery
    derating: Derating
    documents: dict[str, UUID]

    @cached_property
    def ids(self) -> dict[str, UUID]:
        """What stands for each `<...>` of an address: an object of acme's or hyperion's."""
        day = self.day
        return {
            "contract_id": day.committed.id,
            "quote_id": day.quote.id,
            "bid_id": day.bid.id,
            "charge_id": day.charge.id,
            "invoice_id": day.invoice.id,
            "line_id": day.invoice.lines.all()[0].id,
            "statement_id": day.statement.id,
            "api_key_id": self.acme.api_key_id,
            "membership_id": Membership.objects.get(organization=self.acme.organization).id,
            "host_id": day.plant.host.id,
            "offering_id": day.plant.offering.id,
            "outage_id": self.outage.id,
            "tariff_id": self.tariff.id,
            "derating_id": self.derating.id,
            "batch_id": self.batch.id,
            "generation_id": self.generation_id,
            "event_id": self.event_id,
            "auction_id": self.auction.id,
            "index_id": self.index.id,
            "grade_id": day.grade.id,
            "discrepancy_id": day.discrepancy.id,
            "review_id": self.cap_review.id,
            "endpoint_id": self.webhook.endpoint_id,
            "webhook_event_id": self.webhook.event_id,
            "organization_id": self.acme.id,
            "operation_id": ProcessorOperation.objects.filter(organization_id=self.acme.id).latest("id").id,
            "payment_id": TopUp.objects.filter(organization_id=self.acme.id).latest("id").id,
            "grant_id": Grant.objects.get(organization=self.acme.organization).id,
            "account_id": LedgerAccount.objects.get(organization=self.acme.organization, kind="prepaid").id,
            **self.documents,
        }

    def another_secret(self, party: Party, *, scopes: list[str] | None = None) -> str:
        """A further API key of the party; with every scope it may have, unless said otherwise."""
        own = ApiKey.objects.get(pk=party.api_key_id)
        _, secret = create_api_key(
            organization_id=party.id, label="another", scopes=scopes or own.scopes, now=NOW, actor=SYSTEM
        )
        return secret

    def reader_of(self, party: Party) -> APIClient:
        """A client whose API key may read, and nothing else."""
        client = APIClient()
        client.credentials(HTTP_AUTHORIZATION=f"Bearer {self.another_secret(party, scopes=['read'])}")
        return client


def own_models(*, managed_only: bool = False) -> list[type[models.Model]]:
    """Every table of ours."""
    return [
        model
        for label in ROOMS
        for model in apps.get_app_config(label).get_models()
        if model._meta.managed or not managed_only
    ]


def row_counts() -> dict[str, int]:
    return {model._meta.label: model._default_manager.count() for model in own_models()}


def routes() -> dict[str, URLPattern]:
    """Every address of the market as Django knows it, REST and portal."""
    found: dict[str, URLPattern] = {}

    def walk(patterns: list[URLPattern | URLResolver], prefix: str) -> None:
        for pattern in patterns:
            route = prefix + str(pattern.pattern)
            if isinstance(pattern, URLResolver):
                walk(pattern.url_patterns, route)
            else:
                assert route not in found, f"{route} is served twice: the second is never reached"
                found[route] = pattern

    walk(get_resolver().url_patterns, "")
    return found


def make_house(database: TestDatabase) -> House:
    begin = NOW - timedelta(days=1)
    operator = make_party("Operator", ["operator"], begin)
    acme = make_party("Acme", ["buyer"], begin)
    hyperion = make_party("Hyperion", ["provider"], begin)
    mallory = make_party("Mallory", ["buyer", "provider"], begin)
    publish_known_calibrations(now=begin)
    day = make_day(acme, hyperion, make_grade(begin), now=NOW)
    generation_id = uuid7(NOW)
    open_hold(
        id=generation_id,
        organization_id=acme.id,
        grade_ids=[day.grade.id],
        numerators=[10**9],
        contract_id=None,
        exclude=(),
        now=NOW,
    )
    event = UsageEvent(
        id=uuid7(NOW),
        sequence=1,
        request_id=uuid7(NOW),
        attempt=0,
        part=0,
        contract_id=day.on_demand.id,
        offering_id=day.plant.offering.id,
        grade_id=day.grade.id,
        rate_id=day.plant.offering.list_rate_id,
        period_start=NOW,
        occurred_at=NOW,
        buckets={Bucket.UNCACHED_INPUT: 12, Bucket.CACHE_READ: 0, Bucket.OUTPUT: 30},
        finish=Finish.STOP,
        bytes_in=120,
        bytes_out=4_000,
        duration_ms=40,
    )
    add_meter_point(
        contract_id=event.contract_id,
        offering_id=event.offering_id,
        host_id=day.plant.host.id,
        grade_id=event.grade_id,
        valid_from=begin,
    )
    batch = accept_batch(source=gateway_source(NOW), body=encode_lines([encode_event(event)]), now=NOW)
    ingest_batches(now=NOW)
    auction = Auction.objects.filter(status=Auction.Status.PUBLISHED).order_by("-id")[0]
    tomorrow = (NOW + timedelta(days=1)).replace(minute=0)
    outage = announce_outage(
        organization_id=hyperion.id,
        host_id=day.plant.host.id,
        starts_at=tomorrow,
        ends_at=tomorrow + HOUR,
        now=NOW,
        actor=SYSTEM,
    )
    tariff = announce_tariff(
        organization_id=hyperion.id,
        offering_id=day.plant.offering.id,
        kind="per_unit",
        valid_from=tomorrow,
        rate_micros_per_mtok=600_000,
        now=NOW,
        actor=SYSTEM,
    )
    # It takes a millionth of the host, and is there for those who look.
    derating = derate_host(
        organization_id=hyperion.id, host_id=day.plant.host.id, available_ppm=999_999, now=NOW, actor=SYSTEM
    )
    publish_index(now=NOW)
    index = PriceIndex.objects.order_by("-id")[0]
    credit = GrantTerms(kind="granted", amount_micros=1_000_000, currency="USD")
    give_grant(id=uuid7(NOW), organization_id=acme.id, terms=credit, now=NOW)
    review = schedule_cap(
        operator_id=operator.id,
        grade=day.grade,
        cap_micros_per_mtok=6_000_000,
        effective_from=NOW + timedelta(days=40),
        reason="Dearer hardware.",
        now=NOW,
        actor=SYSTEM,
    )
    endpoint = create_endpoint(
        organization_id=acme.id,
        url="https://hooks.acme.example/",
        description="the books",
        event_types=None,
        now=NOW,
        actor=SYSTEM,
    )
    webhook = send_test(organization_id=acme.id, endpoint_id=endpoint.id, now=NOW)
    return House(
        database,
        operator,
        acme,
        hyperion,
        mallory,
        day,
        auction,
        index,
        batch,
        review,
        generation_id,
        event.id,
        outage,
        tariff,
        webhook,
        derating,
        _documents(acme, day),
    )


def _documents(acme: Party, day: Day) -> dict[str, UUID]:
    """A credit note of acme's, what the operator made of taxes and discounts, and hyperion's bond and destination."""
    note = issue_credit_note(
        invoice_id=day.invoice.id,
        amounts_micros=None,
        reason="Courtesy",
        operation_id=uuid7(NOW),
        now=NOW,
        actor=SYSTEM,
    )
    rule = add_tax_rule(
        jurisdiction="ZY",
        code="vat",
        title="VAT",
        kind="percent",
        rate_ppm=1,
        valid_from=NOW,
        now=NOW,
        actor=SYSTEM,
    )
    discount = give_discount(
        organization_id=acme.id, title="Welcome", rate_ppm=1, valid_from=NOW, now=NOW, actor=SYSTEM
    )
    change = request_destination(
        organization_id=day.plant.host.provider.organization_id,
        destination="DE-other",
        operation_id=uuid7(NOW),
        now=NOW,
        actor=SYSTEM,
    )
    deposit_bond(
        organization_id=change.organization_id,
        amount_micros=1_000_000,
        source="processor",
        operation_id=uuid7(NOW),
        now=NOW,
        actor=SYSTEM,
    )
    stop = stop_payouts(
        organization_id=change.organization_id,
        reason="looked at",
        operation_id=uuid7(NOW),
        now=NOW,
        actor=SYSTEM,
    )
    release_payouts(stop_id=stop.id, now=NOW, actor=SYSTEM)
    return {
        "change_id": change.id,
        "note_id": note.id,
        "rule_id": rule.id,
        "discount_id": discount.id,
        "stop_id": stop.id,
    }


@pytest.fixture(scope="module")
def house(
    services: Services,
    session_folder: Path,
    django_db_setup: None,
    django_db_blocker: DjangoDbBlocker,
    worker_name: str,
) -> Iterator[House]:
    """Not together with `db` in one module. The wall clock stands at NOW.

    Built once per session, by whichever worker comes first; every module has a copy of its own.
    """
    kept = session_folder / "house.pickle"
    with time_machine.travel(NOW, tick=False):
        with (session_folder / "house.lock").open("w") as lock:
            flock(lock, LOCK_EX)
            if not kept.exists():
                with own_database(services, django_db_blocker, worker_name, "first_house") as first:
                    made = make_house(first)
                    connections.close_all()
                    services.clone(TEMPLATE, template=first.name)
                kept.write_bytes(pickle.dumps(made))
        with own_database(services, django_db_blocker, worker_name, "house", template=TEMPLATE) as database:
            yield replace(pickle.loads(kept.read_bytes()), database=database)  # noqa: S301 - our own file
