"""Times at the ends of the calendar, where adding or taking away a period leaves it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cast import Party

STEP = {"rate_micros_per_mtok": 1, "lots": 1}
BID = {"grade": "tiny-chat", "client_id": "old", "steps": [STEP]}
QUOTE = {
    "grade": "tiny-chat", "firm_lots": 1, "volume_lots": 10, "months": 1, "take_share_ppm": 0,
    "overage_policy": "stop", "payment": "prepaid",
}  # fmt: skip


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "9999-12-31T23:59:59Z"])
def test_every_time_is_refused_by_its_field(acme: Party, grade: Any, moment: str) -> None:
    idempotent: dict[str, Any] = {"HTTP_IDEMPOTENCY_KEY": moment}
    answers = {
        "since": acme.api.get("/api/v1/usage", {"since": moment, "until": "2026-01-01T00:00:00Z"}),
        "until": acme.api.get("/api/v1/usage", {"until": moment}),
        "starts_at": acme.api.post(
            "/api/v1/quotes", {**QUOTE, "starts_at": moment}, format="json", **idempotent
        ),
        "period_start": acme.api.post(
            "/api/v1/bids", {**BID, "period_start": moment}, format="json", **idempotent
        ),
        "expires_at": acme.api.post(
            "/api/v1/api-keys", {"scopes": ["read"], "expires_at": moment}, format="json"
        ),
    }
    for field, answer in answers.items():
        assert (answer.status_code, answer.json()["field"]) == (422, field)
