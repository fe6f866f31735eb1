"""Which parameters each call takes, after Stripe's reference (API 2026-10-28.endive); any other is refused, as there.

A subset on purpose: what is not listed is refused even where Stripe would take it, so the product can only send what
somebody has looked up. `name.*` is a map or an array of anything.
"""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import parse_qsl

_LIST: Final = "limit starting_after ending_before created.gte created.gt created.lt created.lte"
ALLOWED: Final[dict[str, str]] = {
    "POST /v1/customers": "name email description metadata.*",
    "GET /v1/customers": f"{_LIST} email",
    "GET /v1/customers/{id}": "",
    "POST /v1/customers/{id}": "name email description metadata.* invoice_settings.default_payment_method",
    "GET /v1/payment_methods": f"{_LIST} customer type",
    "GET /v1/payment_methods/{id}": "",
    "POST /v1/payment_methods/{id}/attach": "customer",
    "POST /v1/payment_methods/{id}/detach": "",
    "POST /v1/setup_intents": "customer payment_method confirm usage return_url payment_method_types.* metadata.*",
    "GET /v1/setup_intents": f"{_LIST} customer",
    "GET /v1/setup_intents/{id}": "",
    "POST /v1/setup_intents/{id}/confirm": "payment_method return_url",
    "POST /v1/checkout/sessions": (
        "mode customer currency success_url cancel_url client_reference_id metadata.* expires_at"
        " payment_method_types.* line_items.* payment_intent_data.metadata.* payment_intent_data.description"
        " payment_intent_data.setup_future_usage payment_intent_data.transfer_group setup_intent_data.metadata.*"
    ),
    "GET /v1/checkout/sessions": f"{_LIST} customer payment_intent status",
    "GET /v1/checkout/sessions/{id}": "",
    "POST /v1/checkout/sessions/{id}/expire": "",
    "POST /v1/payment_intents": (
        "amount currency customer payment_method confirm off_session metadata.* description transfer_group"
        " payment_method_types.* return_url setup_future_usage receipt_email statement_descriptor_suffix"
        " error_on_requires_action"
    ),
    "GET /v1/payment_intents": f"{_LIST} customer",
    "GET /v1/payment_intents/{id}": "",
    "POST /v1/payment_intents/{id}/confirm": "payment_method return_url off_session",
    "POST /v1/payment_intents/{id}/cancel": "cancellation_reason",
    "GET /v1/charges": f"{_LIST} customer payment_intent transfer_group",
    "GET /v1/charges/{id}": "",
    "POST /v1/refunds": "payment_intent charge amount reason metadata.*",
    "GET /v1/refunds": f"{_LIST} payment_intent charge",
    "GET /v1/refunds/{id}": "",
    "GET /v1/disputes": f"{_LIST} payment_intent charge",
    "GET /v1/disputes/{id}": "",
    "POST /v1/accounts": (
        "type country email business_type metadata.* capabilities.transfers.requested"
        " capabilities.card_payments.requested controller.* settings.payouts.schedule.interval"
    ),
    "GET /v1/accounts": _LIST,
    "GET /v1/accounts/{id}": "",
    "POST /v1/account_links": "account type refresh_url return_url collection_options.*",
    "POST /v1/transfers": (
        "amount currency destination source_transaction transfer_group description metadata.* source_type"
    ),
    "GET /v1/transfers": f"{_LIST} destination transfer_group",
    "GET /v1/transfers/{id}": "",
    "POST /v1/transfers/{id}/reversals": "amount description metadata.* refund_application_fee",
    "GET /v1/transfers/{id}/reversals": "limit starting_after ending_before",
    "POST /v1/payouts": "amount currency description metadata.* method statement_descriptor",
    "GET /v1/payouts": f"{_LIST} status destination",
    "GET /v1/payouts/{id}": "",
    "GET /v1/balance": "",
    "GET /v1/balance_transactions": f"{_LIST} source type currency payout",
    "GET /v1/events": f"{_LIST} type types.*",
    "GET /v1/events/{id}": "",
}
_ROUTES: Final = [
    (route.split()[0], re.compile(re.sub(r"\{id\}", r"([A-Za-z0-9_]+)", route.split()[1]) + "$"), route)
    for route in ALLOWED
]


def route_of(method: str, path: str) -> tuple[str, str] | None:
    """The route's name and the id in the path; None where Stripe has nothing there."""
    for its_method, pattern, route in _ROUTES:
        if its_method == method and (found := pattern.match(path)):
            return route, found[1] if found.groups() else ""
    return None


def parse(text: str) -> dict[str, Any]:
    """`a[b][0]=c` as nested maps; arrays are maps by their index, as they come."""
    result: dict[str, Any] = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        parts = [part.rstrip("]") for part in name.split("[")]
        place = result
        for part in parts[:-1]:
            place = place.setdefault(part, {})
        place[parts[-1] or str(len(place))] = value
    return result


def unknown(route: str, given: dict[str, Any]) -> str | None:
    """The first parameter that this call does not take."""
    names = set(ALLOWED[route].split()) | {"expand.*"}
    open_maps = {name[:-2] for name in names if name.endswith(".*")}

    def walk(value: dict[str, Any], prefix: str) -> str | None:
        for key, inner in value.items():
            name = f"{prefix}{key}"
            if name in open_maps:
                continue
            if isinstance(inner, dict):
                if found := walk(inner, f"{name}."):
                    return found
            elif name not in names:
                return name
        return None

    return walk(given, "")
