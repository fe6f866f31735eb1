"""Amend, void, backfill: what a stored event said wrongly is set right by new events with a reason and an actor.

Stored events never change. A correction names its target, which counts no more, and its replacement, which counts
instead; the roll-ups move by the difference in the same transaction. Settlement sees the sums move and writes the
adjustment. Part of this room's services: `metering.services` exports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from django.db import IntegrityError, connection, transaction
from django.db.models import Exists, OuterRef

from marketplace.errors import Conflict, InvalidInput, NotFound, constraint_of
from marketplace.ids import uuid7
from metering.columns import Sums
from metering.models import MeterKind, MeterPoint, MeterSource, UsageCorrection, UsageEvent
from metering.packing import COUNT_COLUMNS, ESTIMATED_BITS, FLAG_BITS, microseconds
from metering.rollups import Tally
from metering.usage import MAX_COUNT, Finish, Flag
from metering.validating import (
    MAX_EVENT_NUMERATOR,
    RETENTION,
    Facts,
    Terms,
    Window,
    find_supply,
    is_period_start,
    load_facts,
    weigh,
)
from pricing.units import Bucket

MAX_REASON: Final = 500
_HIDDEN: Final = FLAG_BITS[Flag.HIDDEN_REASONING]
MAX_ACTOR: Final = 100


class _Edit(NamedTuple):
    """What an edited event says."""

    terms: Terms
    counts: tuple[int | None, ...]
    occurred_at: datetime
    request_id: UUID
    finish: str
    attempt: int = 0
    part: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    recount_o200k_tokens: int | None = None
    flags: int = 0
    first_byte_ms: int | None = None
    duration_ms: int = 0


@transaction.atomic
def amend_event(
    *,
    source_id: UUID,
    event_id: UUID,
    buckets: Mapping[Bucket, int | None],
    reason: str,
    actor: str,
    now: datetime,
) -> UsageCorrection:
    """The event counts with these buckets from now on; all else of it stays. A bucket left out was not reported.

    Raises NotFound, Conflict when the event was corrected before (correct its replacement) or lies outside retention,
    InvalidInput naming the field.
    """
    target = _target(source_id, event_id, now)
    edit = _Edit(
        terms=_terms_of(target),
        counts=_checked_counts(buckets),
        occurred_at=target.occurred_at,
        request_id=target.request_id,
        finish=target.finish,
        attempt=target.attempt,
        part=target.part,
        bytes_in=target.bytes_in,
        bytes_out=target.bytes_out,
        recount_o200k_tokens=target.recount_o200k_tokens,
        # What the recount stands for is as before; the counts are not the meter's any more.
        flags=target.flags & _HIDDEN,
        first_byte_ms=target.first_byte_ms,
        duration_ms=target.duration_ms or 0,
    )
    facts = load_facts([edit.terms])
    weights = facts.standard_ppm.get(target.grade_id, {})
    editor = _editor(target.source.kind, now)
    replacement_id = _store(edit, editor, _numerator(edit.counts, weights), now)
    correction = _record(
        UsageCorrection.Kind.AMEND, target, (replacement_id, editor), reason=reason, actor=actor, now=now
    )
    tally = Tally()
    tally.add(edit.terms, target.source.kind, weights, _sums_of(target), sign=-1)
    tally.add(
        edit.terms, target.source.kind, weights, _sums(edit.counts, edit.recount_o200k_tokens, edit.flags)
    )
    _write(tally)
    return correction


@transaction.atomic
def void_event(*, source_id: UUID, event_id: UUID, reason: str, actor: str, now: datetime) -> UsageCorrection:
    """The event counts no more. Raises as `amend_event` does."""
    target = _target(source_id, event_id, now)
    correction = _record(UsageCorrection.Kind.VOID, target, None, reason=reason, actor=actor, now=now)
    terms = _terms_of(target)
    tally = Tally()
    weights = load_facts([terms]).standard_ppm.get(target.grade_id, {})
    tally.add(terms, target.source.kind, weights, _sums_of(target), sign=-1)
    _write(tally)
    return correction


@transaction.atomic
def backfill_event(
    *,
    contract_id: UUID,
    offering_id: UUID,
    rate_id: UUID,
    api_key_id: UUID | None,
    period_start: datetime,
    occurred_at: datetime,
    buckets: Mapping[Bucket, int | None],
    request_id: UUID,
    reason: str,
    actor: str,
    now: datetime,
) -> UsageCorrection:
    """Usage that no meter reported counts as the gateway's from now on, whatever its age inside retention.

    The contract must be supplied by the offering at that time, as for a meter's own event; its grade version comes from
    there. Raises InvalidInput naming the field, Conflict for a request that has an event already.
    """
    grade_id = _grade_of(contract_id, offering_id)
    terms = Terms(contract_id, offering_id, grade_id, rate_id, period_start, api_key_id)
    facts = load_facts([terms])
    _check_supplied(terms, occurred_at, facts, now)
    counts = _checked_counts(buckets)
    weights = facts.standard_ppm.get(grade_id, {})
    editor = _editor(MeterKind.GATEWAY, now)
    _refuse_known_request(terms, request_id, editor)
    edit = _Edit(terms, counts, occurred_at, request_id, Finish.NONE.value)
    replacement_id = _store(edit, editor, _numerator(counts, weights), now)
    correction = _record(
        UsageCorrection.Kind.BACKFILL, None, (replacement_id, editor), reason=reason, actor=actor, now=now
    )
    tally = Tally()
    tally.add(terms, MeterKind.GATEWAY, weights, _sums(counts, None, 0))
    _write(tally)
    return correction


def _target(source_id: UUID, event_id: UUID, now: datetime) -> UsageEvent:
    target = UsageEvent.objects.select_related("source").filter(source_id=source_id, id=event_id).first()
    if target is None:
        raise NotFound("There is no such usage event.")
    if target.period_start < now - RETENTION:
        raise Conflict("The event's period is older than retention.")
    return target


def _terms_of(event: UsageEvent) -> Terms:
    return Terms(
        event.contract_id,
        event.offering_id,
        event.grade_id,
        event.rate_id,
        event.period_start,
        event.api_key_id,
    )


def _sums_of(event: UsageEvent) -> Sums:
    counts = tuple(getattr(event, column) for column in COUNT_COLUMNS)
    if not event.flags & ESTIMATED_BITS:
        return _sums(counts, event.recount_o200k_tokens, event.flags)
    sums = _sums(counts, None, event.flags)
    return sums._replace(estimated_known=sums.known, estimated_tokens=sums.tokens)


def _sums(counts: tuple[int | None, ...], recount_o200k: int | None, flags: int) -> Sums:
    """What one event comes to that is not estimated."""
    none = (0,) * len(counts)
    known = tuple(int(count is not None) for count in counts)
    tokens = tuple(count or 0 for count in counts)
    by_bucket = dict(zip(Bucket, counts, strict=True))
    output = by_bucket[Bucket.OUTPUT]
    if recount_o200k is None or output is None:
        return Sums(known, tokens, none, none, 0, 0)
    recounted = output + (0 if flags & _HIDDEN else by_bucket[Bucket.REASONING] or 0)
    return Sums(known, tokens, none, none, recounted, recount_o200k)


def _checked_counts(buckets: Mapping[Bucket, int | None]) -> tuple[int | None, ...]:
    for bucket, tokens in buckets.items():
        if tokens is not None and not (type(tokens) is int and 0 <= tokens <= MAX_COUNT):
            raise InvalidInput(
                f"It must be an integer from 0 to {MAX_COUNT}.", field=f"buckets.{bucket.value}"
            )
    counts = tuple(buckets.get(bucket) for bucket in Bucket)
    if all(count is None for count in counts):
        raise InvalidInput(
            "At least one bucket must have a count; to take usage away, void it.", field="buckets"
        )
    return counts


def _numerator(counts: tuple[int | None, ...], weights: Mapping[Bucket, int]) -> int:
    for bucket, tokens in zip(Bucket, counts, strict=True):
        if tokens and bucket not in weights:
            raise InvalidInput("The grade has no weight for it.", field=f"buckets.{bucket.value}")
    numerator = weigh(counts, [weights.get(bucket, 0) for bucket in Bucket])
    if numerator > MAX_EVENT_NUMERATOR:
        raise InvalidInput("It is more than any request can be.", field="buckets")
    return numerator


def _grade_of(contract_id: UUID, offering_id: UUID) -> UUID:
    point = MeterPoint.objects.filter(contract_id=contract_id, offering_id=offering_id).first()
    if point is None:
        raise InvalidInput("The contract is not supplied by this offering.", field="contract_id")
    return point.grade_id


def _check_supplied(terms: Terms, occurred_at: datetime, facts: Facts, now: datetime) -> None:
    if facts.rates.get(terms.rate_id) != terms.grade_id:
        raise InvalidInput("It is not a rate of the contract's grade version.", field="rate_id")
    if not is_period_start(terms.period_start, facts):
        raise InvalidInput("It is not the start of a delivery period.", field="period_start")
    supply = find_supply(terms, kind=MeterKind.GATEWAY, host_id=None, facts=facts, window=Window.at(now))
    if supply is None:
        raise InvalidInput("It lies outside retention or in the future.", field="period_start")
    if not supply.first_us <= microseconds(occurred_at) < supply.until_us:
        raise InvalidInput(
            "The offering did not supply the contract then, or it is not of this delivery period.",
            field="occurred_at",
        )


def _refuse_known_request(terms: Terms, request_id: UUID, editor: MeterSource) -> None:
    """Raises Conflict when the gateway or an earlier backfill says something of the request that still counts."""
    # One backfill at a time, or two could both find nothing.
    MeterSource.objects.select_for_update(no_key=True).get(pk=editor.pk)
    corrected = UsageCorrection.objects.filter(target_id=OuterRef("id"), target_source=OuterRef("source"))
    known = UsageEvent.objects.filter(
        ~Exists(corrected),
        contract_id=terms.contract_id,
        period_start=terms.period_start,
        request_id=request_id,
        source__kind=MeterKind.GATEWAY,
    )
    if known.exists():
        raise Conflict("The request has an event that counts; amend that one.", field="request_id")


def _editor(kind: str, now: datetime) -> MeterSource:
    """The market's own source of edited events of a kind, made at its first use."""
    editors = MeterSource.objects.filter(kind=kind, is_editor=True)
    found = editors.first()
    if found is not None:
        return found
    MeterSource.objects.bulk_create(
        [MeterSource(kind=kind, is_editor=True, created_at=now)], ignore_conflicts=True
    )
    return editors.get()


def _store(edit: _Edit, editor: MeterSource, numerator: int, now: datetime) -> UUID:
    """The edited event, whose id is of now: an old partition need not be there any more."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT metering_make_partitions(%s)", [now])
    event_id = uuid7(now)
    terms = edit.terms
    UsageEvent.objects.create(
        id=event_id,
        source=editor,
        # Edited events come in no batch.
        batch_id=event_id,
        request_id=edit.request_id,
        attempt=edit.attempt,
        part=edit.part,
        contract_id=terms.contract_id,
        offering_id=terms.offering_id,
        grade_id=terms.grade_id,
        rate_id=terms.rate_id,
        api_key_id=terms.api_key_id,
        period_start=terms.period_start,
        occurred_at=edit.occurred_at,
        numerator=numerator,
        recount_o200k_tokens=edit.recount_o200k_tokens,
        flags=edit.flags,
        finish=edit.finish,
        bytes_in=edit.bytes_in,
        bytes_out=edit.bytes_out,
        first_byte_ms=edit.first_byte_ms,
        duration_ms=edit.duration_ms,
        **dict(zip(COUNT_COLUMNS, edit.counts, strict=True)),
    )
    return event_id


def _record(
    kind: UsageCorrection.Kind,
    target: UsageEvent | None,
    replacement: tuple[UUID, MeterSource] | None,
    *,
    reason: str,
    actor: str,
    now: datetime,
) -> UsageCorrection:
    for field, text, most in (("reason", reason, MAX_REASON), ("actor", actor, MAX_ACTOR)):
        if not text.strip() or len(text) > most or "\0" in text:
            raise InvalidInput(f"It must be a text of 1 to {most} characters.", field=field)
    try:
        with transaction.atomic():
            return UsageCorrection.objects.create(
                kind=kind,
                target_id=target.id if target else None,
                target_source_id=target.source_id if target else None,
                replacement_id=replacement[0] if replacement else None,
                replacement_source=replacement[1] if replacement else None,
                reason=reason,
                actor=actor,
                created_at=now,
            )
    except IntegrityError as error:
        if constraint_of(error) != "metering_correction_once_per_event":
            raise
        raise Conflict("The event was corrected before; correct its replacement instead.") from error


def _write(tally: Tally) -> None:
    with connection.cursor() as cursor:
        tally.write(cursor)
