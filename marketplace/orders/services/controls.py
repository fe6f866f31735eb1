"""The market's controls: halts by operator or rule, the breaker, the administered rate, reviews of the cap.

Every move is a compare-and-set on MarketControl and a MarketControlChange in one transaction. A halt locks the
grade's unfinished auctions first, as a gate does, so that no book is sealed for trade beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import IntegrityError, transaction

from marketplace.accounts.services import Actor, record_audit
from marketplace.errors import Conflict, InvalidInput, NotFound, constraint_of
from marketplace.orders import controls
from marketplace.orders.book import Book, sound_book
from marketplace.orders.controls import Action
from marketplace.orders.controls_selectors import cap_of, caps_of, days_near_cap, figures_of, rolling_sums
from marketplace.orders.models import Auction, CapReview, MarketControl, MarketControlChange
from marketplace.orders.services.phases import hold_turnstile
from pricing.models import Grade

RULE = Actor("rule", None)
MAX_REASON_CHARACTERS = 500
# As much as the API takes for a rate.
MAX_RATE_MICROS_PER_MTOK = 10**15
_SEALABLE = (Auction.Status.OPEN, Auction.Status.NO_CANCEL, Auction.Status.CLOSED)

Status = MarketControl.Status
Because = MarketControl.Because


@dataclass(frozen=True, slots=True)
class Seal:
    """The terms a book is sealed under: the cap it is cleared at, and why it trades nothing, if it does not."""

    cap: int
    halted: str


def halt_market(
    *, operator_id: UUID, grade: Grade, reason: str, now: datetime, actor: Actor
) -> MarketControl:
    """Stop a grade's trading at once: books that are not cleared yet trade nothing. Contracts and on-demand run on.

    Raises InvalidInput (reason), Conflict when it is halted already.
    """
    reason = _reason(reason)
    with transaction.atomic():
        control = _halt(grade.id, because=Because.OPERATOR, reason=reason, actor=actor, evidence={}, now=now)
        if control is None:
            raise Conflict("The market of this grade is halted already.")
        _audit(operator_id, actor, "market.halt", control.grade_id, {"reason": reason}, now)
    return control


def halt_by_rule(
    *, auction_id: UUID, because: Because, evidence: Mapping[str, Any], now: datetime
) -> MarketControl | None:
    """Stop a grade because one of its auctions cannot be trusted. None when it is halted already.

    The auction itself trades nothing either, so it does not stand in the way of those after it; `evidence` and its
    book's orders, which are kept, are for the operator.
    """
    with transaction.atomic():
        auction = Auction.objects.get(pk=auction_id)
        found = {
            "auction_id": str(auction_id),
            "period_start": auction.period_start.isoformat(),
            **evidence,
        }
        return _halt(
            auction.grade_id,
            because=because,
            reason=_RULE_REASONS[because],
            actor=RULE,
            evidence=found,
            now=now,
        )


_RULE_REASONS = {
    Because.ENGINES_DISAGREE: "The second engine does not confirm the auction's result.",
    Because.BOOK_CHANGED: "The stored book is not the one that was sealed.",
}


def resume_market(
    *, operator_id: UUID, grade: Grade, reason: str, now: datetime, actor: Actor
) -> MarketControl:
    """Let a halted grade trade again, from the next gate on. The breaker looks at it there.

    Raises InvalidInput (reason), Conflict when it is not halted.
    """
    reason = _reason(reason)
    with transaction.atomic():
        control = control_of(grade.id, now=now)
        if not _move(
            control, Action.RESUMED, Status.NORMAL, reason=reason, actor=actor, evidence={}, now=now
        ):
            raise Conflict("The market of this grade is not halted.")
        _audit(operator_id, actor, "market.resume", grade.id, {"reason": reason}, now)
    return control


def set_administered_rate(
    *,
    operator_id: UUID,
    grade: Grade,
    rate_micros_per_mtok: int | None,
    reason: str,
    now: datetime,
    actor: Actor,
) -> MarketControl:
    """What halted periods of the grade settle at, from those published next; None: the median of 30 days again.

    Raises InvalidInput (rate_micros_per_mtok, reason). The same figure again changes nothing.
    """
    reason = _reason(reason)
    if rate_micros_per_mtok is not None and not 1 <= rate_micros_per_mtok <= MAX_RATE_MICROS_PER_MTOK:
        raise InvalidInput(
            f"A rate lies between 1 and {MAX_RATE_MICROS_PER_MTOK} micros per Mtok.",
            field="rate_micros_per_mtok",
        )
    with transaction.atomic():
        control_of(grade.id, now=now)
        control = MarketControl.objects.select_for_update(no_key=True).get(grade_id=grade.id)
        before = control.administered_rate_micros_per_mtok
        if before == rate_micros_per_mtok:
            return control
        control.administered_rate_micros_per_mtok = rate_micros_per_mtok
        control.save(update_fields=["administered_rate_micros_per_mtok"])
        evidence = {
            "rate_before_micros_per_mtok": before,
            "rate_micros_per_mtok": rate_micros_per_mtok,
        }
        _note(
            control,
            Action.RATE_SET,
            control.status,
            reason=reason,
            actor=actor,
            evidence=evidence,
            now=now,
        )
        _audit(operator_id, actor, "market.administered_rate", grade.id, {"reason": reason, **evidence}, now)
    return control


def review_at_opening(auction: Auction, *, now: datetime) -> None:
    """What the rules do when a book opens: the breaker, and the question whether the cap is too low."""
    control = control_of(auction.grade_id, now=now)
    cap = cap_of(auction.grade, at=auction.period_start)
    _review_breaker({control: cap}, before=auction.period_start, now=now)
    _propose_higher_cap(auction.grade, cap, before=auction.period_start, now=now)


def sealing_terms(auctions: Collection[Auction], *, now: datetime) -> dict[UUID, Seal]:
    """The terms under which the locked auctions of one delivery period are sealed now, after the breaker has looked.

    The cap is that of the delivery period, so a review takes effect at a period's start, not at a gate's.
    """
    [period_start] = {auction.period_start for auction in auctions}
    caps = caps_of([auction.grade for auction in auctions], at=period_start)
    found = {auction.grade_id: control_of(auction.grade_id, now=now) for auction in auctions}
    _review_breaker(
        {control: caps[grade_id] for grade_id, control in found.items()}, before=period_start, now=now
    )
    return {
        auction.id: Seal(
            cap=controls.book_cap(
                cap=caps[auction.grade_id],
                administered=found[auction.grade_id].administered_cap_micros_per_mtok,
            ),
            halted=found[auction.grade_id].halted_because,
        )
        for auction in auctions
    }


def control_of(grade_id: UUID, *, now: datetime) -> MarketControl:
    """The grade's control, made now where there is none."""
    control, _ = MarketControl.objects.get_or_create(
        grade_id=grade_id, defaults={"status_since": now, "created_at": now}
    )
    return control


def schedule_cap(
    *,
    operator_id: UUID,
    grade: Grade,
    cap_micros_per_mtok: int,
    effective_from: datetime,
    reason: str,
    now: datetime,
    actor: Actor,
) -> CapReview:
    """Change a grade's cap from `effective_from` on, at least 28 days ahead.

    Raises InvalidInput (cap_micros_per_mtok, effective_from, reason), Conflict for a moment that has a review already.
    """
    reason = _reason(reason)
    if not 1 <= cap_micros_per_mtok <= MAX_RATE_MICROS_PER_MTOK:
        raise InvalidInput(
            f"A cap lies between 1 and {MAX_RATE_MICROS_PER_MTOK} micros per Mtok.",
            field="cap_micros_per_mtok",
        )
    if effective_from < now + controls.CAP_NOTICE:
        raise InvalidInput(
            f"A cap changes at the earliest {controls.CAP_NOTICE.days} days ahead.", field="effective_from"
        )
    try:
        with transaction.atomic():
            review = CapReview.objects.create(
                grade=grade,
                cap_micros_per_mtok=cap_micros_per_mtok,
                cap_before_micros_per_mtok=cap_of(grade, at=effective_from),
                effective_from=effective_from,
                reason=reason,
                actor_kind=actor.kind,
                actor_id=actor.id,
                created_at=now,
            )
            _audit(
                operator_id,
                actor,
                "market.cap",
                grade.id,
                {"reason": reason, "cap_micros_per_mtok": cap_micros_per_mtok, "review_id": str(review.id)},
                now,
            )
    except IntegrityError as error:
        if constraint_of(error) != "orders_capreview_one_per_moment":
            raise
        raise Conflict("A cap from that moment on is scheduled already.", field="effective_from") from error
    return review


def decline_cap(*, operator_id: UUID, review_id: UUID, reason: str, now: datetime, actor: Actor) -> CapReview:
    """Take a scheduled cap back before it is in force. Raises InvalidInput (reason), NotFound, Conflict."""
    reason = _reason(reason)
    with transaction.atomic():
        declined = CapReview.objects.filter(
            pk=review_id, status=CapReview.Status.SCHEDULED, effective_from__gt=now
        ).update(status=CapReview.Status.DECLINED, declined_at=now, decline_reason=reason)
        review = CapReview.objects.filter(pk=review_id).first()
        if review is None:
            raise NotFound("There is no such cap review.")
        if not declined:
            raise Conflict("This cap is in force, or was declined before.")
        _audit(
            operator_id,
            actor,
            "market.cap_declined",
            review.grade_id,
            {"reason": reason, "review_id": str(review_id)},
            now,
        )
    return review


def _halt(
    grade_id: UUID,
    *,
    because: Because,
    reason: str,
    actor: Actor,
    evidence: Mapping[str, Any],
    now: datetime,
) -> MarketControl | None:
    """Locks the auctions a gate could be closing, then moves the control, then takes the sealed ones out of trade."""
    hold_turnstile([grade_id])
    auctions = list(
        Auction.objects.select_for_update(of=("self",))
        .filter(grade_id=grade_id, status__in=_SEALABLE)
        .order_by("pk")
    )
    sealed = [auction for auction in auctions if auction.status == Auction.Status.CLOSED]
    # Their books get another digest below; what was sealed first may have been shown already.
    first = {"sealed_book_digests": {str(auction.pk): auction.book_digest for auction in sealed}}
    control = control_of(grade_id, now=now)
    if not _move(
        control,
        Action.HALTED,
        Status.HALTED,
        reason=reason,
        actor=actor,
        evidence={**evidence, **(first if sealed else {})},
        now=now,
        because=because,
    ):
        return None
    for auction in sealed:
        _seal_anew(auction, because)
    return control


def _seal_anew(auction: Auction, because: Because) -> None:
    """Keep the orders of a book that was sealed for trade, and say that it trades nothing.

    Orders of a book that is not what was sealed are worth nothing, and are not kept.
    """
    sound = sound_book(auction.book, auction.book_digest)
    book = (
        Book(grade_id=auction.grade_id, period_start=auction.period_start, cap=0, bids=[], asks=[])
        if sound is None
        else Book.from_json(sound.data)
    )
    sealed = replace(book, halted=because.value).sealed()
    auction.book, auction.book_digest, auction.halted = dict(sealed.data), sealed.digest(), because.value
    auction.save(update_fields=["book", "book_digest", "halted"])


def _review_breaker(caps: Mapping[MarketControl, int], *, before: datetime, now: datetime) -> None:
    """Trip and release, from the sums of the seven days before the delivery period that starts at `before`."""
    sums = rolling_sums([control.grade_id for control in caps], before=before)
    for control, cap in caps.items():
        rolling = sums[control.grade_id]
        action = controls.breaker_action(
            controls.Status(control.status), rolling_sum=rolling, cap=cap, period_s=settings.DELIVERY_PERIOD_S
        )
        if action is None:
            continue
        evidence = {
            "period_start": before.isoformat(),
            "rolling_sum_micros_per_mtok": rolling,
            "cap_micros_per_mtok": cap,
            "threshold_micros_per_mtok": controls.threshold(cap=cap, period_s=settings.DELIVERY_PERIOD_S),
            "periods": controls.periods_in_window(settings.DELIVERY_PERIOD_S),
        }
        move = partial(_move, control, action, actor=RULE, now=now)
        if action is Action.TRIPPED:
            _trip(move, control.grade_id, cap, evidence, before)
        else:
            reason = "The rates of seven days sum to no more than 7.5 hours at the cap."
            move(Status.NORMAL, reason=reason, evidence=evidence)


def _trip(
    move: Callable[..., bool], grade_id: UUID, cap: int, evidence: dict[str, Any], before: datetime
) -> None:
    median = figures_of([grade_id], before=before)[grade_id].median
    administered = controls.administered_cap(median=median, cap=cap)
    evidence |= {"median_micros_per_mtok": median, "administered_cap_micros_per_mtok": administered}
    reason = "The rates of seven days sum to more than 7.5 hours at the cap."
    move(Status.CAPPED, reason=reason, evidence=evidence, administered_cap=administered)


def _propose_higher_cap(grade: Grade, cap: int, *, before: datetime, now: datetime) -> None:
    """One proposal per grade in thirty days: a declined one is not asked again the next round."""
    recent = CapReview.objects.filter(
        grade=grade, actor_kind=RULE.kind, created_at__gt=now - controls.REVIEW_WINDOW
    )
    days = days_near_cap(grade.id, cap=cap, before=before)
    if not controls.review_is_due(days) or recent.exists():
        return
    # What the operator scheduled for the very moment stands.
    CapReview.objects.get_or_create(
        grade=grade,
        effective_from=now + controls.CAP_NOTICE,
        status=CapReview.Status.SCHEDULED,
        defaults={
            "cap_micros_per_mtok": controls.raised_cap(cap),
            "cap_before_micros_per_mtok": cap,
            "reason": f"Rates came to {controls.REVIEW_NEAR_CAP_PERCENT}% of the cap on {len(days)} days of 30.",
            "actor_kind": RULE.kind,
            "evidence": {"days": [day.isoformat() for day in days], "cap_micros_per_mtok": cap},
            "created_at": now,
        },
    )


def _move(
    control: MarketControl,
    action: Action,
    to_status: Status,
    *,
    reason: str,
    actor: Actor,
    evidence: Mapping[str, Any],
    now: datetime,
    because: str = "",
    administered_cap: int | None = None,
) -> bool:
    """Compare-and-set from whatever status this action may start at; False when another has moved it, or it may not."""
    for from_status, allowed in sorted(controls.MOVES[action]):
        if allowed.value != to_status.value:
            continue
        moved = MarketControl.objects.filter(pk=control.pk, status=from_status.value).update(
            status=to_status,
            status_since=now,
            halted_because=because,
            administered_cap_micros_per_mtok=administered_cap,
        )
        if moved:
            _note(
                control,
                action,
                to_status,
                from_status=from_status.value,
                reason=reason,
                actor=actor,
                evidence=evidence,
                now=now,
            )
            control.refresh_from_db()
            return True
    control.refresh_from_db()
    return False


def _note(
    control: MarketControl,
    action: Action,
    to_status: str,
    *,
    reason: str,
    actor: Actor,
    evidence: Mapping[str, Any],
    now: datetime,
    from_status: str | None = None,
) -> None:
    MarketControlChange.objects.create(
        control=control,
        action=action.value,
        from_status=from_status or to_status,
        to_status=to_status,
        reason=reason,
        actor_kind=actor.kind,
        actor_id=actor.id,
        evidence=dict(evidence),
        created_at=now,
    )


def _audit(
    operator_id: UUID, actor: Actor, action: str, grade_id: UUID, detail: Mapping[str, Any], now: datetime
) -> None:
    record_audit(
        organization_id=operator_id,
        actor=actor,
        action=action,
        object_kind="grade",
        object_id=grade_id,
        detail=detail,
        now=now,
    )


def _reason(text: str) -> str:
    text = text.strip()
    if not 1 <= len(text) <= MAX_REASON_CHARACTERS or "\x00" in text:
        raise InvalidInput(f"must have 1 to {MAX_REASON_CHARACTERS} characters", field="reason")
    return text
