"""The cast of the demonstration market: made once, kept in demo.json (mode 0600), the same at every start."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction

from marketplace.accounts.models import Membership, Organization
from marketplace.accounts.services import SYSTEM, add_member, create_api_key, create_organization, create_user
from marketplace.billing.services.bonds import deposit_bond
from marketplace.billing.services.top_ups import top_up
from marketplace.ids import uuid7
from marketplace.local.environment import write_private
from marketplace.local.ports import LOOPBACK
from metering.services import set_recount_baseline
from pricing.selectors import grade_in_force
from pricing.services import publish_grade, publish_known_calibrations
from pricing.tokenizers import BYTES
from pricing.units import Bucket, Ppm
from providers.models import Host
from providers.services import create_host, ensure_provider, issue_enrolment_code, open_capacity

FILE_NAME = "demo.json"
MODEL = "tiny-chat"
TOP_UP_MICROS = 100_000_000
CAST = (
    ("operator", "Tokenyard Operator", ["operator"], "operator@tokenyard.example"),
    ("buyer", "Acme", ["buyer"], "buyer@acme.example"),
    ("provider", "Hyperion", ["provider"], "provider@hyperion.example"),
)
# Market-typical weights until three hosts are benched (DESIGN 4).
WEIGHTS = {
    Bucket.UNCACHED_INPUT: Ppm(1_000_000),
    Bucket.CACHE_READ: Ppm(100_000),
    Bucket.CACHE_WRITE: Ppm(1_250_000),
    Bucket.OUTPUT: Ppm(4_000_000),
    Bucket.REASONING: Ppm(4_000_000),
}
# o200k tokens of a million bytes that the tiny model answers to the demonstration's questions.
RECOUNT_BASELINE_PPM = 540_000
# Two differently priced hosts, so that the market has a curve: (spot floor, firm, list) in micros per Mtok.
HOSTS = (
    ("alpha", "eu-north", (180_000, 420_000, 500_000)),
    ("beta", "eu-north", (260_000, 380_000, 560_000)),
)


def prepare(*, directory: Path, ports: Mapping[str, int], now: datetime) -> dict[str, Any]:
    """Make what is missing; addresses in the agents' files follow the ports of this start."""
    kept = read(directory)
    if not kept:
        with transaction.atomic():
            kept = _make_cast(now)
            # Written before the commit: secrets that nobody kept would be lost for good.
            write_private(directory / FILE_NAME, json.dumps(kept, indent=1) + "\n")
    provider_id = UUID(kept["provider"]["organization_id"])
    for number, (name, _, prices) in enumerate(HOSTS, start=1):
        host = Host.objects.get(provider__organization_id=provider_id, name=name)
        code = ""
        if host.status == Host.Status.PENDING:
            code = issue_enrolment_code(organization_id=provider_id, host_id=host.id, now=now, actor=SYSTEM)
        write_private(
            directory / f"agent-{number}.toml",
            _agent_file(
                directory=directory,
                number=number,
                code=code,
                port=ports[f"agent-{number}"],
                engine_port=ports[f"engine-{number}"],
                prices=prices,
            ),
        )
    open_capacity(now=now)
    return {"directory": str(directory), "hosts": [name for name, *_ in HOSTS], "model": MODEL}


def read(directory: Path) -> dict[str, Any]:
    try:
        kept: dict[str, Any] = json.loads((directory / FILE_NAME).read_text())
    except FileNotFoundError:
        return {}
    # A database that was replaced under the file (another DATABASE_URL) starts over.
    known = Organization.objects.filter(pk=kept["buyer"]["organization_id"]).exists()
    return kept if known else {}


def banner(directory: Path) -> str:
    """What a newcomer pastes and signs in with."""
    kept = read(directory)
    signs = "\n".join(
        f"  {role:<9} {kept[role]['email']:<28} {kept[role]['password']}"
        for role in ("buyer", "provider", "operator")
    )
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 64})
    return f"""
Tokenyard is running.

  Portal    {settings.PORTAL_URL}
  Gateway   {settings.GATEWAY_URL}/v1   (OpenAI-compatible)
  REST API  {settings.PORTAL_URL}/api/v1/schema

Sign in as
{signs}

API key of the buyer
  {kept["buyer"]["api_key"]}

Try it
  curl -s {settings.GATEWAY_URL}/v1/chat/completions -H 'Authorization: Bearer {kept["buyer"]["api_key"]}' \\
    -H 'Content-Type: application/json' -d '{body}'
"""


def _make_cast(now: datetime) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for role, name, roles, email in CAST:
        organization = create_organization(name=name, roles=roles, now=now)
        password = secrets.token_urlsafe(12)
        user = create_user(email=email, password=password, name=name, now=now)
        add_member(
            organization_id=organization.id,
            user_id=user.id,
            role=Membership.Role.OWNER,
            now=now,
            actor=SYSTEM,
        )
        scopes = {
            "operator": ["read", "operate", "manage"],
            "buyer": ["read", "inference", "trade", "manage"],
            "provider": ["read", "provide", "manage"],
        }[role]
        _, secret = create_api_key(
            organization_id=organization.id, label="demo", scopes=scopes, now=now, actor=SYSTEM
        )
        kept[role] = {
            "organization_id": str(organization.id),
            "email": email,
            "password": password,
            "api_key": secret,
        }
    if grade_in_force(model=MODEL, at=now) is None:
        _publish_grade(now)
    provider_id = UUID(kept["provider"]["organization_id"])
    ensure_provider(organization_id=provider_id, display_name="Hyperion", now=now)
    for name, region, _ in HOSTS:
        create_host(
            organization_id=provider_id, name=name, region=region, site="this machine", now=now, actor=SYSTEM
        )
    top_up(
        organization_id=UUID(kept["buyer"]["organization_id"]),
        amount_micros=TOP_UP_MICROS,
        operation_id=uuid7(),
        now=now,
        actor=SYSTEM,
    )
    # So that its hosts may sell firm.
    deposit_bond(
        organization_id=provider_id,
        amount_micros=TOP_UP_MICROS,
        source="processor",
        operation_id=uuid7(),
        now=now,
        actor=SYSTEM,
    )
    return kept


def _publish_grade(now: datetime) -> None:
    # The demo model counts bytes.
    calibration = next(one for one in publish_known_calibrations(now=now) if one.tokenizer == BYTES)
    grade = publish_grade(
        slug=MODEL,
        title="Tiny chat (demonstration)",
        model=MODEL,
        precision_floor="fp32",
        context_tokens=2048,
        region="eu-north",
        service_class="standard",
        currency=settings.MARKET_CURRENCY,
        tokenizer_digest=f"sha256:{calibration.tokenizer_digest}",
        weights_ppm=WEIGHTS,
        calibration_id=calibration.pk,
        max_request_s=settings.MAX_REQUEST_S,
        max_output_tokens=1024,
        template_overhead_tokens=64,
        spot_minimum_take_ppm=settings.SPOT_MINIMUM_TAKE_PPM,
        reference_rate_micros_per_mtok=500_000,
        now=now,
    )
    set_recount_baseline(
        grade_id=grade.pk,
        baseline_ppm=RECOUNT_BASELINE_PPM,
        reason="The demonstration model writes letters by chance, unlike any corpus: measured over 1,200 answers.",
        now=now,
    )


def _agent_file(
    *, directory: Path, number: int, code: str, port: int, engine_port: int, prices: tuple[int, int, int]
) -> str:
    spot_floor, firm, listed = prices
    return f"""# Written at every start of the demonstration market.
market_url = "{settings.PORTAL_URL}"
base_url = "http://{LOOPBACK}:{port}"
engine_url = "http://{LOOPBACK}:{engine_port}"
state_dir = "{directory / f"agent-{number}"}"
enrolment_code = "{code}"
listen_host = "{LOOPBACK}"
listen_port = {port}
model_path = "{directory / "models" / f"tiny-{number}.gguf"}"
max_request_s = {settings.MAX_REQUEST_S}

[[offerings]]
grade = "{MODEL}"
spot_floor_micros_per_mtok = {spot_floor}
firm_rate_micros_per_mtok = {firm}
list_rate_micros_per_mtok = {listed}
"""
