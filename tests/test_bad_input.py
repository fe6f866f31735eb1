"""Every field of every body that buyers and providers send, with everything that must not be taken for a value.

Bodies and fields are read from the OpenAPI document, so a new field is attacked from the day it exists.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any
from uuid import uuid4

import pytest
from drf_spectacular.generators import SchemaGenerator
from rest_framework.test import APIClient

from marketplace.api.errors import PROBLEM_TYPE
from marketplace.gateway.errors import ApiError
from marketplace.gateway.parsing import _FIELDS as FIELDS
from marketplace.gateway.parsing import CHAT, COMPLETIONS, EMBEDDINGS, parse_request
from tests.house import House, row_counts

# A body that is accepted: each attack changes one thing in it.
GOOD: dict[str, dict[str, Any]] = {
    "patch /api/v1/organization": {
        "legal_name": "Acme Ltd",
        "address": "1 Road",
        "country": "DE",
        "region": "DE-BE",
        "tax_number": "DE123456789",
    },
    "post /api/v1/organizations": {"name": "Fresh", "roles": ["buyer"], "tax_ppm": 0},
    "post /api/v1/organizations/{organization_id}/verify-tax-number": {"tax_number": "DE123456789"},
    "post /api/v1/members": {
        "email": "m@acme.example",
        "name": "M",
        "role": "member",
        "initial_password": "a-long-passphrase-1",
    },
    "post /api/v1/api-keys": {
        "label": "l",
        "project": "p",
        "scopes": ["read"],
        "expires_at": "2030-01-01T00:00:00Z",
        "default_contract_id": "{contract_id}",
    },
    "post /api/v1/webhook-endpoints": {
        "url": "https://hooks.acme.example/more",
        "description": "more",
        "event_types": ["invoice.issued"],
    },
    "patch /api/v1/webhook-endpoints/{endpoint_id}": {
        "url": "https://hooks.acme.example/other",
        "description": "other",
        "event_types": ["invoice.issued"],
        "status": "disabled",
    },
    "post /api/v1/test-clock/advance": {"to": "2026-03-12T00:00:00Z"},
    "post /api/v1/top-ups": {"amount_micros": 1_000_000},
    "post /api/v1/bond/deposits": {"amount_micros": 1_000_000, "source": "processor"},
    "post /api/v1/bond/withdrawals": {"amount_micros": 10_000},
    "post /api/v1/payout-destination": {"destination": "DE-89-3704"},
    "patch /api/v1/card": {"collect_automatically": False},
    "post /api/v1/refunds": {
        "payment_id": "01a1fa2c-14f7-7136-8b1d-740cbe8302f3",
        "amount_micros": 1_000_000,
    },
    "post /api/v1/processor-operations/{operation_id}/give-up": {"reason": "looked, and it is not there"},
    "post /api/v1/operator-postings": {
        "kind": "capital",
        "account_kind": "operator",
        "amount_micros": 1_000_000,
        "reference": "tu_1",
        "reason": "to pay out what is not available yet",
    },
    "post /api/v1/payout-stops": {"organization_id": "{organization_id}", "reason": "looked at"},
    "put /api/v1/spend-caps": {
        "scope": "project",
        "api_key_id": None,
        "project": "lab",
        "period": "day",
        "limit_micros": 1_000_000,
    },
    "put /api/v1/credit-line": {"on_demand_payment": "prepaid"},
    "put /api/v1/credit-lines": {"organization_id": "{organization_id}", "limit_micros": 1_000_000},
    "put /api/v1/auto-top-up": {
        "enabled": False,
        "threshold_micros": 1_000_000,
        "amount_micros": 1_000_000,
        "monthly_limit_micros": 1_000_000,
    },
    "post /api/v1/quotes": {
        "grade": "tiny-chat",
        "firm_lots": 2,
        "volume_lots": 200,
        "months": 1,
        "starts_at": "2026-03-10T18:00:00Z",
        "take_share_ppm": 0,
        "overage_policy": "list",
        "max_rate_micros_per_mtok": 900_000,
        "payment": "prepaid",
        "rollover_share_ppm": 100_000,
        "rollover_cap_lots": 10,
    },
    "post /api/v1/contract-simulations": {
        "grade": "tiny-chat",
        "firm_lots": 2,
        "volume_lots": 200,
        "starts_at": "2026-03-10T12:00:00Z",
        "months": 1,
        "rate_micros_per_mtok": 400_000,
        "payment": "prepaid",
        "take_share_ppm": 0,
        "rollover_share_ppm": 100_000,
        "rollover_cap_lots": 10,
        "overage_policy": "spot",
        "max_rate_micros_per_mtok": 500_000,
    },
    "put /api/v1/contracts/{contract_id}/renewal": {"renews": True, "max_rate_micros_per_mtok": 500_000},
    "post /api/v1/contracts/{contract_id}/terminate": {
        "ends_at": "2026-04-09T15:10:00Z",
        "reason": "no longer needed",
    },
    "post /api/v1/contracts/{contract_id}/amendment-quotes": {
        "starts_at": "2026-04-10T15:00:00Z",
        "firm_lots": 1,
        "volume_lots": 100,
        "months": 1,
    },
    "post /api/v1/contracts/{contract_id}/amend": {"quote_id": "{quote_id}"},
    "post /api/v1/contracts/{contract_id}/releases": {
        "period_start": "2026-03-10T15:10:00Z",
        "periods": 2,
        "lots": 1,
        "floor_micros_per_mtok": 100_000,
    },
    "post /api/v1/bids": {
        "grade": "tiny-chat",
        "client_id": "mine",
        "steps": [{"rate_micros_per_mtok": 450_000, "lots": 5}],
        "period_start": "2026-03-10T15:10:00Z",
        "min_fill_lots": 0,
        "all_or_none": False,
        "max_total_micros_per_day": 1_000_000,
        "valid_until": None,
        "substitutes": [{"grade": "tiny-other", "adjustment_micros_per_mtok": -1}],
    },
    "patch /api/v1/bids/{bid_id}": {
        "revision": 1,
        "steps": [{"rate_micros_per_mtok": 450_000, "lots": 5}],
        "min_fill_lots": 0,
        "all_or_none": False,
        "substitutes": [{"grade": "tiny-other", "adjustment_micros_per_mtok": -1}],
        "max_total_micros_per_day": 1_000_000,
        "valid_until": "2026-03-11T15:10:00Z",
    },
    "post /api/v1/bids/cover": {
        "grade": "tiny-chat",
        "client_id": "covered",
        "rate_micros_per_mtok": 450_000,
        "tokens_per_second": 10,
        "max_total_micros_per_day": 1_000_000,
        "valid_until": "2026-03-11T15:10:00Z",
    },
    "post /api/v1/bids/cover/worst-case": {
        "grade": "tiny-chat",
        "rate_micros_per_mtok": 450_000,
        "tokens_per_second": 10,
    },
    "post /api/v1/auctions/{auction_id}/what-if": {
        "bid_id": "{bid_id}",
        "steps": [{"rate_micros_per_mtok": 450_000, "lots": 5}],
        "min_fill_lots": 0,
        "all_or_none": False,
        "substitutes": [{"grade": "tiny-other", "adjustment_micros_per_mtok": -1}],
    },
    "post /api/v1/hosts": {"name": "gamma", "region": "eu", "site": "s"},
    "patch /api/v1/hosts/{host_id}": {"status": "paused"},
    "post /api/v1/hosts/{host_id}/enrolment-codes": {},
    "post /api/v1/hosts/{host_id}/outages": {
        "starts_at": "2026-03-11T10:00:00Z",
        "ends_at": "2026-03-11T12:00:00Z",
    },
    "post /api/v1/hosts/{host_id}/deratings": {"available_ppm": 500_000},
    "post /api/v1/offerings": {
        "host_id": "{host_id}",
        "grade": "tiny-chat",
        "spot_floor_micros_per_mtok": 1,
        "firm_rate_micros_per_mtok": 1,
        "list_rate_micros_per_mtok": 1,
    },
    "patch /api/v1/offerings/{offering_id}": {"status": "paused"},
    "post /api/v1/offerings/{offering_id}/tariffs": {
        "kind": "time_of_use",
        "valid_from": "2026-03-12T10:00:00Z",
        "rate_micros_per_mtok": 1,
        "windows": [{"start_s": 79_200, "end_s": 21_600, "rate_micros_per_mtok": 1}],
    },
    "post /api/v1/grades": {
        "slug": "other",
        "title": "Other",
        "model": "other",
        "precision_floor": "fp16",
        "context_tokens": 4096,
        "region": "eu",
        "service_class": "standard",
        "currency": "USD",
        "tokenizer_digest": "bytes",
        "weights_ppm": {"uncached_input": 1_000_000, "output": 4_000_000},
        "kappa_ppm": {"uncached_input": 1_000_000},
        "calibration_id": "{grade_id}",
        "max_request_s": 15,
        "max_output_tokens": 2048,
        "template_overhead_tokens": 64,
        "spot_minimum_take_ppm": 0,
        "reference_rate_micros_per_mtok": 1,
        "service_levels": [
            {
                "metric": "first_token",
                "percentile": 95,
                "limit_us": 500_000,
                "credit_ppm": 100_000,
                "minimum_requests": 20,
                "max_input_tokens": 1024,
            }
        ],
    },
    # More than any one kind asks for: a field is looked at before what the kind needs.
    "post /api/v1/usage/corrections": {
        "kind": "amend",
        "reason": "counted twice",
        "source_id": "{event_id}",
        "event_id": "{event_id}",
        "buckets": {"output": 1},
        "contract_id": "{contract_id}",
        "offering_id": "{offering_id}",
        "rate_id": "{contract_id}",
        "api_key_id": "{api_key_id}",
        "request_id": "{generation_id}",
        "period_start": "2026-03-10T12:00:00Z",
        "occurred_at": "2026-03-10T12:00:01Z",
    },
    "post /api/v1/discrepancies/{discrepancy_id}/accept": {"reason": "we counted wrongly"},
    "post /api/v1/discrepancies/{discrepancy_id}/resolve": {
        "ruling": "numbers",
        "reason": "half of it",
        "numerators": [{"id": "01a1fa2c-14f7-7136-8b1d-740cbe8302f3", "numerator": "1"}],
    },
    "post /api/v1/controls/{slug}/halt": {"reason": "a fault"},
    "post /api/v1/controls/{slug}/resume": {"reason": "mended"},
    "post /api/v1/controls/{slug}/administered-rate": {
        "rate_micros_per_mtok": 300_000,
        "reason": "the median",
    },
    "post /api/v1/controls/{slug}/cap-reviews": {
        "cap_micros_per_mtok": 6_000_000,
        "effective_from": "2026-06-01T00:00:00Z",
        "reason": "dearer hardware",
    },
    "post /api/v1/cap-reviews/{review_id}/decline": {"reason": "not yet"},
    "post /api/v1/grants": {
        "organization_id": "{organization_id}",
        "kind": "purchased",
        "amount_micros": 1_000,
        "cost_basis_ppm": 0,
        "priority": 5,
        "grade_id": "{grade_id}",
        "expires_at": "2030-01-01T00:00:00Z",
    },
    "post /api/v1/grants/{grant_id}/refund": {
        "amount_micros": 1_000,
        "payment_id": "01a1fa2c-14f7-7136-8b1d-740cbe8302f3",
    },
    "post /api/v1/invoices/{invoice_id}/payments": {"source": "balance"},
    "post /api/v1/invoices/{invoice_id}/reissue": {"reason": "wrong name"},
    "post /api/v1/invoices/{invoice_id}/credit-notes": {
        "reason": "courtesy",
        "lines": [{"line_id": "01a1fa2c-14f7-7136-8b1d-740cbe8302f3", "net_micros": 1}],
    },
    "post /api/v1/tax-rules": {
        "jurisdiction": "ZZ",
        "code": "vat",
        "title": "VAT",
        "kind": "percent",
        "rate_ppm": 190_000,
        "levy_micros_per_mtok": 0,
        "home_regions": ["eu"],
        "buyers": "all",
        "reverse_charge": False,
        "valid_from": "2026-05-01T00:00:00Z",
        "valid_until": "2027-05-01T00:00:00Z",
    },
    "post /api/v1/tax-rules/{rule_id}/end": {"valid_until": "2026-05-01T00:00:00Z"},
    "post /api/v1/discounts": {
        "organization_id": "{organization_id}",
        "title": "Welcome",
        "rate_ppm": 100_000,
        "amount_micros": 1,
        "line_kind": "usage",
        "max_invoices": 1,
        "valid_from": "2026-05-01T00:00:00Z",
        "valid_until": "2027-05-01T00:00:00Z",
    },
    "post /api/v1/recount-baselines": {
        "grade_id": "{grade_id}",
        "baseline_ppm": 540_000,
        "reason": "measured",
    },
}
# No body is asked for, or a signature before anything is read (tests of providers and metering).
# Other bodies of an operation, with fields that exclude those of the first.
OTHERWISE: dict[str, list[dict[str, Any]]] = {
    "post /api/v1/offerings/{offering_id}/tariffs": [
        {
            "kind": "graduated",
            "valid_from": "2026-03-12T10:00:00Z",
            "tiers": [
                {"up_to_lots": 1, "rate_micros_per_mtok": 2},
                {"up_to_lots": None, "rate_micros_per_mtok": 1},
            ],
        },
        {
            "kind": "package",
            "valid_from": "2026-03-12T10:00:00Z",
            "package_lots": 1,
            "package_micros": 1,
        },
    ],
}
ELSEWHERE = {
    "post /api/v1/webhook-endpoints/{endpoint_id}/rotate-secret",
    "post /api/v1/webhook-endpoints/{endpoint_id}/test",
    "post /api/v1/webhook-events/{webhook_event_id}/replay",
    "post /api/v1/quotes/{quote_id}/accept",
    "post /api/v1/test-clock",
    "post /api/v1/card",
    "post /api/v1/payments/{payment_id}/cancel",
    "post /api/v1/payout-stops/{stop_id}/release",
    "post /api/v1/payout-account/link",
    "post /api/v1/usage",
    "post /api/v1/usage/batches/{batch_id}/revive",
    "post /api/v1/grants/{grant_id}/revoke",
    "post /api/v1/discounts/{discount_id}/end",
    "post /api/v1/payout-destination/changes/{change_id}/cancel",
    "put /api/v1/self-billing-consent",
}
OPERATORS = {
    "put /api/v1/credit-lines",
    "post /api/v1/grants",
    "post /api/v1/grants/{grant_id}/refund",
    "post /api/v1/grades",
    "post /api/v1/organizations",
    "post /api/v1/organizations/{organization_id}/verify-tax-number",
    "post /api/v1/usage/corrections",
    "post /api/v1/discrepancies/{discrepancy_id}/resolve",
    "post /api/v1/recount-baselines",
    "post /api/v1/controls/{slug}/halt",
    "post /api/v1/controls/{slug}/resume",
    "post /api/v1/controls/{slug}/administered-rate",
    "post /api/v1/controls/{slug}/cap-reviews",
    "post /api/v1/cap-reviews/{review_id}/decline",
    "post /api/v1/invoices/{invoice_id}/reissue",
    "post /api/v1/invoices/{invoice_id}/credit-notes",
    "post /api/v1/tax-rules",
    "post /api/v1/tax-rules/{rule_id}/end",
    "post /api/v1/processor-operations/{operation_id}/give-up",
    "post /api/v1/operator-postings",
    "post /api/v1/payout-stops",
    "post /api/v1/payout-stops/{stop_id}/release",
    "post /api/v1/discounts",
}
SELLERS = (
    "/api/v1/hosts",
    "/api/v1/offerings",
    "/api/v1/discrepancies",
    "/api/v1/bond",
    "/api/v1/payout-destination",
)
HUGE = "x" * 1_000_000


class Raw(str):
    """JSON text that json.dumps would not write."""

    __slots__ = ()


# A bid without other grades is a good one, and so is a grade without service levels.
MAY_BE_EMPTY = {"service_levels", "substitutes"}


def bad_values(shape: dict[str, Any]) -> Iterator[Any]:
    """What the shape (of OpenAPI) does not admit."""
    kind = shape.get("type")
    if not shape.get("nullable"):
        yield None
    if kind == "integer":
        yield from (True, False, "1e3", "5", "", [], {}, [1], 1.5, 2**63, -(2**63) - 1, 10**400)
        yield from (Raw("1e400"), Raw("-1e400"), Raw("1e3"), Raw("1.0"), HUGE)
        yield from (shape["minimum"] - 1, shape["maximum"] + 1)
        if shape["minimum"] >= 0:
            yield -1
        if shape["minimum"] > 0:
            yield 0
    elif kind == "boolean":
        yield from (0, 1, "true", "false", "yes", "", [], {}, Raw("1e400"), HUGE)
    elif kind == "array":
        yield from (
            True,
            0,
            -1,
            2**63,
            "x",
            "",
            {},
            [],
            [None],
            [[]],
            [{}],
            ["x" * 1_000],
            Raw("1e400"),
            HUGE,
        )
    elif kind == "object":
        yield from (True, 0, "x", "", [], [[]], Raw("1e400"), HUGE, {"surprise": 1})
    else:
        yield from (True, False, 0, -1, 2**63, 1.5, [], {}, ["x"], Raw("1e400"), HUGE)
        yield from ("a\x00b", Raw('"\\ud800"'), Raw('"x\\udc00y"'))
        if shape.get("format") or shape.get("enum"):
            yield from ("1e3", "", " ", "null", "2026-03-10", "2026-13-40T00:00:00Z", "2026-03-10T12:00:00")


# The last: thousands of digits, which Python's reader refuses to read.
NOT_JSON = ("NaN", "Infinity", "-Infinity", "0x10", "01", "'a'", "{", '"\xff', "1,", "9" * 5_000)
NOT_AN_OBJECT = ("[]", "null", "true", "5", '"x"', "[{}]", "1e400")


@pytest.fixture(scope="module")
def bodies() -> dict[str, dict[str, Any]]:
    """Operation to the schema of its body, with references followed."""
    document = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    parts = document["components"]["schemas"]

    def follow(shape: Any) -> Any:
        if isinstance(shape, list):
            return [follow(inner) for inner in shape]
        if not isinstance(shape, dict):
            return shape
        if "$ref" in shape:
            return follow(parts[shape["$ref"].rpartition("/")[2]])
        merged = {name: follow(inner) for name, inner in shape.items()}
        for whole in ("allOf", "oneOf", "anyOf"):
            for part in merged.pop(whole, []):
                merged = part | merged
        return merged

    return {
        f"{method} {path}": follow(
            operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
        )
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method in ("post", "patch", "put") and "/agent/" not in path
    }


def attacks(
    shape: dict[str, Any], good: Any, path: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(where, bad value) for every field, in depth."""
    for name, inner in shape.get("properties", {}).items():
        if name not in good:
            continue
        for value in bad_values(inner):
            if value != [] or name not in MAY_BE_EMPTY:
                yield (*path, name), value
        if inner.get("type") == "object":
            yield from attacks(inner, good[name], (*path, name))
        items = inner.get("items", {})
        if inner.get("type") == "array" and items.get("type") == "object":
            yield from attacks(items, good[name][0], (*path, name, 0))
            yield (*path, name, 0, "surprise"), 1
        elif inner.get("type") == "array":
            for value in bad_values(items):
                yield (*path, name, 0), value
    yield (*path, "surprise"), 1


def encode(good: dict[str, Any], where: tuple[Any, ...], value: Any) -> bytes:
    body = deepcopy(good)
    place: Any = body
    for step in where[:-1]:
        place = place[step]
    place[where[-1]] = "@raw@" if isinstance(value, Raw) else value
    text = json.dumps(body)
    return (text.replace('"@raw@"', str(value)) if isinstance(value, Raw) else text).encode()


def send(
    client: APIClient, operation: str, raw: bytes, house: House, content_type: str = "application/json"
) -> Any:
    method, path = operation.split(" ")
    key = str(uuid4())
    return client.generic(
        method.upper(),
        path.format(**house.ids, slug="tiny-chat"),
        raw,  # type: ignore[arg-type]  # Bytes go as they are.
        content_type=content_type,
        HTTP_IDEMPOTENCY_KEY=key,
    )


def client_of(house: House, operation: str) -> APIClient:
    if operation in OPERATORS:
        return house.operator.api
    return house.hyperion.api if operation.split(" ")[1].startswith(SELLERS) else house.acme.api


def good_of(house: House, operation: str) -> dict[str, Any]:
    named = {name: str(of) for name, of in house.ids.items()}
    return {
        name: value.format(**named) if isinstance(value, str) and "{" in value else value
        for name, value in GOOD[operation].items()
    }


def test_every_body_is_attacked_here_in_every_field(bodies: dict[str, dict[str, Any]]) -> None:
    assert set(bodies) == set(GOOD) | ELSEWHERE
    for operation, good in GOOD.items():
        named = set(good).union(*OTHERWISE.get(operation, []))
        assert set(bodies[operation].get("properties", {})) == named, operation


@pytest.mark.parametrize(
    ("operation", "other"),
    [
        *((operation, None) for operation in GOOD),
        *((operation, other) for operation, others in OTHERWISE.items() for other in others),
    ],
)
def test_bad_fields_are_named_and_change_nothing(
    house: House, bodies: dict[str, dict[str, Any]], operation: str, other: dict[str, Any] | None
) -> None:
    client, good, before = client_of(house, operation), other or good_of(house, operation), row_counts()
    wrong: list[str] = []
    for where, value in attacks(bodies[operation], good):
        raw = encode(good, where, value)
        answer = send(client, operation, raw, house)
        told = f"{where} = {str(value)[:40]!r} ({type(value).__name__}): {answer.status_code}"
        if answer["Content-Type"] != PROBLEM_TYPE or answer.status_code not in (400, 422):
            wrong.append(f"{told} {answer.content[:200]!r}")
            continue
        problem = answer.json()
        if not names(problem["field"], where):
            wrong.append(f"{told} names {problem['field']!r}: {problem['detail']}")
        assert len(answer.content) < 5_000, "an answer repeats what was sent"
    assert wrong == []
    assert row_counts() == before


def names(field: str, where: tuple[Any, ...]) -> bool:
    """The field itself, the one around it, or one within it."""
    wanted = ".".join(str(step) for step in where)
    return bool(field) and (wanted.startswith(field) or field.startswith(wanted))


@pytest.mark.parametrize("operation", GOOD)
def test_what_is_no_json_object_changes_nothing(house: House, operation: str) -> None:
    client, good, before = client_of(house, operation), good_of(house, operation), row_counts()
    fields = [*good, "surprise"]
    whole = [text.encode("latin-1") for text in (*NOT_JSON, *NOT_AN_OBJECT)]
    inside = [encode(good, (name,), Raw(text)) for name in fields[:3] for text in NOT_JSON]
    twice = json.dumps({**good, "again": 1})[:-1].encode() + b', "again": 2}'
    deep = b'{"surprise": ' + b"[" * 5_000 + b"]" * 5_000 + b"}"
    nul = b'{"sur\\u0000prise": 1}'
    for raw in (*whole, *inside, twice, deep, nul, json.dumps(good).encode("utf-16")):
        answer = send(client, operation, raw, house)
        assert answer.status_code in (400, 422), (raw[:80], answer.status_code, answer.content[:200])
        assert answer["Content-Type"] == PROBLEM_TYPE
    if good and not operation.startswith("patch /api/v1/organization"):
        assert send(client, operation, b"{}", house).status_code == 422
    assert row_counts() == before


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "multipart/form-data; boundary=x", ""])
def test_other_media_types_are_refused(house: House, kind: str) -> None:
    before = row_counts()
    raw = b'{"amount_micros": 1}'
    answer = send(house.acme.api, "post /api/v1/top-ups", raw, house, content_type=kind)
    assert (answer.status_code, answer["Content-Type"]) == (415, PROBLEM_TYPE)
    assert row_counts() == before


def test_bodies_that_are_too_long_are_refused(house: House) -> None:
    before = row_counts()
    raw = b'{"amount_micros": 1, "x": "' + b"x" * (17 * 1024 * 1024) + b'"}'
    answer = send(house.acme.api, "post /api/v1/top-ups", raw, house)
    assert (answer.status_code, answer["Content-Type"]) == (413, PROBLEM_TYPE)
    assert row_counts() == before


@pytest.mark.parametrize(
    "query",
    [
        "page_size=0", "page_size=-1", "page_size=201", "page_size=1e1", "page_size=" + "9" * 5_000, "cursor=x",
        "cursor=%00", "cursor=" + "g" * 32, "page_size=٣",
    ],
)  # fmt: skip
@pytest.mark.parametrize("route", ["contracts", "charges", "ledger/transfers", "top-ups", "bids", "grades"])
def test_bad_pages_name_the_parameter(house: House, route: str, query: str) -> None:
    answer = house.acme.api.get(f"/api/v1/{route}?{query}")
    assert (answer.status_code, answer["Content-Type"]) == (422, PROBLEM_TYPE)
    assert answer.json()["field"] == query.partition("=")[0]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("contract_id=1", "contract_id"),
        ("contract_id=%00", "contract_id"),
        ("api_key_id=x", "api_key_id"),
        ("since=yesterday", "since"),
        ("since=2026-03-10", "since"),
        ("since=0001-01-01T00:00:00%2B23:00", "since"),
        ("until=9999-12-31T23:59:59-23:00", "until"),
        ("since=2026-03-10T12:00:00Z&until=2026-03-10T12:00:00Z", "since"),
        ("slice=year", "slice"),
        ("surprise=1", "surprise"),
    ],
)
def test_bad_questions_about_usage_name_the_parameter(house: House, query: str, field: str) -> None:
    answer = house.acme.api.get(f"/api/v1/usage?{query}")
    assert (answer.status_code, answer["Content-Type"]) == (422, PROBLEM_TYPE), answer.content
    assert answer.json()["field"] == field


# The gateway reads with a parser of its own ------------------------------------------------------------------------

ASKED: dict[str, dict[str, Any]] = {
    CHAT: {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    COMPLETIONS: {"model": "m", "prompt": "hi"},
    EMBEDDINGS: {"model": "m", "input": "hi"},
}
BAD_LIMITS: tuple[Any, ...] = (
    -1,
    0,
    2**63,
    10**400,
    "5",
    "",
    True,
    False,
    1.0,
    1.5,
    [],
    {},
    Raw("1e3"),
    Raw("1e400"),
)


def refusal(path: str, raw: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_request(path, raw)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize("path", ASKED)
def test_the_gateway_takes_the_plain_request(path: str) -> None:
    assert parse_request(path, json.dumps(ASKED[path]).encode()).model == "m"


@pytest.mark.parametrize("limit", BAD_LIMITS, ids=lambda value: str(value)[:12])
@pytest.mark.parametrize(
    ("path", "name"), [(CHAT, "max_tokens"), (CHAT, "max_completion_tokens"), (COMPLETIONS, "max_tokens")]
)
def test_the_gateway_names_a_bad_output_limit(path: str, name: str, limit: Any) -> None:
    assert refusal(path, encode(ASKED[path], (name,), limit)).param == name


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("text", [*NOT_JSON, *NOT_AN_OBJECT])
def test_the_gateway_reads_nothing_but_json_objects(path: str, text: str) -> None:
    assert refusal(path, text.encode("latin-1")).code == "invalid_json"
    if text in NOT_JSON:
        assert refusal(path, encode(ASKED[path], ("user",), Raw(text))).code == "invalid_json"


@pytest.mark.parametrize("path", ASKED)
def test_the_gateway_refuses_unknown_fields_nul_and_half_surrogates(path: str) -> None:
    assert refusal(path, encode(ASKED[path], ("surprise",), 1)).param == "surprise"
    assert refusal(path, encode(ASKED[path], ("user",), "a\x00b")).param == "user"
    assert refusal(path, encode(ASKED[path], ("user",), Raw('"\\ud800"'))).param == "user"
    assert refusal(path, encode(ASKED[path], ("user",), HUGE)).param == "user"
    assert refusal(path, encode(ASKED[path], ("model",), HUGE)).param == "model"
    # The name itself is what is at fault.
    refusal(path, json.dumps({**ASKED[path], "sur\x00prise": 1}).encode())
    refusal(path, json.dumps({**ASKED[path], "\ud800": 1}).encode())


@pytest.mark.parametrize("value", [0, 2, -1, "1", True, 1.0, [1], 2**63])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_the_gateway_makes_one_answer_to_one_request(path: str, value: Any) -> None:
    assert refusal(path, encode(ASKED[path], ("n",), value)).param == "n"


OF_OTHER_KINDS: tuple[Any, ...] = (
    Raw("1e400"), 2**63, -(2**63) - 1, [[]], {"x": []}, [5], "\x00", True, 7, "zz",
)  # fmt: skip


@pytest.mark.parametrize("path", ASKED)
def test_no_field_of_the_gateway_passes_just_anything_on(path: str) -> None:
    """Whatever its type is, most of these are not of it."""
    for name in FIELDS[path]:
        refused = [error for value in OF_OTHER_KINDS if (error := refused_or_none(path, name, value))]
        assert len(refused) >= 4, name
        assert {error.status for error in refused} == {400}
        assert all(error.param is None or error.param.startswith(name) for error in refused), name


def refused_or_none(path: str, name: str, value: Any) -> ApiError | None:
    try:
        parse_request(path, encode(ASKED[path], (name,), value))
    except ApiError as error:
        return error
    return None
