"""The units of the market and the only roundings it knows.

Quantity is counted in `StandardNumerator`, millionths of a standard token; money in micros of the
currency unit. Everything is an integer: text is read and written here exactly, and nothing passes through
a float.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NewType

Micros = NewType("Micros", int)
MicrosPerMtok = NewType("MicrosPerMtok", int)
Lots = NewType("Lots", int)
Ppm = NewType("Ppm", int)
StandardNumerator = NewType("StandardNumerator", int)
NativeTokens = NewType("NativeTokens", int)
Millijoules = NewType("Millijoules", int)

PPM: Final = 10**6
MICROS_PER_UNIT: Final = 10**6
NUMERATOR_PER_STANDARD_TOKEN: Final = 10**6
NUMERATOR_PER_LOT: Final = 10**9
NUMERATOR_PER_MTOK: Final = 10**12

MAX_PARSED_DIGITS: Final = 18  # Keeps every parsed amount inside a bigint.


class Bucket(StrEnum):
    """Disjoint categories of tokens; every token of a request is in exactly one."""

    UNCACHED_INPUT = "uncached_input"
    CACHE_READ = "cache_read"
    CACHE_WRITE = "cache_write"
    OUTPUT = "output"
    REASONING = "reasoning"
    IMAGE_INPUT = "image_input"
    AUDIO_INPUT = "audio_input"
    AUDIO_OUTPUT = "audio_output"


INPUT_BUCKETS: Final = (
    Bucket.UNCACHED_INPUT,
    Bucket.CACHE_READ,
    Bucket.CACHE_WRITE,
    Bucket.IMAGE_INPUT,
    Bucket.AUDIO_INPUT,
)
OUTPUT_BUCKETS: Final = (Bucket.OUTPUT, Bucket.REASONING, Bucket.AUDIO_OUTPUT)

# ISO 4217, active codes with a minor unit; those not named below have two decimals.
_EXPONENT_0 = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"
_EXPONENT_2 = (
    "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF "
    "CNY COP CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL "
    "HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT "
    "MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB "
    "SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH "
    "USD UYU UZS VES WST XCD XCG YER ZAR ZMW ZWG"
)
_EXPONENT_3 = "BHD IQD JOD KWD LYD OMR TND"
_EXPONENT_4 = "CLF UYW"
CURRENCY_EXPONENTS: Final[dict[str, int]] = {
    code: exponent
    for exponent, codes in ((0, _EXPONENT_0), (2, _EXPONENT_2), (3, _EXPONENT_3), (4, _EXPONENT_4))
    for code in codes.split()
}


def div_half_even(numerator: int, denominator: int) -> int:
    """The nearest integer to the quotient; an exact half goes to the even neighbour."""
    assert denominator > 0
    quotient, remainder = divmod(numerator, denominator)
    doubled = 2 * remainder
    if doubled > denominator or (doubled == denominator and quotient % 2):
        return quotient + 1
    return quotient


def div_half_up(numerator: int, denominator: int) -> int:
    """The nearest integer; an exact half goes away from zero, as tax authorities ask, also for credits."""
    assert denominator > 0
    if numerator < 0:
        return -div_half_up(-numerator, denominator)
    return (2 * numerator + denominator) // (2 * denominator)


def div_ceil(numerator: int, denominator: int) -> int:
    """The smallest integer not below the quotient."""
    assert denominator > 0
    return -(-numerator // denominator)


def split_by_weight(total: int, weights: Sequence[int]) -> list[int]:
    """Parts of `total` in proportion to `weights`, summing to the whole: largest remainder, ties to the
    lower index.

    A negative total (a refund) splits as the mirror image of the positive one. Raises ValueError on a
    negative weight, or when there is something to split and no weight to split it by.
    """
    if any(weight < 0 for weight in weights):
        raise ValueError("weights: must not be negative")
    if total < 0:
        return [-part for part in split_by_weight(-total, weights)]
    weight_sum = sum(weights)
    if weight_sum == 0:
        if total:
            raise ValueError("weights: sum to zero, so the total has nowhere to go")
        return [0] * len(weights)
    parts: list[int] = []
    remainders: list[tuple[int, int]] = []
    for index, weight in enumerate(weights):
        part, remainder = divmod(total * weight, weight_sum)
        parts.append(part)
        remainders.append((-remainder, index))
    left = total - sum(parts)
    if left:
        for _, index in sorted(remainders)[:left]:
            parts[index] += 1
    return parts


largest_remainder = split_by_weight


def decimal_string(numerator: int, exponent: int, *, minimum_decimals: int = 0) -> str:
    """`numerator / 10**exponent`, written exactly, without trailing zeros beyond `minimum_decimals`."""
    assert exponent >= 0
    assert minimum_decimals >= 0
    sign = "-" if numerator < 0 else ""
    whole, fraction = divmod(abs(numerator), 10**exponent)
    decimals = f"{fraction:0{exponent}d}".rstrip("0") if exponent and fraction else ""
    decimals = decimals.ljust(minimum_decimals, "0")
    return f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"


def currency_exponent(currency: str) -> int:
    """Decimals of the currency's minor unit (ISO 4217). Raises ValueError for a code that is not in the
    standard.
    """
    try:
        return CURRENCY_EXPONENTS[currency]
    except KeyError:
        raise ValueError(f"currency: {currency!r} is not an ISO 4217 code") from None


def format_micros(amount: int, currency: str) -> str:
    """An amount as an exact decimal of currency units, at least as many decimals as the currency has:
    `1.50`, `0.000001`.
    """
    return decimal_string(amount, 6, minimum_decimals=min(6, currency_exponent(currency)))


def micros_per_minor_unit(currency: str) -> int:
    """How many micros make one minor unit: 10,000 for USD, 1,000,000 for JPY, 1,000 for KWD."""
    micros: int = 10 ** (6 - currency_exponent(currency))
    return micros


def parse_decimal(text: str, *, decimals: int, field: str = "amount") -> int:
    """A plain decimal such as `-1.25`, scaled by `10**decimals`, exactly.

    Raises ValueError, naming `field` and the reason, for anything else: another type, NaN, Infinity,
    exponents, signs other than one leading minus, separators, blanks, non-ASCII digits, more than 18
    digits, or a finer fraction than can be held.
    """
    if not isinstance(text, str):
        raise ValueError(f"{field}: must be a decimal string, not {type(text).__name__}")
    shown = text if len(text) <= 40 else f"{text[:40]}..."
    body = text[1:] if text.startswith("-") else text
    lowered = body.lower().lstrip("+")
    if lowered in {"nan", "snan", "inf", "infinity"}:
        raise ValueError(f"{field}: {shown!r} is not a finite number")
    if not body or body == ".":
        raise ValueError(f"{field}: {shown!r} has no digits")
    if not body.isascii() or not body.replace(".", "", 1).isdigit():
        if lowered[0].isdigit() and "e" in lowered and lowered.replace("e", "").strip("+-.0123456789") == "":
            raise ValueError(f"{field}: {shown!r} uses an exponent; write it as a plain decimal")
        raise ValueError(f"{field}: {shown!r} is not a plain decimal number")
    whole, point, fraction = body.partition(".")
    if not whole or (point and not fraction):
        raise ValueError(f"{field}: {shown!r} needs digits on both sides of the point")
    if len(whole) + len(fraction) > MAX_PARSED_DIGITS:
        raise ValueError(f"{field}: {shown!r} has more than {MAX_PARSED_DIGITS} digits")
    if len(fraction.rstrip("0")) > decimals:
        raise ValueError(f"{field}: {shown!r} has more than {decimals} decimals")
    scaled: int = int(whole) * 10**decimals + int(fraction[:decimals].ljust(decimals, "0") or "0")
    if scaled >= 2**63:
        raise ValueError(f"{field}: {shown!r} is too large")
    return -scaled if body is not text else scaled


def parse_decimal_to_micros(text: str, *, field: str = "amount") -> Micros:
    """Currency units written as a decimal string, in micros; strict as `parse_decimal`."""
    return Micros(parse_decimal(text, decimals=6, field=field))
