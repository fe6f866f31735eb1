"""Stripe behind the processor's interface: every call made here, with our key, 15 s at most, no retries of the SDK's.

Sources: the idempotency rules are Stripe's "Idempotent requests" (a stored 500 is replayed under its key, keys live at
least 24 h); the money flow is "Separate charges and transfers" with `source_transaction` and manual payouts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import stripe

from marketplace.billing.processors.base import (
    AccountState,
    DisputeState,
    Instruction,
    Movement,
    Notice,
    Outcome,
    OutcomeStatus,
    ProcessorBusy,
)
from marketplace.billing.processors.stripe_amounts import (
    charge_bounds_micros,
    micros_of,
    payout_step_micros,
    step_micros,
    unit_micros,
    units_of,
)
from marketplace.billing.processors.stripe_client import BoundedClient
from marketplace.billing.processors.stripe_objects import (
    found_in,
    notice_of,
    outcome_of,
    requirements_of,
    session_outcome,
)

# Objects come in this version's shape; the webhook endpoint is to be made with the same one.
API_VERSION: Final = "2026-10-28.endive"
# How far our clock and Stripe's may be apart where a list is asked for by time.
_CLOCK_SLACK: Final = timedelta(minutes=10)
_PAGE: Final = 100
_COLLECTIONS: Final = {"payer": "customers"}


class StripeProcessor:
    name = "stripe"
    needs_card = True
    step_micros = staticmethod(step_micros)
    payout_step_micros = staticmethod(payout_step_micros)
    charge_bounds_micros = staticmethod(charge_bounds_micros)

    def __init__(self, *, secret_key: str, api_base: str, timeout_s: float) -> None:
        self._http = BoundedClient(timeout_s=timeout_s)
        self._client: Any = stripe.StripeClient(
            secret_key,
            stripe_version=API_VERSION,
            base_addresses={"api": api_base},
            max_network_retries=0,
            http_client=self._http,
        ).v1

    # Doing ----------------------------------------------------------------------------------------------------

    def perform(self, instruction: Instruction) -> Outcome:
        work: Callable[[Instruction], Outcome] = getattr(self, f"_make_{instruction.kind}")
        with self._http.whole():
            return _asked(lambda: work(instruction))

    def _make_payer(self, given: Instruction) -> Outcome:
        params = {"description": f"organization {given.organization_id}", "metadata": _marks(given)}
        return outcome_of("payer", self._client.customers.create(params, _options(given)))

    def _make_account(self, given: Instruction) -> Outcome:
        params = {
            "type": "express",
            "country": given.terms["country"],
            "capabilities": {"transfers": {"requested": True}},
            # Automatic payouts would empty the account before a transfer can be reversed.
            "settings": {"payouts": {"schedule": {"interval": "manual"}}},
            "metadata": _marks(given),
        }
        return outcome_of("account", self._client.accounts.create(params, _options(given)))

    def _make_save_card(self, given: Instruction) -> Outcome:
        params = {
            "mode": "setup",
            "currency": given.currency.lower(),
            "customer": given.terms["payer"],
            "success_url": given.terms["success_url"],
            "cancel_url": given.terms["cancel_url"],
            "metadata": _marks(given),
            "setup_intent_data": {"metadata": _marks(given)},
        }
        return self._of_session(self._client.checkout.sessions.create(params, _options(given)))

    def _make_checkout(self, given: Instruction) -> Outcome:
        price = {
            "currency": given.currency.lower(),
            "unit_amount": _amount(given),
            "product_data": {"name": given.terms["description"]},
        }
        params = {
            "mode": "payment",
            "customer": given.terms["payer"],
            "success_url": given.terms["success_url"],
            "cancel_url": given.terms["cancel_url"],
            "line_items": [{"quantity": 1, "price_data": price}],
            "metadata": _marks(given),
            "payment_intent_data": {"metadata": _marks(given), "setup_future_usage": "off_session"},
        }
        return self._of_session(self._client.checkout.sessions.create(params, _options(given)))

    def _make_charge(self, given: Instruction) -> Outcome:
        params = {
            "amount": _amount(given),
            "currency": given.currency.lower(),
            "customer": given.terms["payer"],
            "payment_method": given.terms["payment_method"],
            "confirm": True,
            "off_session": True,
            "description": given.terms["description"],
            "metadata": _marks(given),
        }
        try:
            intent = self._client.payment_intents.create(params, _options(given))
        except stripe.CardError as error:
            refused: Any = error.error
            return self._of_intent(given, refused.payment_intent)
        return self._of_intent(given, intent)

    def _make_refund(self, given: Instruction) -> Outcome:
        params = {
            "charge": given.terms["charge"],
            "amount": _amount(given),
            "metadata": _marks(given),
        }
        return outcome_of("refund", self._client.refunds.create(params, _options(given)))

    def _make_transfer(self, given: Instruction) -> Outcome:
        params = {
            "amount": _amount(given),
            "currency": given.currency.lower(),
            "destination": given.terms["destination"],
            "transfer_group": str(given.operation_id),
            "metadata": _marks(given),
        }
        if given.terms.get("charge"):
            params["source_transaction"] = given.terms["charge"]
        return outcome_of("transfer", self._client.transfers.create(params, _options(given)))

    def _make_reversal(self, given: Instruction) -> Outcome:
        params = {"amount": _amount(given), "metadata": _marks(given)}
        transfer = given.terms["transfer"]
        return outcome_of(
            "reversal", self._client.transfers.reversals.create(transfer, params, _options(given))
        )

    def _make_payout(self, given: Instruction) -> Outcome:
        params = {
            "amount": _amount(given),
            "currency": given.currency.lower(),
            "metadata": _marks(given),
        }
        options = _options(given) | {"stripe_account": given.terms["destination"]}
        return outcome_of("payout", self._client.payouts.create(params, options))

    def _of_intent(self, given: Instruction, intent: Any) -> Outcome:
        """A refused card ends the intent, so that it cannot be paid later behind our back; 3-D Secure gets its link."""
        outcome = outcome_of("charge", intent)
        if intent.status != "requires_payment_method":
            return outcome
        refusal = intent.last_payment_error
        if refusal and refusal.code == "authentication_required":
            params = {
                "payment_method": given.terms["payment_method"],
                "return_url": given.terms["success_url"],
            }
            options = {"idempotency_key": f"{given.key}-on-session"}
            intent = self._client.payment_intents.confirm(intent.id, params, options)
            return outcome_of("charge", intent)
        self._client.payment_intents.cancel(intent.id, {"cancellation_reason": "abandoned"})
        reason = (refusal and (getattr(refusal, "decline_code", None) or refusal.code)) or "card_declined"
        return Outcome(OutcomeStatus.FAILED, intent.id, reason=reason)

    def _of_session(self, session: Any) -> Outcome:
        if session.status == "complete" and session.setup_intent:
            setup = self._client.setup_intents.retrieve(session.setup_intent)
            method = self._client.payment_methods.retrieve(setup.payment_method)
            return session_outcome(session, method=method)
        if session.status == "complete" and session.payment_intent:
            intent = self._client.payment_intents.retrieve(session.payment_intent)
            method = (
                self._client.payment_methods.retrieve(intent.payment_method)
                if intent.payment_method
                else None
            )
            return session_outcome(session, intent=intent, method=method)
        return session_outcome(session)

    def cancel(self, instruction: Instruction) -> Outcome:
        assert instruction.kind == "charge", instruction.kind

        def end() -> Outcome:
            intents, name = self._client.payment_intents, instruction.reference
            try:
                # Under no key of ours: again does no harm, and a stored failure would be repeated for a day.
                ended = intents.cancel(name, {"cancellation_reason": "abandoned"})
            except stripe.InvalidRequestError as error:
                if error.code != "payment_intent_unexpected_state":
                    raise
                ended = intents.retrieve(name)  # It has succeeded, or ended before; the bank is at it.
            return outcome_of("charge", ended)

        with self._http.whole():
            return _asked(end)

    # Looking up ---------------------------------------------------------------------------------------------------

    def state_of(self, instruction: Instruction) -> Outcome:
        def look() -> Outcome:
            reference, account = instruction.reference, instruction.terms.get("destination", "")
            match instruction.kind:
                case "charge":
                    return self._of_intent(instruction, self._client.payment_intents.retrieve(reference))
                case "checkout" | "save_card":
                    return self._of_session(self._client.checkout.sessions.retrieve(reference))
                case "payout":
                    payout = self._client.payouts.retrieve(reference, {}, {"stripe_account": account})
                    return outcome_of("payout", payout)
                case "reversal":
                    transfer = instruction.terms["transfer"]
                    return outcome_of(
                        "reversal", self._client.transfers.reversals.retrieve(transfer, reference)
                    )
                case kind:
                    return outcome_of(
                        kind, getattr(self._client, _COLLECTIONS.get(kind, f"{kind}s")).retrieve(reference)
                    )

        with self._http.whole():
            return _asked(look)

    def close_page(self, instruction: Instruction) -> Outcome:
        def close() -> Outcome:
            sessions = self._client.checkout.sessions
            try:
                return self._of_session(sessions.expire(instruction.reference))
            except stripe.InvalidRequestError:
                # Only an open one can be expired: it is complete, or has run out.
                return self._of_session(sessions.retrieve(instruction.reference))

        with self._http.whole():
            return _asked(close)

    def find(self, instruction: Instruction) -> Outcome | None:
        """Lists, not searches: a search lags behind what was just made, a list does not."""
        found: list[Any] = []

        def look() -> Outcome:
            for one in self._candidates(instruction):
                if found_in(one, instruction.operation_id):
                    found.append(one)
                    break
            else:
                return Outcome(OutcomeStatus.PENDING)
            if instruction.kind == "charge":
                return self._of_intent(instruction, found[0])
            if instruction.kind in ("checkout", "save_card"):
                return self._of_session(found[0])
            return outcome_of(instruction.kind, found[0])

        with self._http.whole():
            outcome = _asked(look)
        if outcome.status == OutcomeStatus.UNKNOWN:
            raise ProcessorBusy("the payment processor could not be asked", retry_after_s=5)
        return outcome if found else None

    def _candidates(self, given: Instruction) -> Iterator[Any]:
        client, terms = self._client, given.terms
        since = {"created": {"gte": int((_sent(given) - _CLOCK_SLACK).timestamp())}, "limit": _PAGE}
        match given.kind:
            case "payer":
                pages = client.customers.list(since)
            case "account":
                pages = client.accounts.list(since)
            case "charge":
                pages = client.payment_intents.list({"customer": terms["payer"]} | since)
            case "checkout" | "save_card":
                pages = client.checkout.sessions.list({"customer": terms["payer"]} | since)
            case "refund":
                pages = client.refunds.list({"charge": terms["charge"], "limit": _PAGE})
            case "transfer":
                pages = client.transfers.list({"transfer_group": str(given.operation_id), "limit": _PAGE})
            case "reversal":
                pages = client.transfers.reversals.list(terms["transfer"], {"limit": _PAGE})
            case "payout":
                pages = client.payouts.list(since, {"stripe_account": terms["destination"]})
            case kind:
                raise AssertionError(kind)
        yield from pages.auto_paging_iter()

    def account_state(self, account_id: str) -> AccountState:
        try:
            return requirements_of(self._client.accounts.retrieve(account_id))
        except (stripe.PermissionError, stripe.InvalidRequestError) as error:
            # Closed, or no longer ours to ask for: that is its state, not the processor's.
            return AccountState(account_id, False, False, (_code(error),))
        except stripe.StripeError as error:
            raise ProcessorBusy(
                f"the payment processor did not answer: {_code(error)}", retry_after_s=5
            ) from None

    def account_link(self, *, account_id: str, return_url: str, refresh_url: str) -> str:
        params = {
            "account": account_id,
            "type": "account_onboarding",
            "return_url": return_url,
            "refresh_url": refresh_url,
        }
        return str(_plainly(lambda: self._client.account_links.create(params)).url)

    def forget_card(self, payment_method: str) -> None:
        try:
            self._client.payment_methods.detach(payment_method)
        except stripe.InvalidRequestError:
            return  # It is attached to nobody any more.
        except stripe.StripeError as error:
            raise ProcessorBusy(
                f"the payment processor did not answer: {_code(error)}", retry_after_s=5
            ) from None

    def dispute(self, reference: str) -> DisputeState:
        found = _plainly(lambda: self._client.disputes.retrieve(reference))
        status = {"won": "won", "lost": "lost"}.get(found.status, "open")
        # An inquiry takes no money until it becomes a dispute.
        if found.status.startswith("warning_"):
            status = "inquiry"
        currency = found.currency.upper()
        amount = micros_of(found.amount, currency)
        return DisputeState(found.id, found.charge, amount, currency, status)

    def notices(self, *, since: datetime) -> Iterator[Notice]:
        params = {"created": {"gte": int(since.timestamp())}, "limit": _PAGE}
        pages = _plainly(lambda: self._client.events.list(params))
        yield from (notice_of(event) for event in _each(pages))

    def movements(self, *, since: datetime) -> Iterator[Movement]:
        params = {"created": {"gte": int(since.timestamp())}, "limit": _PAGE}
        pages = _plainly(lambda: self._client.balance_transactions.list(params))
        for one in _each(pages):
            currency = one.currency.upper()
            unit = unit_micros(currency)
            at = datetime.fromtimestamp(one.created, UTC)
            yield Movement(
                one.id, one.type, one.source or "", one.amount * unit, one.fee * unit, currency, at
            )

    def balance_micros(self, currency: str) -> int | None:
        balance = _plainly(self._client.balance.retrieve)
        parts = [*balance.available, *balance.pending]
        return sum(
            micros_of(int(part.amount), currency) for part in parts if part.currency == currency.lower()
        )


def _marks(given: Instruction) -> dict[str, str]:
    return {"operation": str(given.operation_id), "organization": str(given.organization_id)}


def _amount(given: Instruction) -> int:
    return units_of(given.amount_micros, given.currency)


def _options(given: Instruction) -> dict[str, Any]:
    return {"idempotency_key": given.key}


def _sent(given: Instruction) -> datetime:
    assert given.sent_at is not None, "what was never sent is nowhere to be found"
    return given.sent_at


def _asked(work: Callable[[], Outcome]) -> Outcome:
    """An answer, or what its absence means. Only codes are kept of an error: messages may quote keys."""
    try:
        return work()
    except (stripe.RateLimitError, stripe.AuthenticationError, stripe.PermissionError) as error:
        raise ProcessorBusy(
            f"the payment processor refused the call: {_code(error)}", retry_after_s=5
        ) from None
    except stripe.InvalidRequestError as error:
        if (error.http_status or 0) in (409, 429):
            return Outcome(OutcomeStatus.UNKNOWN, reason=_code(error))
        return Outcome(OutcomeStatus.FAILED, reason=_code(error), remembered=True)
    except stripe.StripeError as error:
        headers: Mapping[str, str] = error.headers or {}
        replayed = headers.get("idempotent-replayed", "") == "true"
        return Outcome(OutcomeStatus.UNKNOWN, reason=_code(error), remembered=replayed)


def _plainly(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except stripe.StripeError as error:
        raise ProcessorBusy(
            f"the payment processor did not answer: {_code(error)}", retry_after_s=5
        ) from None


def _each(pages: Any) -> Iterator[Any]:
    rows = pages.auto_paging_iter()
    while True:
        row = _plainly(lambda: next(rows, None))
        if row is None:
            return
        yield row


def _code(error: stripe.StripeError) -> str:
    return str(getattr(error, "code", None) or type(error).__name__)[:100]
