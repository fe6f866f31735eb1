"""What Stripe would hold: objects, balances, events. Pure state; time moves only when a test moves it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

API_VERSION: Final = "2026-10-28.endive"
DAY_S: Final = 86_400
# After "Supported currencies": what an amount must be a multiple of, of charges and of payouts; the least of a charge.
STEPS: Final = {"isk": 100, "ugx": 100, "kwd": 10, "bhd": 10, "jod": 10, "omr": 10, "tnd": 10}
PAYOUT_STEPS: Final = STEPS | {"huf": 100, "twd": 100}
LEAST: Final = {"usd": 50, "eur": 50, "gbp": 30, "chf": 50, "aud": 50, "cad": 50, "jpy": 50, "huf": 17_500}
CURRENCIES: Final = frozenset({"krw", "vnd", "clp", "twd", *LEAST, *STEPS})
PLATFORM: Final = ""
MOST_AMOUNT: Final = 99_999_999
# What a card does; the names are Stripe's own test payment methods.
CARDS: Final[dict[str, dict[str, str]]] = {
    "pm_card_visa": {"last4": "4242"},
    "pm_card_bypassPending": {"last4": "0077", "funds": "available"},
    "pm_card_pendingRefund": {"last4": "7726", "refund": "pending"},
    "pm_card_refundFail": {"last4": "5126", "refund": "failed"},
    "pm_card_authenticationRequired": {"last4": "3184", "off_session": "authentication_required"},
    "pm_card_chargeCustomerFail": {"last4": "0341", "charge": "generic_decline"},
    "pm_card_chargeDeclinedInsufficientFunds": {"last4": "9995", "charge": "insufficient_funds"},
}


class Refused(Exception):
    """An error as Stripe words it."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        more: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"type": kind, "message": message, **(more or {})}}
        if code:
            self.body["error"]["code"] = code
        if param:
            self.body["error"]["param"] = param


@dataclass
class World:
    """`now_s` is Stripe's clock. Every change of an object that Stripe tells of appends an event to `events`."""

    now_s: int = 1_780_000_000
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    told: Callable[[dict[str, Any]], None] | None = None
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    # Objects --------------------------------------------------------------------------------------------------

    def add(self, prefix: str, kind: str, account: str = PLATFORM, **values: Any) -> dict[str, Any]:
        made = {
            "id": f"{prefix}_sim{next(self._numbers):06d}",
            "object": kind,
            "created": self.now_s,
            "livemode": False,
            **values,
        }
        self.objects[made["id"]] = made
        made["_account"] = account
        return made

    def get(self, object_id: str, kind: str, account: str = PLATFORM) -> dict[str, Any]:
        found = self.objects.get(object_id)
        if found is None or found["object"] != kind or found["_account"] != account:
            message = f"No such {kind}: '{object_id}'"
            raise Refused(message, status=404, code="resource_missing", param="id")
        return found

    def all(self, kind: str, account: str = PLATFORM) -> list[dict[str, Any]]:
        """Newest first."""
        return [
            value
            for value in reversed(self.objects.values())
            if value["object"] == kind and value["_account"] == account
        ]

    def emit(self, kind: str, subject: dict[str, Any], account: str = PLATFORM) -> None:
        event = self.add("evt", "event", api_version=API_VERSION, type=kind, pending_webhooks=1)
        event["data"] = {"object": public(subject)}
        event["request"] = {"id": None, "idempotency_key": None}
        if account:
            event["account"] = account
        self.events.append(event)
        if self.told:
            self.told(event)

    # Balances -------------------------------------------------------------------------------------------------

    def book(
        self,
        amount: int,
        currency: str,
        source: str,
        kind: str,
        *,
        account: str = PLATFORM,
        fee: int = 0,
        available_on: int | None = None,
    ) -> dict[str, Any]:
        return self.add(
            "txn",
            "balance_transaction",
            account,
            amount=amount,
            fee=fee,
            net=amount - fee,
            currency=currency,
            source=source,
            type=kind,
            available_on=self.now_s if available_on is None else available_on,
        )

    def available(self, currency: str, account: str = PLATFORM) -> int:
        return sum(
            txn["net"]
            for txn in self.all("balance_transaction", account)
            if txn["currency"] == currency and txn["available_on"] <= self.now_s
        )

    def pending(self, currency: str, account: str = PLATFORM) -> int:
        return sum(
            txn["net"]
            for txn in self.all("balance_transaction", account)
            if txn["currency"] == currency and txn["available_on"] > self.now_s
        )

    # What happens outside of the API -----------------------------------------------------------------------------

    def advance(self, seconds: int) -> None:
        self.now_s += seconds

    def pay_out_at_bank(self, payout_id: str, *, failure: str = "") -> None:
        payout = self.objects[payout_id]
        account = payout["_account"]
        payout["status"] = "failed" if failure else "paid"
        payout["failure_code"] = failure or None
        if failure:
            self.book(payout["amount"], payout["currency"], payout_id, "payout_failure", account=account)
        self.emit("payout.failed" if failure else "payout.paid", payout, account)

    def settle_refund(self, refund_id: str, *, failure: str = "") -> None:
        """What the card's bank says in the end, also of a refund that had succeeded: the money lies here again."""
        refund = self.objects[refund_id]
        assert refund["status"] in ("pending", "succeeded"), refund["status"]
        refund["status"] = "failed" if failure else "succeeded"
        refund["failure_reason"] = failure or None
        if failure:
            back = self.book(refund["amount"], refund["currency"], refund_id, "refund_failure")
            refund["failure_balance_transaction"] = back["id"]
            charge = self.objects[refund["charge"]]
            charge["amount_refunded"] -= refund["amount"]
            charge["refunded"] = False
            self.emit("refund.failed", refund)
        self.emit("refund.updated", refund)
        self.emit("charge.refund.updated", refund)

    def move_platform(self, amount: int, kind: str) -> dict[str, Any]:
        """What the operator does by hand (`payout`, `topup`), or Stripe bills beside charges (`stripe_fee`)."""
        source = {"payout": "po_platform", "topup": "tu_platform"}.get(kind, "")
        return self.book(amount, "usd", source, kind)

    def onboard(self, account_id: str, *, due: list[str] | None = None) -> None:
        """The provider has been at the link: `due` is what Stripe still asks for."""
        account = self.objects[account_id]
        account["requirements"] = {
            "currently_due": due or [],
            "past_due": [],
            "disabled_reason": "requirements.past_due" if due else None,
        }
        account["details_submitted"] = True
        if not due and not account["external_accounts"]["data"]:
            self._bank(account, "6789")
        account["payouts_enabled"] = not due
        account["capabilities"] = {"transfers": "inactive" if due else "active"}
        self.emit("account.updated", account, account_id)

    def change_bank(self, account_id: str, last4: str) -> dict[str, Any]:
        """Whoever is signed in at Stripe puts another bank account in the place of the one there is."""
        account = self.objects[account_id]
        former, account["external_accounts"]["data"] = account["external_accounts"]["data"], []
        bank = self._bank(account, last4)
        self.emit("account.external_account.created", bank, account_id)
        for one in former:
            self.emit("account.external_account.deleted", one, account_id)
        self.emit("account.updated", account, account_id)
        return bank

    def _bank(self, account: dict[str, Any], last4: str) -> dict[str, Any]:
        bank = self.add(
            "ba", "bank_account", account["id"], last4=last4, currency="usd", default_for_currency=True
        )
        account["external_accounts"]["data"] = [public(bank)]
        return bank

    def dispute(self, charge_id: str, amount: int | None = None) -> dict[str, Any]:
        """The cardholder's bank takes the money back, and a fee."""
        charge = self.objects[charge_id]
        disputed = charge["amount"] if amount is None else amount
        made = self.add(
            "dp",
            "dispute",
            amount=disputed,
            currency=charge["currency"],
            charge=charge_id,
            payment_intent=charge["payment_intent"],
            status="needs_response",
            reason="fraudulent",
            metadata={},
        )
        self.book(-disputed, charge["currency"], made["id"], "adjustment", fee=1500)
        charge["disputed"] = True
        self.emit("charge.dispute.created", made)
        self.emit("charge.dispute.funds_withdrawn", made)
        return made

    def close_dispute(self, dispute_id: str, *, won: bool) -> None:
        dispute = self.objects[dispute_id]
        dispute["status"] = "won" if won else "lost"
        if won:
            self.book(dispute["amount"], dispute["currency"], dispute_id, "adjustment")
            self.emit("charge.dispute.funds_reinstated", dispute)
        self.emit("charge.dispute.closed", dispute)

    def authenticate(self, intent_id: str) -> None:
        """The buyer has passed 3D Secure at the link."""
        from tests.stripe_sim.payments import succeed

        intent = self.objects[intent_id]
        assert intent["status"] == "requires_action", intent["status"]
        succeed(self, intent)

    def fail_authentication(self, intent_id: str) -> None:
        """The buyer has not passed 3D Secure at the link."""
        intent = self.objects[intent_id]
        assert intent["status"] == "requires_action", intent["status"]
        code = "payment_intent_authentication_failure"
        intent["last_payment_error"] = {"type": "invalid_request_error", "code": code}
        intent |= {"status": "requires_payment_method", "next_action": None}
        self.emit("payment_intent.payment_failed", intent)

    def pay_checkout(self, session_id: str, card: str = "pm_card_visa") -> None:
        """The buyer has filled in the hosted page."""
        from tests.stripe_sim.payments import complete_session

        complete_session(self, self.objects[session_id], card)


def public(value: Any) -> Any:
    """Without what only the simulator knows."""
    if isinstance(value, dict):
        return {key: public(inner) for key, inner in value.items() if not key.startswith("_")}
    if isinstance(value, list):
        return [public(inner) for inner in value]
    return value
