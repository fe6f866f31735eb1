"""Stripe's money: the unit its API counts in, in which steps an amount may come, the least and the most of a charge.

Not ISO 4217's everywhere. Source: Stripe's "Supported currencies" (docs.stripe.com/currencies): "Zero-decimal
currencies" (the ariary is one there and has two decimals in ISO), "Special cases" (ISK and UGX have no decimals but are
sent with two that must be 00: 5 ISK are 500; payouts in HUF and TWD must be evenly divisible by 100), "Three-decimal
currencies" (the last digit must be 0: 5.124 KWD is 5120 or 5130), "Minimum and maximum charge amounts" (eight digits,
twelve of IDR).
Pure; everything in micros.
"""

from __future__ import annotations

from typing import Final

_ZERO_DECIMAL: Final = frozenset(
    {"BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA", "PYG", "RWF", "VND", "VUV", "XAF", "XOF", "XPF"}
)
_THREE_DECIMAL: Final = frozenset(["BHD", "JOD", "KWD", "OMR", "TND"])
_WHOLE: Final = frozenset({"ISK", "UGX"})
_WHOLE_PAYOUTS: Final = _WHOLE | {"HUF", "TWD"}
# Of a settlement in the same currency. Where none is published the least depends on what it is converted to.
_LEAST: Final = {
    "AED": 2_000_000,
    "AUD": 500_000,
    "BGN": 1_000_000,
    "BRL": 500_000,
    "CAD": 500_000,
    "CHF": 500_000,
    "CZK": 15_000_000,
    "DKK": 2_500_000,
    "EUR": 500_000,
    "GBP": 300_000,
    "HKD": 4_000_000,
    "HUF": 175_000_000,
    "INR": 500_000,
    "JPY": 50_000_000,
    "MXN": 10_000_000,
    "MYR": 2_000_000,
    "NOK": 3_000_000,
    "NZD": 500_000,
    "PLN": 2_000_000,
    "RON": 2_000_000,
    "SEK": 3_000_000,
    "SGD": 500_000,
    "THB": 10_000_000,
    "USD": 500_000,
}
_MOST_UNITS: Final = 10**8 - 1
_MOST_UNITS_OF: Final = {"IDR": 10**12 - 1}


def unit_micros(currency: str) -> int:
    """How many micros the number 1 of an `amount` means."""
    if currency in _ZERO_DECIMAL:
        return 1_000_000
    return 1_000 if currency in _THREE_DECIMAL else 10_000


def step_micros(currency: str) -> int:
    """What every amount but a payout must be a multiple of."""
    if currency in _WHOLE:
        return 1_000_000
    return 10_000 if currency in _THREE_DECIMAL else unit_micros(currency)


def payout_step_micros(currency: str) -> int:
    """What a payout to a bank must be a multiple of."""
    return 1_000_000 if currency in _WHOLE_PAYOUTS else step_micros(currency)


def charge_bounds_micros(currency: str) -> tuple[int, int]:
    """The least and the most that is charged at once."""
    step = step_micros(currency)
    most = _MOST_UNITS_OF.get(currency, _MOST_UNITS) * unit_micros(currency)
    return _LEAST.get(currency, step), most // step * step


def units_of(amount_micros: int, currency: str) -> int:
    """The `amount` of a call. What is not whole units is nobody's to send."""
    units, rest = divmod(amount_micros, unit_micros(currency))
    assert rest == 0, "only whole units are moved"
    assert units > 0
    return units


def micros_of(units: int, currency: str) -> int:
    """What an `amount` that Stripe names comes to."""
    return units * unit_micros(currency)
