"""Credit that is burned before an organization's own balance: given, drawn at settlement, ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet

from marketplace.accounts.models import Organization
from marketplace.accounts.organization_clocks import keeping
from marketplace.accounts.selectors import operator_organization
from marketplace.accounts.services import SYSTEM, Actor, record_audit
from marketplace.errors import InvalidInput, NotFound
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind, Grant, GrantRefund
from marketplace.ledger.services import account_id, call, check_amount, lock_books

WHOLE_PPM: Final = 1_000_000
PRIORITIES: Final = range(1_000)


@dataclass(frozen=True, slots=True)
class GrantTerms:
    """`priority`: low is burned first. `grade_id`: what it may be spent on, None for all.

    `cost_basis_ppm`: the share of the amount that the organization pays for a purchased one, from its prepaid balance.
    """

    kind: str
    amount_micros: int
    currency: str
    cost_basis_ppm: int = 0
    priority: int = 100
    grade_id: UUID | None = None
    expires_at: datetime | None = None


def give_grant(
    *,
    id: UUID,  # noqa: A002
    organization_id: UUID,
    terms: GrantTerms,
    now: datetime,
    actor: Actor = SYSTEM,
) -> Grant:
    """Give it once: the same id on the same terms again gives nothing more.

    Raises InvalidInput naming the field, NotFound (organization), Conflict (another grant of this id), and
    InsufficientFunds where the prepaid balance does not cover what a purchased one costs.
    """
    check_amount(terms.amount_micros, least=1, field="amount_micros")
    if terms.kind not in Grant.Kind.values:
        raise InvalidInput("must be granted or purchased", field="kind")
    if not 0 <= terms.cost_basis_ppm <= (WHOLE_PPM if terms.kind == Grant.Kind.PURCHASED else 0):
        raise InvalidInput("lies between 0 and 1000000, and is 0 for what is given", field="cost_basis_ppm")
    if terms.priority not in PRIORITIES:
        raise InvalidInput("must lie between 0 and 999", field="priority")
    if terms.expires_at is not None and terms.expires_at <= now:
        raise InvalidInput("must lie in the future", field="expires_at")
    if not Organization.objects.filter(pk=organization_id).exists():
        raise NotFound("no such organization", field="organization_id")
    with transaction.atomic():
        _lock(organization_id, terms.currency, AccountKind.OPERATOR, now=now)
        fresh = call(
            "SELECT ledger_give_grant(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (
                id,
                organization_id,
                operator_organization().id,
                str(terms.kind),
                terms.currency,
                terms.amount_micros,
                terms.cost_basis_ppm,
                terms.priority,
                terms.grade_id,
                terms.expires_at,
                derived_id(id, "paid"),
                derived_id(id, "given"),
                now,
            ),
        )
        grant = Grant.objects.get(pk=id)
        if fresh:
            _audit(grant, "grant.given", terms.amount_micros, actor=actor, now=now)
    return grant


def revoke_grant(*, grant_id: UUID, now: datetime, actor: Actor = SYSTEM) -> int:
    """Take back what is free of it, in micros: what was paid for to the prepaid balance, the rest to the operator.

    What open holds have of it they keep. Again takes back what has become free meanwhile. Raises NotFound, GrantEnded.
    """
    with transaction.atomic():
        revoked = _end(grant_id, Grant.Status.REVOKED, now=now)
        grant = Grant.objects.get(pk=grant_id)
        _audit(grant, "grant.revoked", revoked, actor=actor, now=now)
    return revoked


def refund_grant(
    *,
    id: UUID,  # noqa: A002
    grant_id: UUID,
    amount_micros: int | None,
    now: datetime,
    actor: Actor = SYSTEM,
) -> GrantRefund:
    """Give credit back that is not used: what was paid for it to the prepaid balance, the rest to the operator.

    `amount_micros` is of the credit, None for all that is free; what holds have of it they keep. The same id on the
    same terms again gives nothing more. Raises NotFound, GrantEnded, TransferConflict (the id's refund was another),
    InvalidInput (amount_micros) for more than is unused.
    """
    if amount_micros is not None:
        check_amount(amount_micros, least=1, field="amount_micros")
    grant = Grant.objects.filter(pk=grant_id).first()
    if grant is None:
        raise NotFound("There is no such grant.")
    with transaction.atomic():
        is_fresh = call(
            "SELECT ledger_refund_grant(%s, %s, %s, %s, %s, %s, %s)",
            (
                id,
                grant_id,
                amount_micros,
                operator_organization().id,
                derived_id(id, "paid"),
                derived_id(id, "rest"),
                now,
            ),
        )
        refund = GrantRefund.objects.get(pk=id)
        if is_fresh:
            _audit(grant, "grant.refunded", refund.amount_micros, actor=actor, now=now)
    return refund


def refundable(grant: Grant, *, amount_micros: int | None = None) -> int:
    """What a refund of so much of its credit, or of all that is free, would give back of what was paid, in micros."""
    before = sum(grant.refunds.values_list("amount_micros", flat=True))
    amount = grant.free_micros if amount_micros is None else amount_micros
    return paid_part(before + amount, grant.cost_basis_ppm) - paid_part(before, grant.cost_basis_ppm)


def paid_part(credit_micros: int, cost_basis_ppm: int) -> int:
    """What so much credit cost, rounded down. `sql/grant_refunds.sql` computes the same."""
    return credit_micros * cost_basis_ppm // WHOLE_PPM


def expire_grants(*, now: datetime, limit: int = 1_000, organization_id: UUID | None = None) -> int:
    """Post what is free of up to `limit` expired grants as breakage; how many.

    Again: what open holds have given back since, also of revoked ones. Of all organizations that keep real time, or of
    one, at its own time.
    """
    grants = keeping(Grant.objects.all(), organization_id)
    due = grants.filter(free_micros__gt=0, expires_at__lte=now).exclude(status=Grant.Status.REVOKED)
    ids = list(due.order_by("expires_at").values_list("id", flat=True)[:limit])
    for grant_id in ids:
        _end(grant_id, Grant.Status.EXPIRED, now=now)
    revoked = grants.filter(free_micros__gt=0, status=Grant.Status.REVOKED)
    for grant_id in revoked.values_list("id", flat=True)[:limit]:
        _end(grant_id, Grant.Status.REVOKED, now=now)
    return len(ids)


def draw_grants(*, hold_id: UUID, amount_micros: int, now: datetime) -> int:
    """Before a burning hold is captured by `amount_micros`: move what its grants pay of it to the hold's account, in
    order, and give the rest back to them; how much was moved. Raises HoldConflict when the hold has ended.
    """
    check_amount(amount_micros, least=0, field="amount_micros")
    drawn: int = call("SELECT ledger_draw_grants(%s, %s, %s)", (hold_id, amount_micros, now))
    return drawn


def grants_of(organization_id: UUID) -> QuerySet[Grant]:
    return Grant.objects.filter(organization_id=organization_id).order_by("-id")


def grant_credit(*, organization_id: UUID, currency: str, now: datetime) -> int:
    """What is free of the open grants, in micros, whatever they may be spent on."""
    found = grants_of(organization_id).filter(status=Grant.Status.OPEN, currency=currency, free_micros__gt=0)
    return sum(grant.free_micros for grant in found if grant.expires_at is None or grant.expires_at > now)


def _end(grant_id: UUID, status: Grant.Status, *, now: datetime) -> int:
    grant = Grant.objects.select_related("account").filter(pk=grant_id).first()
    if grant is None:
        raise NotFound("no such grant")
    # Once more for each time that a hold gives back: what was posted before has grown the account's debits.
    round_ = f"{status}:{grant.account.debits_posted_micros}"
    kind = AccountKind.OPERATOR if status == Grant.Status.REVOKED else AccountKind.BREAKAGE
    with transaction.atomic():
        _lock(grant.organization_id, grant.currency, kind, now=now)
        posted: int = call(
            "SELECT ledger_end_grant(%s, %s, %s, %s, %s, %s)",
            (
                grant_id,
                str(status),
                operator_organization().id,
                derived_id(grant_id, f"{round_}:first"),
                derived_id(grant_id, f"{round_}:second"),
                now,
            ),
        )
    return posted


def _lock(organization_id: UUID, currency: str, kind: AccountKind, *, now: datetime) -> None:
    """What is paid for and what the market gives are two postings between the grant and two accounts."""
    owners = ((organization_id, AccountKind.PREPAID), (operator_organization().id, kind))
    accounts = [
        account_id(organization_id=owner, kind=of, currency=currency, now=now) for owner, of in owners
    ]
    lock_books(grants_of=[organization_id], accounts=accounts)


def _audit(grant: Grant, action: str, amount_micros: int, *, actor: Actor, now: datetime) -> None:
    record_audit(
        organization_id=grant.organization_id,
        actor=actor,
        action=action,
        object_kind="grant",
        object_id=grant.id,
        detail={"kind": grant.kind, "amount_micros": amount_micros},
        now=now,
    )
