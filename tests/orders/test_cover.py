"""'Keep me covered up to X per Mtok at Y tokens a second.'"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest
import time_machine

from marketplace.errors import InvalidInput
from marketplace.orders.models import Bid
from marketplace.orders.services.covering import cover_terms
from tests.cast import Party, Plant, fund
from tests.orders.world import available, held

ASKED: dict[str, Any] = {
    "grade": "tiny-chat",
    "client_id": "cover-1",
    "rate_micros_per_mtok": 450_000,
    "tokens_per_second": 10,
}


def cover(party: Party, now: datetime, **changes: Any) -> Any:
    with time_machine.travel(now, tick=False):
        return party.api.post(
            "/api/v1/bids/cover",
            {**ASKED, **changes},
            format="json",
            headers={"Idempotency-Key": str(uuid4())},
        )


@pytest.mark.parametrize(("per_second", "lots"), [(1, 1), (3, 1), (4, 2), (10, 3), (11, 4)])
def test_the_lots_of_a_period_carry_the_tokens_of_its_seconds(per_second: int, lots: int) -> None:
    """A period has 300 seconds, a lot 1,000 tokens; a started lot is a whole one."""
    assert cover_terms(**{**ASKED, "tokens_per_second": per_second}).steps == ((450_000, lots),)


def test_it_is_a_standing_bid_of_one_step_with_hold_and_receipt(
    acme: Party, plant: Plant, now: datetime
) -> None:
    fund(acme, 10_000, now)
    answer = cover(acme, now, valid_until="2026-03-11T12:00:00Z", max_total_micros_per_day=9_000)
    assert answer.status_code == 201, answer.content
    bid = answer.json()
    assert (bid["standing"], bid["steps"]) == (True, [{"rate_micros_per_mtok": 450_000, "lots": 3}])
    assert (bid["held_micros"], held(acme)) == (1_350, 1_350)
    assert bid["valid_until"] == "2026-03-11T12:00:00Z"
    assert bid["receipt"]["document"]["event"] == "placed"
    assert cover(acme, now, valid_until="2026-03-11T12:00:00Z", max_total_micros_per_day=9_000).json() == bid
    assert cover(acme, now).status_code == 409


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rate_micros_per_mtok": 5_000_001}, "rate_micros_per_mtok"),
        ({"tokens_per_second": 0}, "tokens_per_second"),
        ({"tokens_per_second": 10**12}, "tokens_per_second"),
        ({"tokens_per_second": 0.5}, "tokens_per_second"),
        ({"valid_until": "2026-03-10T12:00:00Z"}, "valid_until"),
        ({"max_total_micros_per_day": 0}, "max_total_micros_per_day"),
    ],
)
def test_what_cannot_be_covered_names_the_input(
    acme: Party, plant: Plant, now: datetime, changes: dict[str, Any], field: str
) -> None:
    fund(acme, 10_000, now)
    answer = cover(acme, now, **changes)
    assert (answer.status_code, answer.json()["field"]) == (422, field), answer.content
    assert not Bid.objects.exists()
    assert available(acme) == 10_000


def test_the_most_that_can_be_covered_is_the_markets_largest_bid() -> None:
    most = 10**12 // 300
    assert cover_terms(**{**ASKED, "tokens_per_second": most}).steps[0][1] == 10**9
    with pytest.raises(InvalidInput):
        cover_terms(**{**ASKED, "tokens_per_second": most + 1})


def preview(party: Party, now: datetime, **changes: Any) -> Any:
    asked = {name: value for name, value in ASKED.items() if name != "client_id"}
    with time_machine.travel(now, tick=False):
        return party.api.post("/api/v1/bids/cover/worst-case", {**asked, **changes}, format="json")


def test_a_dry_run_says_what_a_cover_would_hold_and_places_nothing(
    acme: Party, plant: Plant, now: datetime
) -> None:
    fund(acme, 10_000, now)
    # 15 a second for 300 s are 4.5 lots, so 5.
    exact = {"rate_micros_per_mtok": 2_000_000, "tokens_per_second": 15}
    dearer = {**exact, "rate_micros_per_mtok": 2_000_001}
    answer = preview(acme, now, **exact)
    assert answer.status_code == 200, answer.content
    assert answer.json() == {
        "steps": [{"rate_micros_per_mtok": 2_000_000, "lots": 5}],
        "worst_case_micros": 10_000,
        "available_micros": 10_000,
        "is_covered": True,
    }
    over = preview(acme, now, **dearer).json()
    assert (over["worst_case_micros"], over["is_covered"]) == (10_001, False)
    assert not Bid.objects.exists()
    assert held(acme) == 0
    refused = cover(acme, now, **dearer)
    assert (refused.status_code, refused.json()["code"]) == (402, "insufficient_funds")
    assert cover(acme, now, **exact).json()["held_micros"] == 10_000
    assert preview(acme, now, **exact).json()["available_micros"] == 0


def test_a_dry_run_counts_the_tax(acme: Party, plant: Plant, now: datetime) -> None:
    acme.organization.tax_ppm = 190_000
    acme.organization.save(update_fields=["tax_ppm"])
    # 1,350 x 1.19 = 1,606.5, rounded up.
    assert preview(acme, now).json()["worst_case_micros"] == 1_607


@pytest.mark.parametrize(
    ("changes", "status", "field"),
    [
        ({"grade": "nothing"}, 404, "grade"),
        ({"rate_micros_per_mtok": 5_000_001}, 422, "rate_micros_per_mtok"),
        ({"tokens_per_second": 10**11}, 422, "tokens_per_second"),
        ({"client_id": "x"}, 422, "client_id"),
    ],
)
def test_a_dry_run_refuses_what_placing_would(
    acme: Party, plant: Plant, now: datetime, changes: dict[str, Any], status: int, field: str
) -> None:
    answer = preview(acme, now, **changes)
    assert (answer.status_code, answer.json()["field"]) == (status, field)
