"""Requests as the gateway metered them, with how long they took."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from marketplace.contracts.models import Contract
from marketplace.ids import uuid7
from metering.services import accept_batch, gateway_source, ingest_batches
from metering.usage import Finish, UsageEvent, encode_event, encode_lines
from pricing.models import Grade
from pricing.promising import record_levels
from pricing.service_levels import LevelTerms
from pricing.units import Bucket
from tests.cast import Plant

# A thousand output tokens are a lot: 600 micros at the list rate.
TOKENS = 1_000
FIRST_TOKEN = LevelTerms(
    metric="first_token", percentile=95, limit_us=500_000, credit_ppm=100_000, minimum_requests=20
)
OUTPUT_TOKEN = LevelTerms(
    metric="output_token", percentile=50, limit_us=20_000, credit_ppm=50_000, minimum_requests=20
)


def promise(grade: Grade, *levels: LevelTerms) -> None:
    """As `publish_grade` with these levels would have left the grade of the cast."""
    record_levels(grade.pk, levels)


def request(
    contract: Contract, plant: Plant, at: datetime, *, first_ms: int | None, **changes: Any
) -> UsageEvent:
    """An input-free request of 1,000 output tokens, a second long, at the offering's list rate."""
    terms: dict[str, Any] = {
        "id": uuid7(at),
        "sequence": 1,
        "request_id": uuid7(at),
        "attempt": 0,
        "part": 0,
        "contract_id": contract.id,
        "offering_id": plant.offering.id,
        "grade_id": plant.offering.grade_id,
        "rate_id": plant.offering.list_rate_id,
        "period_start": at,
        "occurred_at": at + timedelta(seconds=1),
        "buckets": {Bucket.OUTPUT: TOKENS},
        "finish": Finish.STOP,
        "bytes_in": 100,
        "bytes_out": 4_000,
        "duration_ms": (first_ms or 0) + TOKENS,
        "api_key_id": UUID(int=1),
        "first_byte_ms": first_ms,
    }
    return UsageEvent(**terms | changes)


def store(events: Sequence[UsageEvent], at: datetime) -> None:
    """Through the gateway's door and the inbox into usage and roll-ups."""
    accept_batch(
        source=gateway_source(at), body=encode_lines([encode_event(event) for event in events]), now=at
    )
    ingest_batches(now=at)


def serve(contract: Contract, plant: Plant, at: datetime, first_ms: Sequence[int], **changes: Any) -> None:
    """One request for each time to first token, in milliseconds."""
    store([request(contract, plant, at, first_ms=one, **changes) for one in first_ms], at)
