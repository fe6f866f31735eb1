"""Top-ups that begin by themselves when a balance is low, and the notice of that.

Balances are looked at beside the path of requests: every two seconds, by the rows of those who asked for it. What is
decided is decided under the row's lock, so there is one top-up at a time, and never more in a month than its limit.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Sum

from marketplace.accounts.models import Organization, OrganizationRole
from marketplace.accounts.selectors import organization
from marketplace.accounts.services import SYSTEM, Actor, record_audit
from marketplace.billing.auto_top_up_models import AutoTopUp
from marketplace.billing.models import ProcessorOperation, ProcessorPayer, TopUp
from marketplace.billing.processor_models import COLLECTIONS
from marketplace.billing.processors.registry import payment_processor
from marketplace.billing.services.collecting import run_collection
from marketplace.billing.services.top_ups import begin_top_up, check_top_up_amount, most_top_up_micros
from marketplace.errors import Conflict, Forbidden, InvalidInput
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import balance
from marketplace.webhooks.services import record_event
from pricing.months import calendar_month

logger = logging.getLogger(__name__)

MOST_FAILURES: Final = 3
FIRST_PAUSE: Final = timedelta(minutes=15)
# The limit of a month, in top-ups of the most that is charged at once.
MOST_MONTHLY_TOP_UPS: Final = 1_000

# Of the rows that people made, those with something to do; each balance by its unique index. In no order, so that rows
# which wait long keep nobody from being looked at.
_DUE: Final = """
SELECT w.id FROM billing_autotopup w
  LEFT JOIN ledger_ledgeraccount a
    ON a.organization_id = w.organization_id AND a.kind = 'prepaid' AND a.currency = w.currency
   AND a.reference_id IS NULL
 CROSS JOIN LATERAL (SELECT coalesce(a.credits_posted_micros + a.overdraft_limit_micros - a.debits_posted_micros
        - a.debits_pending_micros, 0) < w.threshold_micros AS is_low) b
 WHERE (w.running_id IS NOT NULL OR b.is_low <> (w.low_since IS NOT NULL)
    OR (b.is_low AND w.status = 'active' AND w.next_attempt_at <= %(now)s))
   AND CASE WHEN %(one)s::uuid IS NOT NULL THEN w.organization_id = %(one)s
       ELSE NOT EXISTS (SELECT FROM accounts_organizationclock c WHERE c.organization_id = w.organization_id) END
 ORDER BY w.running_id IS NOT NULL, random() LIMIT %(limit)s
"""


class NoSavedCard(Conflict):
    """A card is charged without the buyer only where he has left one."""

    code = "no_saved_card"


def auto_top_up_of(organization_id: UUID) -> AutoTopUp:
    """What the organization has set; an unsaved row that is off, with zeros, where it never did."""
    found = AutoTopUp.objects.filter(organization_id=organization_id).first()
    return found or AutoTopUp(
        organization_id=organization_id,
        currency=settings.MARKET_CURRENCY,
        threshold_micros=0,
        amount_micros=0,
        monthly_limit_micros=0,
    )


@transaction.atomic
def set_auto_top_up(
    *,
    organization_id: UUID,
    enabled: bool,
    threshold_micros: int,
    amount_micros: int,
    monthly_limit_micros: int,
    now: datetime,
    actor: Actor,
) -> AutoTopUp:
    """Tell when the free prepaid balance falls below the threshold and, when enabled, top it up by the amount then.

    All automatic top-ups of a UTC calendar month together stay within the monthly limit. Setting it again forgets
    declines. Micros. Raises InvalidInput (threshold_micros, amount_micros, monthly_limit_micros), NoSavedCard,
    Forbidden.
    """
    if not organization(organization_id).has_role(OrganizationRole.BUYER):
        raise Forbidden("only a buyer has a prepaid balance")
    check_top_up_amount(amount_micros)
    most = most_top_up_micros()
    if not 0 < threshold_micros <= most:
        raise InvalidInput(f"must be between 1 and {most}", field="threshold_micros")
    if not amount_micros <= monthly_limit_micros <= MOST_MONTHLY_TOP_UPS * most:
        raise InvalidInput("must be one top-up at least", field="monthly_limit_micros")
    if enabled and not _has_card(organization_id):
        raise NoSavedCard("save a card first: it is charged without you")
    terms = {
        "status": AutoTopUp.Status.ACTIVE if enabled else AutoTopUp.Status.OFF,
        "threshold_micros": threshold_micros,
        "amount_micros": amount_micros,
        "monthly_limit_micros": monthly_limit_micros,
        "failures": 0,
        "stopped_reason": "",
        "next_attempt_at": now,
        "changed_at": now,
    }
    made, _ = AutoTopUp.objects.select_for_update().update_or_create(
        organization_id=organization_id,
        defaults=terms,
        create_defaults={**terms, "currency": settings.MARKET_CURRENCY, "created_at": now},
    )
    record_audit(
        organization_id=organization_id,
        actor=actor,
        action="auto_top_up.set",
        object_kind="auto_top_up",
        object_id=made.id,
        detail={
            "enabled": enabled,
            "threshold_micros": threshold_micros,
            "amount_micros": amount_micros,
            "monthly_limit_micros": monthly_limit_micros,
        },
        now=now,
    )
    return made


def top_up_low_balances(*, now: datetime, limit: int = 100, organization_id: UUID | None = None) -> int:
    """Look at every balance that is due to be looked at, tell and top up; how many top-ups were begun.

    Safe to run twice at once and to die anywhere: what was begun is finished by the sweeper of the processor's
    operations, and its end is seen at the next look. Of organizations that keep real time, or of one, at its own time.
    """
    with connection.cursor() as cursor:
        cursor.execute(_DUE, {"now": now, "limit": limit, "one": organization_id})
        due = [row[0] for row in cursor.fetchall()]
    begun = 0
    for watch_id in due:
        try:
            collection_id = _look(watch_id, now=now)
            if collection_id is not None:
                begun += 1
                run_collection(operation=ProcessorOperation.objects.get(pk=collection_id), now=now)
                _look(watch_id, now=now)
        except Exception:
            # One account that cannot be looked at must not keep the others dry.
            logger.exception("balance not looked at", extra={"auto_top_up_id": str(watch_id)})
    return begun


@transaction.atomic
def _look(watch_id: UUID, *, now: datetime) -> UUID | None:
    """One look under the row's lock; the collection to run now, if one is begun."""
    watch = AutoTopUp.objects.select_for_update().get(pk=watch_id)
    _take_end(watch, now=now)
    free = balance(
        organization_id=watch.organization_id, kind=AccountKind.PREPAID, currency=watch.currency
    ).available_micros
    if free >= watch.threshold_micros:
        watch.low_since = None
    elif watch.low_since is None:
        watch.low_since = now
        _tell_low(watch, free, now=now)
    collection = None
    is_active = (
        watch.status == AutoTopUp.Status.ACTIVE and watch.organization.status != Organization.Status.SUSPENDED
    )
    if is_active and watch.low_since and watch.running_id is None and watch.next_attempt_at <= now:
        collection = _begin(watch, now=now)
    watch.save()
    return collection


def _take_end(watch: AutoTopUp, *, now: datetime) -> None:
    """What became of the top-up under way."""
    if watch.running_id is None:
        return
    running = TopUp.objects.get(pk=watch.running_id)
    if running.status == TopUp.Status.PENDING:
        return
    watch.running = None
    if running.status == TopUp.Status.SUCCEEDED:
        watch.failures = 0
        return
    collection = ProcessorOperation.objects.filter(subject_id=running.id, kind__in=COLLECTIONS).first()
    _fail(watch, (collection and collection.reason) or "declined", now=now)


def _fail(watch: AutoTopUp, reason: str, *, now: datetime) -> None:
    """15 minutes after the first decline, an hour after the second; after the third it stops."""
    watch.failures += 1
    watch.next_attempt_at = now + FIRST_PAUSE * 4 ** (watch.failures - 1)
    if watch.failures >= MOST_FAILURES:
        _stop(watch, reason)
    _tell_failed(watch, reason, now=now)


def _stop(watch: AutoTopUp, reason: str) -> None:
    if watch.status == AutoTopUp.Status.ACTIVE:
        watch.status, watch.stopped_reason = AutoTopUp.Status.STOPPED, reason[:200]


def _begin(watch: AutoTopUp, *, now: datetime) -> UUID | None:
    month = calendar_month(now)
    spent = TopUp.objects.filter(
        auto_top_up=watch, created_at__gte=month.start, created_at__lt=month.end
    ).exclude(status=TopUp.Status.FAILED)
    if (
        spent.aggregate(sum=Sum("amount_micros"))["sum"] or 0
    ) + watch.amount_micros > watch.monthly_limit_micros:
        # Nothing more this month; the look at the balance itself goes on.
        watch.next_attempt_at = month.end
        return None
    if not _has_card(watch.organization_id):
        _stop(watch, "no saved card")
        _tell_failed(watch, "no saved card", now=now)
        return None
    watch.begun += 1
    made = begin_top_up(
        top_up_id=derived_id(watch.id, f"top_up:{watch.begun}"),
        organization_id=watch.organization_id,
        amount_micros=watch.amount_micros,
        on_page=False,
        auto_top_up_id=watch.id,
        now=now,
        actor=SYSTEM,
    )
    watch.running = made
    return ProcessorOperation.objects.values_list("id", flat=True).get(
        subject_id=made.id, kind__in=COLLECTIONS
    )


def _tell_low(watch: AutoTopUp, free_micros: int, *, now: datetime) -> None:
    record_event(
        organization_id=watch.organization_id,
        event_type="balance.low",
        fact_id=derived_id(watch.id, f"low:{now.isoformat()}"),
        data={
            "currency": watch.currency,
            "available_micros": free_micros,
            "threshold_micros": watch.threshold_micros,
            "auto_top_up": watch.status,
        },
        now=now,
    )


def _tell_failed(watch: AutoTopUp, reason: str, *, now: datetime) -> None:
    detail = {"reason": reason, "failures": watch.failures, "auto_top_up": watch.status}
    record_event(
        organization_id=watch.organization_id,
        event_type="auto_top_up.failed",
        fact_id=derived_id(watch.id, f"failed:{watch.begun}:{watch.failures}:{now.isoformat()}"),
        data={**detail, "currency": watch.currency, "amount_micros": watch.amount_micros},
        now=now,
    )
    record_audit(
        organization_id=watch.organization_id,
        actor=SYSTEM,
        action="auto_top_up.failed",
        object_kind="auto_top_up",
        object_id=watch.id,
        detail=detail,
        now=now,
    )


def _has_card(organization_id: UUID) -> bool:
    processor = payment_processor()
    if not processor.needs_card:
        return True
    payers = ProcessorPayer.objects.filter(organization_id=organization_id, processor=processor.name)
    return payers.exclude(payment_method_id="").exists()
