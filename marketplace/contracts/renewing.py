"""Committed contracts that renew themselves: a fresh quote of the same terms a day before the end, and its acceptance.

Decided within the last day of a term. Notice of an early end and amendments are a day ahead at least, so the end of a
contract that is renewed does not move any more: the one that follows begins where it ends.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.db import transaction

from marketplace.accounts.organization_clocks import billing_now, keeping
from marketplace.accounts.services import Actor, record_audit
from marketplace.contracts import firm_capacity
from marketplace.contracts.committed import accept_quote
from marketplace.contracts.ending import LEAST_NOTICE
from marketplace.contracts.history import record_event
from marketplace.contracts.models import Contract, ContractEvent, ContractKind, Quote, Renewal
from marketplace.contracts.quoting import GATE_PPM, request_quote
from marketplace.contracts.suspending import RUNNING
from marketplace.contracts.unpaid import in_utc
from marketplace.errors import Conflict, DomainError, InvalidInput, NotFound
from marketplace.ids import derived_id
from marketplace.isolating import for_each
from marketplace.webhooks.services import record_event as tell
from pricing.services import MAX_RATE_MICROS_PER_MTOK
from pricing.units import PPM, decimal_string

RENEWED_AHEAD: Final = LEAST_NOTICE
RETRIED_EVERY: Final = timedelta(hours=1)
# The last try leaves a minute for a worker that is late.
_LAST_TRY: Final = timedelta(minutes=1)
_RATE_DECIMALS: Final = 6


class RateAboveHighest(DomainError):
    """Today's rate for the same volume is more than the buyer set."""

    code = "rate_above_highest"
    http_status = 409
    title = "The rate is above the highest that was set"


class TermsChanged(DomainError):
    """The market has longer notice or a higher fee for new contracts now: nobody agreed to that."""

    code = "terms_changed"
    http_status = 409
    title = "The market's terms have changed"


class NotActive(DomainError):
    """Who is behind with the one contract gets no second one by itself."""

    code = "contract_suspended"
    http_status = 409
    title = "The contract is suspended"


def decided_from(contract: Contract) -> datetime:
    """When a fresh quote is asked for first."""
    assert contract.ends_at is not None
    return contract.ends_at - RENEWED_AHEAD


def decided_until(contract: Contract) -> datetime:
    """The gate of the first delivery period after the term: then it is not renewed any more."""
    assert contract.ends_at is not None
    length = timedelta(seconds=settings.DELIVERY_PERIOD_S)
    return contract.ends_at - length + length * GATE_PPM // PPM


@transaction.atomic
def set_renewal(
    *,
    organization_id: UUID,
    contract_id: UUID,
    renews: bool,
    max_rate_micros_per_mtok: int | None,
    now: datetime,
    actor: Actor,
) -> Renewal:
    """Turn a contract's renewal on, at this rate at most, or off; until it is decided. Again sets it again.

    Raises NotFound, InvalidInput (max_rate_micros_per_mtok), or Conflict: no committed contract that runs to the end
    of its term, or decided already.
    """
    _check_rate(renews, max_rate_micros_per_mtok)
    contract = (
        Contract.objects.select_for_update(of=("self",), no_key=True)
        .filter(pk=contract_id, organization_id=organization_id)
        .first()
    )
    if contract is None:
        raise NotFound("There is no such contract.")
    own_now = billing_now(organization_id, now)
    before = Renewal.objects.filter(pk=contract.pk).first()
    _check_settable(contract, before, own_now)
    values: dict[str, Any] = {
        "status": Renewal.Status.ON if renews else Renewal.Status.OFF,
        "max_rate_micros_per_mtok": max_rate_micros_per_mtok,
        "next_attempt_at": max(own_now, decided_from(contract)) if renews else None,
        "problem": "",
        "problem_detail": "",
        "actor_kind": actor.kind,
        "actor_id": actor.id,
        "changed_at": own_now,
    }
    renewal, _ = Renewal.objects.update_or_create(contract=contract, defaults=values)
    record_audit(
        organization_id=organization_id,
        actor=actor,
        action="contract.renewal_set",
        object_kind="contract",
        object_id=contract.id,
        detail={"renews": renews, "max_rate_micros_per_mtok": max_rate_micros_per_mtok},
        now=now,
    )
    return renewal


def renew_due(
    *, now: datetime, organization_id: UUID | None = None, real_now: datetime | None = None
) -> list[UUID]:
    """Decide every renewal that is due, each in a transaction of its own; the contracts that follow.

    Of all organizations that keep real time, or of one, at its own; `real_now` is then the market's. Again, or from two
    workers at once, changes nothing.
    """
    due = keeping(Renewal.objects.all(), organization_id, field="contract__organization_id").filter(
        status=Renewal.Status.ON, next_attempt_at__lte=now
    )
    made: list[UUID] = []

    def renew(contract_id: UUID) -> None:
        successor = renew_contract(contract_id=contract_id, now=now, real_now=real_now or now)
        if successor is not None:
            made.append(successor.id)

    ids = list(due.order_by("next_attempt_at", "contract_id").values_list("contract_id", flat=True))
    for_each("contracts.renew", ids, renew, key=str, now=now, strict=organization_id is not None)
    return made


@transaction.atomic
def renew_contract(*, contract_id: UUID, now: datetime, real_now: datetime) -> Contract | None:
    """Renew one contract if that is due, or write down and tell why not; the contract that follows it.

    A try that fails is made again every hour until the gate of the first period closes. Whoever comes second, or after
    the buyer has turned it off, finds nothing to do.
    """
    contract = (
        Contract.objects.select_for_update(of=("self",), no_key=True)
        .select_related("grade__family", "quote")
        .get(pk=contract_id)
    )
    renewal = Renewal.objects.select_for_update().get(pk=contract_id)
    if (
        renewal.status != Renewal.Status.ON
        or renewal.next_attempt_at is None
        or renewal.next_attempt_at > now
    ):
        return None
    if now >= decided_until(contract) or contract.status not in RUNNING:
        _give_up(contract, renewal, now)
        return None
    try:
        with transaction.atomic():
            successor = _follow(contract, renewal, now, real_now)
    except DomainError as error:
        _postpone(contract, renewal, error, now)
        return None
    renewal.status, renewal.next_attempt_at = Renewal.Status.RENEWED, None
    renewal.problem, renewal.problem_detail = "", ""
    renewal.attempts += 1
    renewal.save()
    # It renews in its turn, on the same condition, until somebody turns it off.
    Renewal.objects.create(
        contract=successor,
        status=Renewal.Status.ON,
        max_rate_micros_per_mtok=renewal.max_rate_micros_per_mtok,
        next_attempt_at=decided_from(successor),
        actor_kind=renewal.actor_kind,
        actor_id=renewal.actor_id,
        changed_at=now,
    )
    _tell_renewed(contract, renewal, successor, now)
    return successor


def _follow(contract: Contract, renewal: Renewal, now: datetime, real_now: datetime) -> Contract:
    """The quote and its acceptance, or the DomainError that says why not."""
    if contract.status != Contract.Status.ACTIVE:
        raise NotActive("The contract is suspended: pay it, and it is tried again.")
    terms = contract.quote
    assert terms is not None
    assert contract.ends_at is not None
    assert renewal.max_rate_micros_per_mtok is not None
    quote = request_quote(
        organization_id=contract.organization_id,
        grade_slug=contract.grade.family.slug,
        firm_lots=terms.firm_lots,
        volume_lots=terms.volume_lots,
        months=terms.months,
        starts_at=contract.ends_at,
        take_share_ppm=terms.take_share_ppm,
        overage_policy=contract.overage_policy,
        max_rate_micros_per_mtok=contract.max_rate_micros_per_mtok,
        payment=contract.payment,
        rollover_share_ppm=terms.rollover_share_ppm,
        rollover_cap_lots=terms.rollover_cap_lots,
        own=firm_capacity.taken_by_host(contract.id),
        # Beyond the hour in which the one ends and the other begins nothing is his.
        own_until=firm_capacity.first_whole_hour(contract.ends_at),
        own_now=now,
        now=real_now,
    )
    _check_quote(contract, renewal.max_rate_micros_per_mtok, quote)
    return accept_quote(
        organization_id=contract.organization_id,
        quote_id=quote.id,
        operation_id=derived_id(contract.id, "renewal"),
        renews=contract,
        now=real_now,
        actor=Actor(renewal.actor_kind, renewal.actor_id),
    )


def _check_quote(contract: Contract, highest: int, quote: Quote) -> None:
    if quote.rate_micros_per_mtok > highest:
        rates = [decimal_string(rate, _RATE_DECIMALS) for rate in (quote.rate_micros_per_mtok, highest)]
        raise RateAboveHighest(f"The rate is {rates[0]} per Mtok now; the highest you set is {rates[1]}.")
    if quote.notice_days > (contract.notice_days or 0) or quote.termination_fee_ppm > (
        contract.termination_fee_ppm or 0
    ):
        raise TermsChanged("New contracts have a longer notice or a higher fee for an early end now.")


def _postpone(contract: Contract, renewal: Renewal, error: DomainError, now: datetime) -> None:
    last = decided_until(contract) - _LAST_TRY
    soon = now + RETRIED_EVERY
    if soon > last:
        soon = last if now < last else decided_until(contract)
    told_before = renewal.problem == error.code
    renewal.problem, renewal.problem_detail = error.code, str(error.detail)[:300]
    renewal.next_attempt_at = soon
    renewal.attempts += 1
    renewal.save()
    if not told_before:
        _tell_failed(contract, renewal, now)


def _give_up(contract: Contract, renewal: Renewal, now: datetime) -> None:
    renewal.status, renewal.next_attempt_at = Renewal.Status.NOT_RENEWED, None
    if not renewal.problem:
        renewal.problem = "too_late"
        renewal.problem_detail = "The gate of the first delivery period closed before it was decided."
    renewal.save()
    record_event(
        contract.id,
        ContractEvent.Kind.NOT_RENEWED,
        contract.status,
        contract.status,
        reason=renewal.problem_detail[:200],
        now=now,
        detail={"problem": renewal.problem},
    )
    _tell_failed(contract, renewal, now)


def _tell_renewed(contract: Contract, renewal: Renewal, successor: Contract, now: datetime) -> None:
    assert successor.rate is not None
    assert successor.ends_at is not None
    rate = successor.rate.micros_per_mtok
    record_event(
        contract.id,
        ContractEvent.Kind.RENEWED,
        contract.status,
        contract.status,
        reason="renewed",
        now=now,
        detail={"successor_id": str(successor.id), "rate_micros_per_mtok": rate},
    )
    tell(
        organization_id=contract.organization_id,
        event_type="contract.renewed",
        fact_id=derived_id(contract.id, "renewed"),
        data={
            "contract_id": str(contract.id),
            "successor_id": str(successor.id),
            "rate_micros_per_mtok": rate,
            "max_rate_micros_per_mtok": renewal.max_rate_micros_per_mtok,
            "currency": successor.currency,
            "starts_at": in_utc(successor.starts_at),
            "ends_at": in_utc(successor.ends_at),
        },
        now=now,
    )


def _tell_failed(contract: Contract, renewal: Renewal, now: datetime) -> None:
    tell(
        organization_id=contract.organization_id,
        event_type="contract.renewal_failed",
        fact_id=derived_id(contract.id, f"renewal:{renewal.status}:{renewal.problem}:{renewal.attempts}"),
        data={
            "contract_id": str(contract.id),
            "status": "retrying" if renewal.status == Renewal.Status.ON else "not_renewed",
            "reason": renewal.problem,
            "detail": renewal.problem_detail,
            "decided_until": in_utc(decided_until(contract)),
        },
        now=now,
    )


def _check_rate(renews: bool, rate: int | None) -> None:
    field = "max_rate_micros_per_mtok"
    if not renews:
        if rate is not None:
            raise InvalidInput("Only a contract that renews has a highest rate for it.", field=field)
        return
    if rate is None:
        raise InvalidInput("A contract that renews needs your highest rate.", field=field)
    if type(rate) is not int or not 1 <= rate <= MAX_RATE_MICROS_PER_MTOK:
        raise InvalidInput(f"It must be from 1 to {MAX_RATE_MICROS_PER_MTOK}.", field=field)


def _check_settable(contract: Contract, before: Renewal | None, now: datetime) -> None:
    if contract.kind != ContractKind.COMMITTED or contract.status not in RUNNING:
        raise Conflict("Only a committed contract that runs can renew.")
    if before is not None and before.status in (Renewal.Status.RENEWED, Renewal.Status.NOT_RENEWED):
        raise Conflict("It is decided already whether this contract renews.")
    early = (ContractEvent.Kind.TERMINATED, ContractEvent.Kind.AMENDED)
    if ContractEvent.objects.filter(contract=contract, kind__in=early).exists():
        raise Conflict("A contract that ends before its term does not renew.")
    if now >= decided_until(contract):
        raise Conflict("The gate of the first delivery period after its term has closed.")
