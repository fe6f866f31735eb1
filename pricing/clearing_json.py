"""A book as a JSON document, cleared in its own units: for anyone who wants to recompute a price. Pure.

Numbers are decimals of any size within `MAX_DIGITS` and are scaled to integers exactly: quantities to the finest
decimal place that any of them has, prices to that and a half of it, so that every midpoint is whole. There is no tick.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from pricing.clearing import Clearing, Order, TieRule, clear

# Before and after the point: far beyond any currency, and a bound to what a short text like 1e400 can cost.
MAX_DIGITS: Final = 60
_TERMS: Final = ("floor", "cap", "reserve_price")
_FIELDS: Final = frozenset({"bids", "offers", "tie_rule", *_TERMS})
_ORDER_FIELDS: Final = frozenset({"id", "price", "quantity", "all_or_none"})
_TIE_RULES: Final = ", ".join(rule.value for rule in TieRule)


class DocumentError(ValueError):
    """The document is no book. `field` names where (dotted, `bids.3.price`), `reason` says why."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


def clear_document(text: str) -> dict[str, Any]:
    """Clear `{"bids": [...], "offers": [...], "tie_rule", "floor", "cap", "reserve_price"}`.

    An order is `{"id", "price", "quantity", "all_or_none"?}` or `[price, quantity]` (then its id is its letter and
    place, `b0`, `o3`); numbers are JSON numbers or decimal strings. An earlier place is an earlier time. `bids` and
    `offers` must be there; absent or null terms mean none, and the tie rule is pro rata.

    Returns quantity, price, price_low, price_high, welfare, `fills` (lists in the order of the input) and
    `rejected_paradoxically` (ids), as integers and Decimals in the units of the input. Without a trade the price is
    None, and low and high are the best bid and the best ask. Raises DocumentError.
    """
    document = _parse(text)
    for name in document:
        if name not in _FIELDS:
            raise DocumentError(name, f"is unknown; there are {', '.join(sorted(_FIELDS))}")
    sides = {side: _read_side(document.get(side), side) for side in ("bids", "offers")}
    terms = {name: _read_number(document[name], name) for name in _TERMS if document.get(name) is not None}
    tie_rule = document.get("tie_rule")
    if tie_rule not in (None, *TieRule):
        raise DocumentError("tie_rule", f"must be one of {_TIE_RULES}")
    orders = [*sides["bids"], *sides["offers"]]
    price_places = _places([*(order["price"] for order in orders), *terms.values()])
    lot_places = _places([order["quantity"] for order in orders])

    def price_of(number: Decimal) -> int:
        return 2 * _scaled(number, price_places)

    bids, asks = (
        [
            Order(
                id=order["id"],
                steps=((price_of(order["price"]), _scaled(order["quantity"], lot_places)),),
                priority=place,
                all_or_none=order["all_or_none"],
            )
            for place, order in enumerate(side)
        ]
        for side in sides.values()
    )
    bounds = {name: price_of(number) for name, number in terms.items()}
    try:
        result = clear(
            bids,
            asks,
            floor=bounds.get("floor"),
            cap=bounds.get("cap"),
            reserve_price=bounds.get("reserve_price"),
            tie_rule=tie_rule or TieRule.PRO_RATA,
        )
    except ValueError as error:
        field, _, reason = str(error).partition(": ")
        raise DocumentError(field, reason) from None
    return _told(result, price_places, lot_places)


def _told(result: Clearing, price_places: int, lot_places: int) -> dict[str, Any]:
    def price(value: int | None) -> int | Decimal | None:
        return None if value is None else _halved(value, price_places)

    return {
        "quantity": _unscaled(result.quantity_lots, lot_places),
        "price": price(result.price),
        "price_low": price(result.price_low),
        "price_high": price(result.price_high),
        "welfare": _halved(result.welfare, price_places + lot_places),
        "fills": {
            "bids": [_unscaled(sum(fill), lot_places) for fill in result.bid_fills],
            "offers": [_unscaled(sum(fill), lot_places) for fill in result.ask_fills],
        },
        "rejected_paradoxically": list(result.rejected_paradoxically),
    }


def _parse(text: str) -> Mapping[str, Any]:
    def refuse_constant(name: str) -> None:
        raise DocumentError("document", f"{name} is not a number")

    def refuse_repeated(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        read: dict[str, Any] = {}
        for name, value in pairs:
            if name in read:
                raise DocumentError(name, "stands twice in one object")
            read[name] = value
        return read

    try:
        # As text: what is a price and what is too long is judged where the field is known.
        document = json.loads(
            text,
            parse_float=_Number,
            parse_int=_Number,
            parse_constant=refuse_constant,
            object_pairs_hook=refuse_repeated,
        )
    except json.JSONDecodeError as error:
        raise DocumentError("document", f"is not JSON ({error})") from None
    except RecursionError:
        raise DocumentError("document", "is nested too deeply") from None
    if not isinstance(document, dict):
        raise DocumentError("document", "must be an object with bids and offers")
    return document


class _Number(str):
    """A JSON number as it was spelled."""

    __slots__ = ()


def _read_side(entries: object, side: str) -> list[dict[str, Any]]:
    if not isinstance(entries, list):
        raise DocumentError(side, "must be a list of orders")
    orders = [
        _read_order(entry, f"{side}.{place}", f"{side[0]}{place}") for place, entry in enumerate(entries)
    ]
    seen: set[str] = set()
    for place, order in enumerate(orders):
        if order["id"] in seen:
            raise DocumentError(f"{side}.{place}.id", f"{order['id']} stands twice on this side")
        seen.add(order["id"])
    return orders


def _read_order(entry: object, where: str, default_id: str) -> dict[str, Any]:
    order_id: object
    if isinstance(entry, list):
        if len(entry) != 2:
            raise DocumentError(where, "must be [price, quantity]")
        order_id, all_or_none = default_id, False
        price, quantity = entry
    elif isinstance(entry, dict):
        for name in entry:
            if name not in _ORDER_FIELDS:
                raise DocumentError(f"{where}.{name}", "is unknown")
        for name in ("price", "quantity"):
            if name not in entry:
                raise DocumentError(f"{where}.{name}", "is missing")
        order_id = entry.get("id", default_id)
        if not isinstance(order_id, str):
            raise DocumentError(f"{where}.id", "must be a string or a number")
        all_or_none = entry.get("all_or_none", False)
        if not isinstance(all_or_none, bool):
            raise DocumentError(f"{where}.all_or_none", "must be true or false")
        price, quantity = entry["price"], entry["quantity"]
    else:
        raise DocumentError(where, "must be an object or [price, quantity]")
    lots = _read_number(quantity, f"{where}.quantity")
    if lots < 0:
        raise DocumentError(f"{where}.quantity", "must not be negative")
    return {
        "id": str(order_id),
        "price": _read_number(price, f"{where}.price"),
        "quantity": lots,
        "all_or_none": all_or_none,
    }


def _read_number(value: object, where: str) -> Decimal:
    """A JSON number or a decimal string, exact."""
    if not isinstance(value, str):
        raise DocumentError(where, "must be a number or a decimal string")
    if len(value) > 2 * MAX_DIGITS + 10:
        raise DocumentError(where, f"has more than {MAX_DIGITS} digits before or after the point")
    try:
        # Decimal's own reading takes white space, underscores and other scripts' digits; a document has none of them.
        if not value.isascii() or "_" in value or value != value.strip():
            raise InvalidOperation
        number = Decimal(value)
    except InvalidOperation:
        raise DocumentError(where, f"{value[:40]!r} is not a decimal number") from None
    if not number.is_finite():
        raise DocumentError(where, f"{value[:40]!r} is not a finite number")
    if not number:
        return Decimal(0)
    if number.adjusted() >= MAX_DIGITS or -_exponent(number) > MAX_DIGITS:
        raise DocumentError(where, f"has more than {MAX_DIGITS} digits before or after the point")
    return number


def _exponent(number: Decimal) -> int:
    """Of the last digit that is not zero."""
    _, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int), "the number is finite"
    zeros = next((place for place, digit in enumerate(reversed(digits)) if digit), 0)
    return exponent + zeros


def _places(numbers: Sequence[Decimal]) -> int:
    """After the point, in the number that has most; a lot is never more than one unit."""
    return max((-_exponent(number) for number in numbers if number and _exponent(number) < 0), default=0)


def _scaled(number: Decimal, places: int) -> int:
    """number x 10^places, which is whole."""
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int), "the number is finite"
    text = "".join(map(str, digits))
    shift = exponent + places
    magnitude = int(text + "0" * shift) if shift >= 0 else int(text[:shift])  # What is cut off are zeros.
    return -magnitude if sign else magnitude


def _halved(value: int, places: int) -> int | Decimal:
    """value / 2 / 10^places, exact."""
    return _unscaled(value * 5, places + 1)


def _unscaled(value: int, places: int) -> int | Decimal:
    """value / 10^places, exact: an integer where it is one."""
    while places and value % 10 == 0:
        value //= 10
        places -= 1
    if places == 0:
        return value
    return Decimal((int(value < 0), tuple(map(int, str(abs(value)))), -places))
