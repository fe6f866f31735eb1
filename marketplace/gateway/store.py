"""The gateway's reads and writes: one-line statements on a pool of its own. All truth is in PostgreSQL.

Keys and grades are cached for less than five seconds, so a revocation holds within five.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, tuple_row
from psycopg_pool import AsyncConnectionPool

from marketplace.accounts import keys
from marketplace.clock import OFFSET_SQL
from marketplace.contracts.holds import (
    CAPTURE_SQL,
    EXTEND_SQL,
    OPEN_PART_SQL,
    OPEN_SQL,
    TAKE_REST_SQL,
    VOID_SQL,
    Captured,
    Opened,
    open_arguments,
    part_arguments,
)
from marketplace.gateway.config import CACHE_S, Config
from pricing.units import Bucket
from providers.outages import RECORD_FAILED_ATTEMPT_SQL

_MOST_CACHED_KEYS: Final = 10_000

_KEY_SQL: Final = """
SELECT k.id, k.organization_id, k.secret_sha256, k.scopes, k.default_contract_id, k.expires_at
  FROM accounts_apikey k JOIN accounts_organization o ON o.id = k.organization_id
 WHERE k.key_id = %s AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > %s) AND o.status = 'active'
"""
_KEY_USED_SQL: Final = """
UPDATE accounts_apikey SET last_used_at = %s
 WHERE id = %s AND (last_used_at IS NULL OR last_used_at <= %s - interval '1 minute')
"""
_GRADES_SQL: Final = """
SELECT f.model, f.slug, f.title, f.context_tokens, f.created_at, g.id, g.version, g.currency, g.max_request_s,
       g.max_output_tokens, g.template_overhead_tokens, g.valid_during @> %(now)s::timestamptz AS in_force,
       (SELECT jsonb_object_agg(b.bucket, b.standard_ppm) FROM pricing_gradebucket b WHERE b.grade_id = g.id),
       (SELECT min(r.comparable_micros_per_mtok) FROM providers_offering o
          JOIN providers_host h ON h.id = o.host_id
         CROSS JOIN LATERAL providers_list_rate(o.id, o.list_rate_id, %(now)s) r
         WHERE o.grade_id = g.id AND o.status = 'listed' AND h.status = 'enrolled'),
       (SELECT b.kappa_ppm FROM pricing_gradebucket b WHERE b.grade_id = g.id AND b.bucket = 'output')
  FROM pricing_grade g JOIN pricing_gradefamily f ON f.id = g.family_id
 WHERE lower(g.valid_during) <= %(now)s
 ORDER BY f.slug, in_force DESC, g.version DESC
"""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a key proves: its organization, what it may do, and the contract that pays when none is named."""

    api_key_id: UUID
    organization_id: UUID
    scopes: frozenset[str]
    default_contract_id: UUID | None


@dataclass(frozen=True, slots=True)
class GradeVersion:
    """What a request is bounded and rated by."""

    id: UUID
    version: int
    currency: str
    max_request_s: int
    max_output_tokens: int
    template_overhead_tokens: int
    standard_ppm: dict[Bucket, int]
    # o200k tokens for a million native tokens of output text; None where the grade has none.
    output_kappa_ppm: int | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A name that buyers ask for. `versions[0]` is in force; older ones live on in contracts."""

    name: str
    slug: str
    title: str
    context_tokens: int
    created_at: datetime
    list_rate_micros_per_mtok: int | None
    versions: tuple[GradeVersion, ...]


class Store:
    """Every statement of the gateway."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._pool: AsyncConnectionPool[AsyncConnection[TupleRow]] = AsyncConnectionPool(
            config.database,
            min_size=min(4, config.pool_size),
            max_size=config.pool_size,
            timeout=5,
            max_waiting=2_000,
            open=False,
            kwargs={"autocommit": True, "row_factory": tuple_row, "prepare_threshold": 1},
        )
        self._callers: OrderedDict[bytes, tuple[float, Caller | None]] = OrderedDict()
        self._models: dict[str, Model] = {}
        self._models_read_at = float("-inf")

    async def open(self) -> None:
        await self._pool.open(wait=True, timeout=30)

    async def close(self) -> None:
        await self._pool.close()

    async def accepts_writes(self) -> bool:
        (accepts,) = await self._one("SELECT current_setting('transaction_read_only') = 'off'")
        return bool(accepts)

    async def now(self) -> datetime:
        """The market's time. Without TEST_CLOCK no statement is run for it."""
        wall = datetime.now(UTC)
        if not self._config.test_clock:
            return wall
        (offset_ms,) = await self._one(OFFSET_SQL)
        return wall + timedelta(milliseconds=offset_ms)

    async def caller(self, presented: str) -> Caller | None:
        """Whom this key proves; None for unknown, wrong, expired and revoked alike."""
        parsed = keys.parse(presented)
        if parsed is None:
            return None
        # The secret itself is never kept, here neither.
        cache_key = parsed.key_id.encode() + parsed.secret_sha256
        cached = self._callers.get(cache_key)
        if cached is not None and time.monotonic() - cached[0] < CACHE_S:
            return cached[1]
        asked_at = time.monotonic()
        caller = await self._read_caller(parsed)
        self._callers[cache_key] = (asked_at, caller)
        self._callers.move_to_end(cache_key)
        if len(self._callers) > _MOST_CACHED_KEYS:
            self._callers.popitem(last=False)
        return caller

    async def _read_caller(self, parsed: keys.Presented) -> Caller | None:
        now = await self.now()
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_KEY_SQL, (parsed.key_id, now), prepare=True)
            row = await cursor.fetchone()
            proved = keys.matches(parsed, bytes(row[2]) if row else keys.NOBODY)
            if row is None or not proved:
                return None
            await connection.execute(_KEY_USED_SQL, (now, row[0], now), prepare=True)
        return Caller(
            api_key_id=row[0], organization_id=row[1], scopes=frozenset(row[3]), default_contract_id=row[4]
        )

    async def models(self) -> dict[str, Model]:
        """Every grade with a version in force, by the name buyers ask for."""
        if time.monotonic() - self._models_read_at < CACHE_S:
            return self._models
        asked_at = time.monotonic()
        now = await self.now()
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_GRADES_SQL, {"now": now}, prepare=True)
            rows = await cursor.fetchall()
        self._models = _models_of(rows)
        self._models_read_at = asked_at
        return self._models

    async def open_hold(
        self,
        *,
        id: UUID,  # noqa: A002
        request_id: UUID,
        attempt: int,
        caller: Caller,
        grade_ids: Sequence[UUID],
        numerators: Sequence[int],
        contract_id: UUID | None,
        exclude: Sequence[UUID],
        may_split: bool,
        now: datetime,
    ) -> Opened:
        arguments = open_arguments(
            id=id,
            request_id=request_id,
            attempt=attempt,
            holder=self._config.holder,
            organization_id=caller.organization_id,
            api_key_id=caller.api_key_id,
            grade_ids=grade_ids,
            numerators=numerators,
            contract_id=contract_id,
            exclude=exclude,
            may_split=may_split,
            now=now,
        )
        return Opened(*await self._one(OPEN_SQL, arguments))

    async def take_rest(self, *, id: UUID, most_numerator: int, now: datetime) -> int:  # noqa: A002
        (taken,) = await self._one(TAKE_REST_SQL, (id, most_numerator, now))
        return int(taken)

    async def open_part(
        self,
        *,
        hold_id: UUID,
        id: UUID,  # noqa: A002
        amount_numerator: int,
        is_admission: bool,
        now: datetime,
    ) -> Opened:
        arguments = part_arguments(
            hold_id=hold_id, id=id, amount_numerator=amount_numerator, is_admission=is_admission, now=now
        )
        return Opened(*await self._one(OPEN_PART_SQL, arguments))

    async def extend_hold(self, *, id: UUID, delta_numerator: int, now: datetime) -> str:  # noqa: A002
        (outcome,) = await self._one(EXTEND_SQL, (id, delta_numerator, now))
        return str(outcome)

    async def capture_hold(
        self,
        *,
        id: UUID,  # noqa: A002
        numerator: int,
        event: bytes,
        source_id: UUID,
        now: datetime,
    ) -> Captured:
        return Captured(*await self._one(CAPTURE_SQL, (id, numerator, event, source_id, now)))

    async def void_hold(self, *, id: UUID, now: datetime) -> str:  # noqa: A002
        (outcome,) = await self._one(VOID_SQL, (id, now))
        return str(outcome)

    async def record_failed_attempt(
        self,
        *,
        id: UUID,  # noqa: A002
        offering_id: UUID,
        cause: str,
        now: datetime,
    ) -> None:
        async with self._pool.connection() as connection:
            await connection.execute(RECORD_FAILED_ATTEMPT_SQL, (id, offering_id, cause, now))

    async def _one(self, statement: Any, arguments: Sequence[object] = ()) -> TupleRow:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(statement, arguments, prepare=True)
            row = await cursor.fetchone()
        assert row is not None
        return row


def _models_of(rows: Sequence[TupleRow]) -> dict[str, Model]:
    models: dict[str, Model] = {}
    for row in rows:
        (model, slug, title, context_tokens, created_at, grade_id, version, currency, max_request_s) = row[:9]
        (max_output_tokens, template_overhead_tokens, in_force, standard_ppm, list_rate, output_kappa) = row[
            9:
        ]
        found = GradeVersion(
            id=grade_id,
            version=version,
            currency=currency,
            max_request_s=max_request_s,
            max_output_tokens=max_output_tokens,
            template_overhead_tokens=template_overhead_tokens,
            standard_ppm={Bucket(bucket): ppm for bucket, ppm in (standard_ppm or {}).items()},
            output_kappa_ppm=output_kappa,
        )
        if model in models:
            known = models[model]
            models[model] = Model(
                known.name, known.slug, known.title, known.context_tokens, known.created_at,
                known.list_rate_micros_per_mtok, (*known.versions, found),
            )  # fmt: skip
        elif in_force:
            models[model] = Model(model, slug, title, context_tokens, created_at, list_rate, (found,))
    return models
