"""The OpenAPI document says what the API does: complete, without warnings, and attacked along its own schema."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from django.core.handlers.wsgi import WSGIHandler
from drf_spectacular.drainage import GENERATOR_STATS
from drf_spectacular.generators import SchemaGenerator
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from tests.house import House, routes

EXAMPLES = 8
CHECKS: list[Any] = [not_a_server_error, content_type_conformance, response_schema_conformance]
SELLING = (
    "/api/v1/payout-account",
    "/api/v1/hosts",
    "/api/v1/offerings",
    "/api/v1/statements",
    "/api/v1/earnings",
    "/api/v1/payouts",
    "/api/v1/bond",
    "/api/v1/payout-status",
    "/api/v1/payout-destination",
)
# Signed batches, which no schema can make up; tests of metering attack them.
NDJSON = ("POST /api/v1/usage",)
METHODS = ("get", "post", "put", "patch", "delete")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    GENERATOR_STATS.reset()
    with GENERATOR_STATS.silence():
        made: dict[str, Any] = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    return made


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method in METHODS:
                yield path, method, operation


def test_it_is_made_without_a_warning(document: dict[str, Any]) -> None:
    assert not GENERATOR_STATS
    assert document["openapi"].startswith("3.")


def test_every_address_is_in_it(document: dict[str, Any]) -> None:
    served = {
        "/" + re.sub(r"<\w+:(\w+)>", r"{\1}", route)
        for route in routes()
        if route.startswith("api/v1/") and route not in ("api/v1/schema", "api/v1/^.*$")
    }
    assert set(document["paths"]) == served


def test_every_operation_has_a_name_of_its_own_and_says_what_it_does(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names)) > 50
    assert all(re.fullmatch(r"[a-z][a-z_]+", name) for name in names)


def test_every_operation_has_schemas_of_what_goes_in_and_out(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        where = f"{method} {path}"
        responses = operation["responses"]
        assert any(code.startswith("2") for code in responses), where
        for code, response in responses.items():
            content = response.get("content", {})
            assert content or code == "204", f"{where} {code}"
            assert all("schema" in media for media in content.values()), where
        assert "application/problem+json" in responses["default"]["content"], where
        if "requestBody" in operation:
            assert all(media["schema"] for media in operation["requestBody"]["content"].values()), where


def test_every_operation_says_who_may(document: dict[str, Any]) -> None:
    public = {
        "/api/v1/grades", "/api/v1/grades/{grade_id}", "/api/v1/grades/{grade_id}/list-rates",
        "/api/v1/grades/{grade_id}/list-tariffs",
        "/api/v1/market/{slug}",
        "/api/v1/market/{slug}/history",
        "/api/v1/auctions/{auction_id}", "/api/v1/tokenizers", "/api/v1/providers",
        "/api/v1/auctions/{auction_id}/depth", "/api/v1/market/index", "/api/v1/market/index/latest",
        "/api/v1/market/index/{index_id}/recompute", "/api/v1/market/history", "/api/v1/market/stream",
        "/api/v1/market/leaderboard",
        "/api/v1/market-key", "/api/v1/evidence-verifier",
    }  # fmt: skip
    for path, method, operation in operations(document):
        has_key = {"apiKey": []} in operation.get("security", [])
        is_open = (path in public and method == "get") or path.startswith("/api/v1/agent/")
        is_open = is_open or (path, method) == ("/api/v1/usage", "post")
        assert has_key is not is_open, f"{method} {path}"


def test_integers_have_bounds_wherever_they_come_in(document: dict[str, Any]) -> None:
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("Request"):
            for field, shape in schema.get("properties", {}).items():
                if shape.get("type") == "integer":
                    assert {"minimum", "maximum"} <= set(shape), f"{name}.{field}"
                if shape.get("type") == "string" and not {"format", "enum"} & set(shape):
                    assert "maxLength" in shape, f"{name}.{field}"


@pytest.fixture(scope="module")
def attacked(house: House) -> Any:
    config = SchemathesisConfig.from_dict({})
    return schemathesis.openapi.from_wsgi("/api/v1/schema?format=json", WSGIHandler(), config=config)


def test_no_request_that_the_schema_admits_is_a_server_error(house: House, attacked: Any) -> None:
    # Not the parties' own keys: those the attack will find, and revoke.
    buying, selling = house.another_secret(house.acme), house.another_secret(house.hyperion)
    tried = 0
    wrong: list[str] = []
    for result in attacked.get_all_operations():
        operation = result.ok()
        if operation.label in NDJSON:
            continue

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def attack(case: Any) -> None:
            nonlocal tried
            # The world's own ids, so that it is not 404 all the way.
            for name in case.path_parameters:
                case.path_parameters[name] = str(house.ids.get(name, "tiny-chat"))
            secret = selling if case.path.startswith(SELLING) else buying
            case.call_and_validate(headers={"Authorization": f"Bearer {secret}"}, checks=CHECKS)
            tried += 1

        try:
            attack()
        except FailureGroup as failures:
            wrong += [f"{operation.label}: {failure}" for failure in failures.exceptions]
    assert wrong == []
    assert tried > 200
