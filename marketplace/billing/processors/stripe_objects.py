"""Stripe's objects in the market's words: pure, no calls."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from marketplace.billing.processors.base import AccountState, Notice, Outcome, OutcomeStatus

_INTENTS: Final = {
    "succeeded": OutcomeStatus.SUCCEEDED,
    "processing": OutcomeStatus.PENDING,
    "requires_action": OutcomeStatus.ACTION_REQUIRED,
    "canceled": OutcomeStatus.FAILED,
}
_REFUNDS: Final = {
    "succeeded": OutcomeStatus.SUCCEEDED,
    "failed": OutcomeStatus.FAILED,
    "canceled": OutcomeStatus.FAILED,
}
_PAYOUTS: Final = {
    "paid": OutcomeStatus.SUCCEEDED,
    "failed": OutcomeStatus.FAILED,
    "canceled": OutcomeStatus.FAILED,
}


def outcome_of(kind: str, found: Any) -> Outcome:
    """What an object's state means. What only has to exist (customer, account, transfer, reversal) has succeeded."""
    match kind:
        case "charge":
            status = _INTENTS.get(found.status, OutcomeStatus.PENDING)
            action = found.next_action
            url = action.redirect_to_url.url if action and action.type == "redirect_to_url" else ""
            charge = found.latest_charge or "" if status == OutcomeStatus.SUCCEEDED else ""
            reason = "canceled" if status == OutcomeStatus.FAILED else ""
            return Outcome(status, found.id, reason=reason, action_url=url, charge=charge)
        case "refund":
            status = _REFUNDS.get(found.status, OutcomeStatus.PENDING)
            return Outcome(status, found.id, reason=found.failure_reason or "" if status == "failed" else "")
        case "payout":
            status = _PAYOUTS.get(found.status, OutcomeStatus.PENDING)
            return Outcome(status, found.id, reason=found.failure_code or "")
    return Outcome(OutcomeStatus.SUCCEEDED, found.id)


def session_outcome(session: Any, *, intent: Any = None, method: Any = None) -> Outcome:
    """A hosted page: open, it waits for the buyer; complete, it has made a payment or a saved card."""
    if session.status == "open":
        return Outcome(OutcomeStatus.ACTION_REQUIRED, session.id, action_url=session.url or "")
    if session.status == "expired":
        return Outcome(OutcomeStatus.FAILED, session.id, reason="expired")
    facts = {}
    if method is not None and method.customer:
        facts = {"payment_method": method.id, "brand": method.card.brand, "last4": method.card.last4} | {
            "expires": f"{method.card.exp_year}-{method.card.exp_month:02d}"
        }
    if intent is None:
        return Outcome(OutcomeStatus.SUCCEEDED, session.id, facts=facts)
    if session.payment_status != "paid":
        return Outcome(OutcomeStatus.PENDING, session.id)
    return Outcome(OutcomeStatus.SUCCEEDED, session.id, charge=intent.latest_charge or "", facts=facts)


def requirements_of(account: Any) -> AccountState:
    requirements = account.requirements
    due = [*(requirements.currently_due or []), *(requirements.past_due or [])] if requirements else []
    if requirements and requirements.disabled_reason and not due:
        due = [requirements.disabled_reason]
    transfers = getattr(account.capabilities, "transfers", None) == "active"
    return AccountState(
        account.id,
        bool(account.payouts_enabled),
        transfers,
        tuple(dict.fromkeys(due)),
        _bank_account_of(account),
    )


def _bank_account_of(account: Any) -> str:
    """The default of each currency: `ba_1AbC ****6789`, joined by commas."""
    listed = _mapping(getattr(account, "external_accounts", None)).get("data") or []
    banks = (_mapping(one) for one in listed)
    defaults = sorted(
        f"{one['id']} ****{one.get('last4') or ''}" for one in banks if one.get("default_for_currency")
    )
    return ", ".join(defaults)[:200]


def found_in(found: Any, operation_id: UUID) -> bool:
    return operation_in(_mapping(found.metadata)) == operation_id


def notice_of(event: Any) -> Notice:
    """Of an event as the SDK gives it, or as it came in a webhook's JSON."""
    event = _mapping(event)
    subject = _mapping(_mapping(event["data"])["object"])
    return Notice(
        event_id=event["id"],
        event_type=event["type"],
        object_id=str(subject.get("id") or ""),
        account_id=str(event.get("account") or ""),
        operation_id=operation_in(_mapping(subject.get("metadata"))),
        occurred_at=datetime.fromtimestamp(event["created"], UTC),
    )


def operation_in(metadata: Mapping[str, Any]) -> UUID | None:
    """Our own id as we wrote it into an object; None where it is not ours."""
    try:
        return UUID(str(metadata.get("operation", "")))
    except ValueError:
        return None


def _mapping(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    return dict(value) if isinstance(value, dict) else dict(value.to_dict())
