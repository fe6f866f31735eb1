"""The fixed cast: acme buys, hyperion provides, mallory must see nothing. Made through the public services."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from rest_framework.test import APIClient

from marketplace.accounts.models import Membership, Organization, User
from marketplace.accounts.services import (
    SYSTEM,
    add_member,
    create_api_key,
    create_organization,
    create_user,
)
from marketplace.ids import uuid7
from pricing.models import Grade
from pricing.services import publish_grade
from pricing.units import Bucket, Ppm
from providers.models import Host, Offering
from providers.services import (
    create_host,
    enrol_host,
    ensure_provider,
    issue_enrolment_code,
    list_offering,
    open_capacity,
    record_bench,
    record_heartbeat,
)

PASSWORD = "correct-horse-battery"
WEIGHTS = {
    Bucket.UNCACHED_INPUT: Ppm(1_000_000),
    Bucket.CACHE_READ: Ppm(100_000),
    Bucket.CACHE_WRITE: Ppm(1_250_000),
    Bucket.OUTPUT: Ppm(4_000_000),
    Bucket.REASONING: Ppm(4_000_000),
}


@dataclass(frozen=True)
class Party:
    """An organization with an owner who can sign in and an API key with every scope its roles allow."""

    organization: Organization
    user: User
    api_key_id: UUID
    secret: str

    @property
    def id(self) -> UUID:
        return self.organization.id

    @property
    def api(self) -> APIClient:
        client = APIClient()
        client.credentials(HTTP_AUTHORIZATION=f"Bearer {self.secret}")
        return client


@dataclass(frozen=True)
class Plant:
    """A host of hyperion that is enrolled, benched, listed and alive."""

    host: Host
    offering: Offering
    private_key: Ed25519PrivateKey

    def __reduce__(self) -> tuple[Any, ...]:
        return _plant, (self.host, self.offering, self.private_key.private_bytes_raw())


def _plant(host: Host, offering: Offering, private_key: bytes) -> Plant:
    return Plant(host, offering, Ed25519PrivateKey.from_private_bytes(private_key))


def make_party(name: str, roles: list[str], now: datetime) -> Party:
    organization = create_organization(name=name, roles=roles, now=now)
    user = create_user(email=f"owner@{name.lower()}.example", password=PASSWORD, name=name, now=now)
    add_member(
        organization_id=organization.id, user_id=user.id, role=Membership.Role.OWNER, now=now, actor=SYSTEM
    )
    scopes = ["read", "manage"]
    scopes += ["inference", "trade"] if "buyer" in roles else []
    scopes += ["provide"] if "provider" in roles else []
    scopes += ["operate"] if "operator" in roles else []
    key, secret = create_api_key(
        organization_id=organization.id, label="all", scopes=scopes, now=now, actor=SYSTEM
    )
    return Party(organization, user, key.id, secret)


def make_grade(
    now: datetime, *, slug: str = "tiny-chat", model: str = "tiny-chat", max_request_s: int = 15
) -> Grade:
    return publish_grade(
        slug=slug,
        title="Tiny chat",
        model=model,
        precision_floor="fp16",
        context_tokens=2048,
        region="eu",
        service_class="standard",
        currency="USD",
        tokenizer_digest="bytes",
        weights_ppm=WEIGHTS,
        kappa_ppm=dict.fromkeys(WEIGHTS, Ppm(250_000)),
        max_request_s=max_request_s,
        max_output_tokens=2048,
        template_overhead_tokens=64,
        spot_minimum_take_ppm=500_000,
        reference_rate_micros_per_mtok=500_000,
        now=now,
    )


def make_plant(
    provider: Party,
    grade: Grade,
    now: datetime,
    *,
    name: str = "h1",
    base_url: str = "http://127.0.0.1:9",
    list_rate: int = 600_000,
    firm_rate: int = 500_000,
    spot_floor: int = 200_000,
) -> Plant:
    """`base_url`'s port answers nobody; tests that serve give a real agent's address."""
    ensure_provider(organization_id=provider.id, display_name=provider.organization.name, now=now)
    host = create_host(organization_id=provider.id, name=name, region="eu", site="", now=now, actor=SYSTEM)
    code = issue_enrolment_code(organization_id=provider.id, host_id=host.id, now=now, actor=SYSTEM)
    private_key = Ed25519PrivateKey.generate()
    host = enrol_host(
        code=code,
        public_key=private_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw),
        base_url=base_url,
        hardware={"cpu": "test", "accelerators": []},
        engine={"kind": "llama.cpp"},
        now=now,
    )
    # 200 input and 800 output tokens a second: (200 + 4 x 800) x 0.25 = 850 standard tokens a second.
    record_bench(
        host_id=host.id,
        figures={
            "duration_ms": 1000,
            "requests": 8,
            "concurrency": 4,
            "input_tokens": 200,
            "output_tokens": 800,
            "first_byte_p50_ms": 10,
            "first_byte_p95_ms": 20,
        },
        now=now,
    )
    offering = list_offering(
        host_id=host.id,
        grade_slug=grade.family.slug,
        spot_floor_micros_per_mtok=spot_floor,
        firm_rate_micros_per_mtok=firm_rate,
        list_rate_micros_per_mtok=list_rate,
        now=now,
        actor=SYSTEM,
    )
    record_heartbeat(
        host_id=host.id,
        boot_id="boot-1",
        ready=True,
        in_flight=0,
        registers={},
        energy_millijoules=None,
        now=now,
    )
    open_capacity(now=now)
    return Plant(host, offering, private_key)


@pytest.fixture
def operator(db: None, now: datetime) -> Party:
    return make_party("Operator", ["operator"], now)


@pytest.fixture
def acme(db: None, operator: Party, now: datetime) -> Party:
    """Buys."""
    return make_party("Acme", ["buyer"], now)


@pytest.fixture
def hyperion(db: None, operator: Party, now: datetime) -> Party:
    """Provides."""
    return make_party("Hyperion", ["provider"], now)


@pytest.fixture
def mallory(db: None, operator: Party, now: datetime) -> Party:
    """May buy and sell for herself, and must see nothing of the others."""
    return make_party("Mallory", ["buyer", "provider"], now)


@pytest.fixture
def grade(db: None, now: datetime) -> Grade:
    return make_grade(now)


@pytest.fixture
def plant(hyperion: Party, grade: Grade, now: datetime) -> Plant:
    return make_plant(hyperion, grade, now)


def fund(party: Party, amount_micros: int, now: datetime) -> None:
    """Money for a buyer, the way he brings it in himself."""
    from marketplace.billing.services.top_ups import top_up

    top_up(organization_id=party.id, amount_micros=amount_micros, operation_id=uuid7(), now=now, actor=SYSTEM)
