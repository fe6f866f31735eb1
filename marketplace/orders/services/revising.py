"""Changing an open bid, atomically with its hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from django.db import transaction

from marketplace.accounts.services import Actor, record_audit
from marketplace.contracts.purchases import count_purchase
from marketplace.contracts.services import set_spot_max_rate
from marketplace.errors import Conflict
from marketplace.ledger.services import change_hold
from marketplace.orders.controls_selectors import cap_of
from marketplace.orders.models import Auction, Bid, BidRevision
from marketplace.orders.services.bids import (
    counted_awards_micros,
    lock_bid,
    steps_at_fault,
    terms_of,
    write_steps,
)
from marketplace.orders.services.budgets import budget_reason
from marketplace.orders.services.phases import MarketClosed, Phase, phase_of
from marketplace.orders.services.recording import record_revision
from marketplace.orders.services.substituting import (
    adjustments_of,
    named_substitutes,
    resolve_substitutes,
    set_substitute_max_rates,
    write_substitutes,
)
from marketplace.orders.terms import (
    BidChanges,
    BidTerms,
    asks_for_more,
    check_terms,
    only_improves,
    takes_more,
    worst_case_with_tax,
)


class RevisionConflict(Conflict):
    """The bid is not, or not any more, the revision that the change was made for."""

    code = "revision_conflict"


def revise_bid(
    *, organization_id: UUID, bid_id: UUID, changes: BidChanges, revision: int, now: datetime, actor: Actor
) -> Bid:
    """Change what is named of an open bid, and its hold with it; `revision` is the one that the caller saw.

    In the no-cancel phase a bid may only improve (`terms.only_improves`); from the gate to publication nothing
    changes. Asking for more at any rate takes a new place in the queue, a pure reduction keeps it. The same change of
    the same revision again, or a change that changes nothing, gives the bid as it is.
    Raises NotFound, RevisionConflict, Conflict (the bid has ended), InvalidInput, MarketClosed or InsufficientFunds;
    then nothing is changed.
    """
    with transaction.atomic():
        bid, rounds = lock_bid(organization_id=organization_id, bid_id=bid_id)
        old = terms_of(bid)
        asked = replace(old, **changes)
        new = replace(asked, substitutes=tuple(sorted(asked.substitutes)))
        if bid.revision != revision:
            if _was_this(bid, revision, new, changes):
                return bid
            raise RevisionConflict(f"The bid is at revision {bid.revision}: read it again.", field="revision")
        if bid.status != Bid.Status.OPEN:
            raise Conflict(f"The bid is {bid.status}.", field="revision")
        if new == old:
            return bid
        check_terms(new, cap_micros_per_mtok=cap_of(bid.grade, at=now), now=now)
        named = {row.grade.family.slug: row.grade for row in named_substitutes(bid)}
        grades = resolve_substitutes(asked, currency=bid.grade.currency, now=now, known=named)
        worst = worst_case_with_tax(new.steps, bid.organization.tax_ppm, adjustments_of(new.substitutes))
        reason = budget_reason(
            bid.id, budget_micros=new.max_total_micros_per_day, worst_case_micros=worst, now=now
        )
        _check_phase(bid, rounds, old, new, skip_reason=reason, now=now)
        if new.substitutes != old.substitutes:
            write_substitutes(bid, new.substitutes, grades, now=now)
        _write(bid, old, new, worst_case_micros=worst, skip_reason=reason, now=now, actor=actor)
        record_revision(
            bid,
            event=BidRevision.Event.REVISED,
            terms=new,
            held_micros=worst,
            rounds=rounds,
            now=now,
            actor=actor,
        )
        record_audit(
            organization_id=organization_id,
            actor=actor,
            action="bid.revise",
            object_kind="bid",
            object_id=bid.id,
            detail={"revision": bid.revision, "changed": sorted(changes)},
            now=now,
        )
    return bid


def _was_this(bid: Bid, revision: int, new: BidTerms, changes: BidChanges) -> bool:
    """Whether the bid's last revision is this very change: somebody got no answer and asks again."""
    if bid.revision != revision + 1:
        return False
    kept = {one.number: one for one in bid.revisions.filter(number__in=(revision, bid.revision))}
    if set(kept) != {revision, bid.revision} or kept[bid.revision].event != BidRevision.Event.REVISED:
        return False
    asked = {name: value for name, value in new.document().items() if name in changes}
    expected = {**kept[revision].terms, **asked}
    if "substitutes" in changes and not new.substitutes:
        # A document without substitutes has no such name.
        expected.pop("substitutes", None)
    return bool(kept[bid.revision].terms == expected)


def _check_phase(
    bid: Bid, rounds: Sequence[Auction], old: BidTerms, new: BidTerms, *, skip_reason: str, now: datetime
) -> None:
    phase = phase_of(rounds, bid=bid, now=now)
    if phase == Phase.FREE:
        return
    if phase == Phase.SEALED:
        raise MarketClosed(
            "The gate has closed: the bid cannot be changed until the result is published.", retry_after_s=1
        )
    worse = only_improves(new, old)
    if worse is None and skip_reason and not bid.skip_reason:
        worse = "max_total_micros_per_day"
    if worse is not None:
        raise MarketClosed(
            "In the no-cancel phase a bid may only improve: this would take some of it back.", field=worse
        )


def _write(
    bid: Bid,
    old: BidTerms,
    new: BidTerms,
    *,
    worst_case_micros: int,
    skip_reason: str,
    now: datetime,
    actor: Actor,
) -> None:
    if new.steps != old.steps:
        bid.steps.all().delete()
        write_steps(bid, new.steps)
        set_spot_max_rate(contract_id=bid.contract_id, max_rate_micros_per_mtok=new.steps[0][0])
    if asks_for_more(new.steps, old.steps) or takes_more(new.substitutes, old.substitutes):
        bid.priority_at = now
    if (new.steps, new.substitutes) != (old.steps, old.substitutes):
        set_substitute_max_rates(bid, new.steps[0][0])
    bid.min_fill_lots = new.min_fill_lots
    bid.all_or_none = new.all_or_none
    bid.max_total_micros_per_day = new.max_total_micros_per_day
    bid.valid_until = new.valid_until
    bid.skip_reason = skip_reason
    bid.revision += 1
    bid.save()
    # The ledger last. An award may have taken its part since: the hold is made whole again, or nothing changes.
    assert bid.ledger_hold is not None
    count_purchase(
        organization_id=bid.organization_id,
        ledger_hold_id=bid.ledger_hold.id,
        amount_micros=counted_awards_micros(bid) + worst_case_micros,
        now=now,
        actor=actor,
    )
    missing = worst_case_micros - bid.ledger_hold.amount_micros
    if missing:
        with steps_at_fault():
            change_hold(id=bid.ledger_hold.id, delta_micros=missing, now=now)
