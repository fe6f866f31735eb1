"""Money in: customers, cards, setup and payment intents, checkout, charges, refunds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.stripe_sim.world import CARDS, CURRENCIES, DAY_S, LEAST, MOST_AMOUNT, STEPS, Refused, World

Given = Mapping[str, Any]


def amount_of(given: Given, name: str = "amount") -> int:
    try:
        amount = int(given[name])
    except KeyError:
        raise Refused(f"Missing required param: {name}.", code="parameter_missing", param=name) from None
    except ValueError:
        raise Refused(
            f"Invalid integer: {given[name]}", code="parameter_invalid_integer", param=name
        ) from None
    if amount < 1:
        raise Refused(
            "This value must be greater than or equal to 1.", code="parameter_invalid_integer", param=name
        )
    return amount


def stepping(amount: int, currency: str, *, steps: Mapping[str, int] = STEPS) -> int:
    """The amount, if it is one that this currency has."""
    step = steps.get(currency, 1)
    if amount % step:
        raise Refused(f"Invalid amount: {currency} must be a multiple of {step}.", param="amount")
    return amount


def chargeable(amount: int, currency: str) -> int:
    """The amount, if so much is charged at once."""
    if amount > MOST_AMOUNT:
        raise Refused("Amount must be no more than $999,999.99", code="amount_too_large", param="amount")
    if amount < LEAST.get(currency, 1):
        raise Refused("The amount is too small.", code="amount_too_small", param="amount")
    return stepping(amount, currency)


def currency_of(given: Given) -> str:
    currency = str(given.get("currency", "")).lower()
    if currency not in CURRENCIES:
        raise Refused(f"Invalid currency: {currency}", param="currency")
    return currency


def flag(given: Given, name: str) -> bool:
    return str(given.get(name, "false")).lower() == "true"


def create_customer(world: World, given: Given) -> dict[str, Any]:
    customer = world.add(
        "cus",
        "customer",
        name=given.get("name"),
        email=given.get("email"),
        description=given.get("description"),
        metadata=dict(given.get("metadata", {})),
        invoice_settings={"default_payment_method": None},
    )
    world.emit("customer.created", customer)
    return customer


def update_customer(world: World, customer_id: str, given: Given) -> dict[str, Any]:
    customer = world.get(customer_id, "customer")
    method = given.get("invoice_settings", {}).get("default_payment_method")
    if method:
        if world.get(method, "payment_method")["customer"] != customer_id:
            raise Refused("The payment method must be attached to the customer.", code="resource_missing")
        customer["invoice_settings"]["default_payment_method"] = method
    for name in ("name", "email", "description"):
        if name in given:
            customer[name] = given[name]
    customer["metadata"] |= dict(given.get("metadata", {}))
    return customer


def use_card(world: World, method_id: str, customer: str | None) -> dict[str, Any]:
    """Test names (`pm_card_visa`) become a new payment method each time, as at Stripe."""
    if method_id in CARDS:
        method = world.add(
            "pm",
            "payment_method",
            type="card",
            customer=None,
            card={"brand": "visa", "last4": CARDS[method_id]["last4"], "exp_month": 12, "exp_year": 2034},
            metadata={},
            _does=CARDS[method_id],
        )
    else:
        method = world.get(method_id, "payment_method")
    if customer and method["customer"] not in (None, customer):
        raise Refused(
            "The payment method does not belong to the customer.", code="payment_method_customer_mismatch"
        )
    return method


def attach(world: World, method_id: str, customer: str) -> dict[str, Any]:
    world.get(customer, "customer")
    method = use_card(world, method_id, customer)
    method["customer"] = customer
    world.emit("payment_method.attached", method)
    return method


def create_setup_intent(world: World, given: Given) -> dict[str, Any]:
    intent = world.add(
        "seti",
        "setup_intent",
        customer=given.get("customer"),
        payment_method=None,
        status="requires_payment_method",
        usage=given.get("usage", "off_session"),
        metadata=dict(given.get("metadata", {})),
    )
    if given.get("customer"):
        world.get(given["customer"], "customer")
    world.emit("setup_intent.created", intent)
    if flag(given, "confirm"):
        return confirm_setup_intent(world, intent["id"], given)
    return intent


def confirm_setup_intent(world: World, intent_id: str, given: Given) -> dict[str, Any]:
    intent = world.get(intent_id, "setup_intent")
    if intent["status"] == "succeeded":
        raise Refused("The SetupIntent has already succeeded.", code="setup_intent_unexpected_state")
    method = use_card(world, given.get("payment_method", ""), intent["customer"])
    method["customer"] = intent["customer"]
    intent |= {"payment_method": method["id"], "status": "succeeded"}
    world.emit("setup_intent.succeeded", intent)
    return intent


def create_session(world: World, given: Given) -> dict[str, Any]:
    mode = given.get("mode")
    if mode not in ("payment", "setup"):
        raise Refused("Invalid mode: must be one of payment, setup, or subscription", param="mode")
    if not given.get("success_url"):
        raise Refused("Missing required param: success_url.", code="parameter_missing", param="success_url")
    if given.get("customer"):
        world.get(given["customer"], "customer")
    amount, currency = None, None
    if mode == "payment":
        [line] = given["line_items"].values()
        currency = currency_of(line["price_data"])
        amount = chargeable(amount_of(line["price_data"], "unit_amount") * int(line["quantity"]), currency)
        if "name" not in line["price_data"].get("product_data", {}):
            raise Refused(
                "Missing required param: line_items[0][price_data][product_data].", code="parameter_missing"
            )
    session = world.add(
        "cs_test",
        "checkout.session",
        mode=mode,
        customer=given.get("customer"),
        amount_total=amount,
        currency=currency,
        client_reference_id=given.get("client_reference_id"),
        metadata=dict(given.get("metadata", {})),
        payment_intent=None,
        setup_intent=None,
        payment_status="unpaid" if mode == "payment" else "no_payment_required",
        status="open",
        success_url=given["success_url"],
        cancel_url=given.get("cancel_url"),
        expires_at=int(given.get("expires_at", world.now_s + DAY_S)),
        _given=dict(given),
    )
    session["url"] = f"https://checkout.stripe.test/c/pay/{session['id']}"
    return session


def expire_session(world: World, session_id: str) -> dict[str, Any]:
    session = world.get(session_id, "checkout.session")
    if session["status"] != "open":
        raise Refused('Only Checkout Sessions with a status in ["open"] can be expired.')
    session |= {"status": "expired", "url": None}
    world.emit("checkout.session.expired", session)
    return session


def complete_session(world: World, session: dict[str, Any], card: str) -> None:
    assert session["status"] == "open", session["status"]
    given = session["_given"]
    if session["mode"] == "setup":
        inner = given.get("setup_intent_data", {})
        intent = create_setup_intent(
            world,
            {"customer": session["customer"], "metadata": inner.get("metadata", {}), "confirm": "true"}
            | {"payment_method": card},
        )
        session |= {"setup_intent": intent["id"], "status": "complete", "url": None}
    else:
        inner = given.get("payment_intent_data", {})
        intent = create_intent(
            world,
            {
                "amount": session["amount_total"],
                "currency": session["currency"],
                "customer": session["customer"],
                "metadata": inner.get("metadata", {}),
                "setup_future_usage": inner.get("setup_future_usage"),
                "transfer_group": inner.get("transfer_group"),
                "payment_method": card,
                "confirm": "true",
            },
        )
        session |= {
            "payment_intent": intent["id"],
            "status": "complete",
            "payment_status": "paid",
            "url": None,
        }
    world.emit("checkout.session.completed", session)


def create_intent(world: World, given: Given) -> dict[str, Any]:
    if given.get("customer"):
        world.get(given["customer"], "customer")
    currency = currency_of(given)
    intent = world.add(
        "pi",
        "payment_intent",
        amount=chargeable(amount_of(given), currency),
        amount_received=0,
        currency=currency,
        customer=given.get("customer"),
        description=given.get("description"),
        metadata=dict(given.get("metadata", {})),
        payment_method=None,
        status="requires_payment_method",
        latest_charge=None,
        last_payment_error=None,
        next_action=None,
        canceled_at=None,
        transfer_group=given.get("transfer_group"),
        setup_future_usage=given.get("setup_future_usage"),
    )
    intent["client_secret"] = f"{intent['id']}_secret_sim"
    world.emit("payment_intent.created", intent)
    if flag(given, "off_session") and not flag(given, "confirm"):
        raise Refused("You can only set `off_session` when `confirm=true`.", param="off_session")
    if flag(given, "confirm"):
        return confirm_intent(world, intent["id"], given)
    return intent


def confirm_intent(world: World, intent_id: str, given: Given) -> dict[str, Any]:
    intent = world.get(intent_id, "payment_intent")
    if intent["status"] in ("succeeded", "canceled"):
        raise Refused(
            f"This PaymentIntent's status is {intent['status']}.",
            code="payment_intent_unexpected_state",
            more={"payment_intent": {"id": intent_id, "status": intent["status"]}},
        )
    if not given.get("payment_method") and not intent["payment_method"]:
        raise Refused(
            "You cannot confirm this PaymentIntent because it's missing a payment method.",
            code="parameter_missing",
        )
    method = use_card(world, given.get("payment_method") or intent["payment_method"], intent["customer"])
    if intent["setup_future_usage"] and intent["customer"]:
        method["customer"] = intent["customer"]
    intent["payment_method"] = method["id"]
    does = method["_does"]
    if decline := does.get("charge"):
        _failed(world, intent, "card_declined", decline)
    if does.get("off_session") and not intent.get("_authenticated"):
        if flag(given, "off_session"):
            _failed(world, intent, "authentication_required", "authentication_required")
        if not given.get("return_url"):
            raise Refused("This PaymentIntent needs a return_url to be confirmed.", param="return_url")
        url = f"https://hooks.stripe.test/redirect/{intent_id}"
        intent["status"] = "requires_action"
        intent["next_action"] = {
            "type": "redirect_to_url",
            "redirect_to_url": {"url": url, "return_url": given["return_url"]},
        }
        world.emit("payment_intent.requires_action", intent)
        return intent
    return succeed(world, intent)


def succeed(world: World, intent: dict[str, Any]) -> dict[str, Any]:
    method = world.get(intent["payment_method"], "payment_method")
    charge = _charge(world, intent, "succeeded")
    fee = intent["amount"] * 29 // 1000 + 30
    at = world.now_s if method["_does"].get("funds") else world.now_s + 2 * DAY_S
    txn = world.book(intent["amount"], intent["currency"], charge["id"], "charge", fee=fee, available_on=at)
    charge["balance_transaction"] = txn["id"]
    intent |= {
        "status": "succeeded",
        "latest_charge": charge["id"],
        "amount_received": intent["amount"],
        "next_action": None,
        "last_payment_error": None,
    }
    world.emit("charge.succeeded", charge)
    world.emit("payment_intent.succeeded", intent)
    return intent


def _failed(world: World, intent: dict[str, Any], code: str, decline_code: str) -> None:
    charge = _charge(world, intent, "failed")
    intent["last_payment_error"] = {"type": "card_error", "code": code, "decline_code": decline_code}
    intent |= {"status": "requires_payment_method", "latest_charge": charge["id"]}
    world.emit("charge.failed", charge)
    world.emit("payment_intent.payment_failed", intent)
    raise Refused(
        "Your card was declined." if code == "card_declined" else "This transaction requires authentication.",
        status=402,
        kind="card_error",
        code=code,
        more={"decline_code": decline_code, "payment_intent": intent, "charge": charge["id"]},
    )


def _charge(world: World, intent: dict[str, Any], status: str) -> dict[str, Any]:
    return world.add(
        "ch",
        "charge",
        amount=intent["amount"],
        amount_refunded=0,
        currency=intent["currency"],
        customer=intent["customer"],
        payment_intent=intent["id"],
        payment_method=intent["payment_method"],
        status=status,
        paid=status == "succeeded",
        refunded=False,
        disputed=False,
        balance_transaction=None,
        transfer_group=intent["transfer_group"],
        metadata=dict(intent["metadata"]),
    )


def cancel_intent(world: World, intent_id: str) -> dict[str, Any]:
    intent = world.get(intent_id, "payment_intent")
    if intent["status"] in ("succeeded", "canceled"):
        raise Refused(
            f"You cannot cancel this PaymentIntent because it has a status of {intent['status']}.",
            code="payment_intent_unexpected_state",
        )
    intent |= {"status": "canceled", "canceled_at": world.now_s, "next_action": None}
    world.emit("payment_intent.canceled", intent)
    return intent


def create_refund(world: World, given: Given) -> dict[str, Any]:
    charge_id = given.get("charge")
    if not charge_id:
        intent = world.get(given.get("payment_intent", ""), "payment_intent")
        charge_id = intent["latest_charge"] or ""
    charge = world.get(charge_id, "charge")
    left = charge["amount"] - charge["amount_refunded"]
    if charge["status"] != "succeeded":
        raise Refused("This charge cannot be refunded.", code="charge_not_refundable")
    if left == 0:
        raise Refused(f"Charge {charge_id} has already been refunded.", code="charge_already_refunded")
    if charge["disputed"]:
        raise Refused(
            f"Charge {charge_id} has been charged back; cannot issue a refund.", code="charge_disputed"
        )
    amount = stepping(amount_of(given), charge["currency"]) if "amount" in given else left
    if amount > left:
        message = f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})"
        raise Refused(message, code="amount_too_large", param="amount")
    refund = world.add(
        "re",
        "refund",
        amount=amount,
        currency=charge["currency"],
        charge=charge_id,
        payment_intent=charge["payment_intent"],
        status="pending" if _refunds(world, charge) == "pending" else "succeeded",
        failure_reason=None,
        failure_balance_transaction=None,
        reason=given.get("reason"),
        metadata=dict(given.get("metadata", {})),
    )
    world.book(-amount, charge["currency"], refund["id"], "refund")
    charge["amount_refunded"] += amount
    charge["refunded"] = charge["amount_refunded"] == charge["amount"]
    world.emit("refund.created", refund)
    world.emit("charge.refunded", charge)
    return refund


def _refunds(world: World, charge: Mapping[str, Any]) -> str:
    does: Mapping[str, str] = world.objects[charge["payment_method"]]["_does"]
    return does.get("refund", "")
