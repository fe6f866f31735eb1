"""Money out: connected accounts, transfers and their reversals, payouts, balances."""

from __future__ import annotations

from typing import Any

from tests.stripe_sim.payments import Given, amount_of, currency_of, stepping
from tests.stripe_sim.world import PAYOUT_STEPS, PLATFORM, Refused, World, public


def create_account(world: World, given: Given) -> dict[str, Any]:
    if given.get("type") not in (None, "express", "custom", "standard"):
        raise Refused("Invalid type", param="type")
    account = world.add(
        "acct",
        "account",
        type=given.get("type", "express"),
        country=given.get("country", "US"),
        email=given.get("email"),
        metadata=dict(given.get("metadata", {})),
        default_currency="usd",
        charges_enabled=False,
        payouts_enabled=False,
        details_submitted=False,
        capabilities={"transfers": "inactive"},
        requirements={
            "currently_due": ["external_account", "individual.verification.document"],
            "past_due": [],
            "disabled_reason": "requirements.past_due",
        },
        external_accounts={"object": "list", "data": []},
    )
    world.emit("account.updated", account, account["id"])
    return account


def create_account_link(world: World, given: Given) -> dict[str, Any]:
    account = world.get(given.get("account", ""), "account")
    for name in ("refresh_url", "return_url", "type"):
        if not given.get(name):
            raise Refused(f"Missing required param: {name}.", code="parameter_missing", param=name)
    return {
        "object": "account_link",
        "created": world.now_s,
        "expires_at": world.now_s + 300,
        "url": f"https://connect.stripe.test/setup/{account['id']}/{world.now_s}",
    }


def create_transfer(world: World, given: Given) -> dict[str, Any]:
    currency = currency_of(given)
    amount = stepping(amount_of(given), currency)
    account = world.get(given.get("destination", ""), "account")
    if account["capabilities"]["transfers"] != "active":
        message = "Your destination account needs to have at least one of the following capabilities enabled: transfers"
        raise Refused(message, code="insufficient_capabilities_for_transfer")
    source, available_on = given.get("source_transaction"), world.now_s
    if source:
        charge = world.get(source, "charge")
        if charge["currency"] != currency:
            raise Refused(
                "The currency of source_transaction's balance transaction must match.", param="currency"
            )
        used = sum(one["amount"] for one in world.all("transfer") if one["source_transaction"] == source)
        if charge["status"] != "succeeded" or used + amount > charge["amount"]:
            message = f"Insufficient funds on source_transaction {source}: {charge['amount'] - used} left."
            raise Refused(message, code="balance_insufficient", param="amount")
        available_on = world.get(charge["balance_transaction"], "balance_transaction")["available_on"]
    elif amount > world.available(currency):
        raise Refused(
            "You have insufficient available funds in your Stripe account.", code="balance_insufficient"
        )
    transfer = world.add(
        "tr",
        "transfer",
        amount=amount,
        amount_reversed=0,
        reversed=False,
        currency=currency,
        destination=account["id"],
        source_transaction=source,
        transfer_group=given.get("transfer_group"),
        description=given.get("description"),
        metadata=dict(given.get("metadata", {})),
    )
    world.book(-amount, currency, transfer["id"], "transfer", available_on=available_on)
    world.book(amount, currency, transfer["id"], "payment", account=account["id"], available_on=available_on)
    world.emit("transfer.created", transfer)
    return transfer


def reverse_transfer(world: World, transfer_id: str, given: Given) -> dict[str, Any]:
    transfer = world.get(transfer_id, "transfer")
    left = transfer["amount"] - transfer["amount_reversed"]
    amount = stepping(amount_of(given), transfer["currency"]) if "amount" in given else left
    if amount > left:
        raise Refused(f"Amount exceeds the unreversed amount ({left}).", param="amount")
    account, currency = transfer["destination"], transfer["currency"]
    if amount > world.available(currency, account) + world.pending(currency, account):
        message = "The connected account does not have enough balance to cover this reversal."
        raise Refused(message, code="balance_insufficient")
    reversal = world.add(
        "trr",
        "transfer_reversal",
        amount=amount,
        currency=currency,
        transfer=transfer_id,
        metadata=dict(given.get("metadata", {})),
    )
    transfer["amount_reversed"] += amount
    transfer["reversed"] = transfer["amount_reversed"] == transfer["amount"]
    world.book(amount, currency, reversal["id"], "transfer_refund")
    world.book(-amount, currency, reversal["id"], "payment_refund", account=account)
    world.emit("transfer.reversed", transfer)
    return reversal


def create_payout(world: World, given: Given, account_id: str) -> dict[str, Any]:
    currency = currency_of(given)
    amount = stepping(amount_of(given), currency, steps=PAYOUT_STEPS)
    if account_id != PLATFORM:
        account = world.get(account_id, "account")
        if not account["payouts_enabled"]:
            raise Refused("Payouts are not enabled on this account.", code="payouts_not_allowed")
    if amount > world.available(currency, account_id):
        raise Refused("You have insufficient funds in your Stripe account.", code="balance_insufficient")
    payout = world.add(
        "po",
        "payout",
        account_id,
        amount=amount,
        currency=currency,
        status="pending",
        failure_code=None,
        arrival_date=world.now_s + 86_400,
        metadata=dict(given.get("metadata", {})),
    )
    world.book(-amount, currency, payout["id"], "payout", account=account_id)
    world.emit("payout.created", payout, account_id)
    return payout


def balance(world: World, account_id: str) -> dict[str, Any]:
    currencies = {txn["currency"] for txn in world.all("balance_transaction", account_id)} or {"usd"}
    return {
        "object": "balance",
        "livemode": False,
        "available": [
            {"amount": world.available(currency, account_id), "currency": currency}
            for currency in sorted(currencies)
        ],
        "pending": [
            {"amount": world.pending(currency, account_id), "currency": currency}
            for currency in sorted(currencies)
        ],
    }


def listed(world: World, kind: str, given: Given, account_id: str, url: str) -> dict[str, Any]:
    """One page, newest first; filters compare a parameter with the field of its name."""
    rows = world.all(kind, account_id)
    for name, bound in given.get("created", {}).items() if isinstance(given.get("created"), dict) else ():
        compare = {"gte": int.__ge__, "gt": int.__gt__, "lte": int.__le__, "lt": int.__lt__}[name]
        rows = [row for row in rows if compare(row["created"], int(bound))]
    for name, value in given.items():
        if name == "types":
            rows = [row for row in rows if row["type"] in value.values()]
        elif name not in ("limit", "starting_after", "ending_before", "created", "expand"):
            rows = [row for row in rows if row.get(name) == value]
    limit = int(given.get("limit", 10))
    if not 1 <= limit <= 100:
        raise Refused("This value must be between 1 and 100.", param="limit")
    if after := given.get("starting_after"):
        ids = [row["id"] for row in rows]
        if after not in ids:
            raise Refused(f"No such {kind}: '{after}'", code="resource_missing", param="starting_after")
        rows = rows[ids.index(after) + 1 :]
    if before := given.get("ending_before"):
        ids = [row["id"] for row in rows]
        if before not in ids:
            raise Refused(f"No such {kind}: '{before}'", code="resource_missing", param="ending_before")
        # Nearest to the cursor, still newest first.
        rows = rows[max(0, ids.index(before) - limit) : ids.index(before)]
    page = rows[:limit]
    return {"object": "list", "url": url, "has_more": len(rows) > limit, "data": public(page)}
