"""Numbers and times as people read them, exact to the last digit. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Final

from pricing.tariffs import Kind, Tariff
from pricing.units import NUMERATOR_PER_STANDARD_TOKEN, decimal_string, format_micros

_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_PREFIXES: Final = ((10**12, 12, "T"), (10**9, 9, "G"), (10**6, 6, "M"), (10**3, 3, "k"))


def grouped(text: str) -> str:
    """Thousands set apart by narrow spaces, the decimals as they are."""
    sign, digits = ("\u2212", text[1:]) if text.startswith("-") else ("", text)
    whole, point, decimals = digits.partition(".")
    groups: list[str] = []
    while len(whole) > 3:
        groups.insert(0, whole[-3:])
        whole = whole[:-3]
    return sign + "\u202f".join([whole, *groups]) + point + decimals


def money(amount_micros: int, currency: str) -> str:
    """`1 234.50 USD`, with as many decimals as the amount has."""
    return f"{grouped(format_micros(amount_micros, currency))}\u00a0{currency}"


def rate(micros_per_mtok: int) -> str:
    """Currency units per million standard tokens."""
    return grouped(decimal_string(micros_per_mtok, 6, minimum_decimals=2))


def month_tariff(tariff: Tariff, currency: str) -> list[str]:
    """What a month's volume costs, a line for each tier."""
    if tariff.kind is Kind.PACKAGE:
        price = grouped(decimal_string(tariff.package_micros, 6, minimum_decimals=2))
        return [f"{price} {currency} for each begun {_mtok(tariff.unit)} of a month"]
    whole = "the whole month at " if tariff.kind is Kind.VOLUME else ""
    lines = []
    for before, tier in pairwise([None, *tariff.tiers]):
        assert tier is not None
        price = f"{whole}{rate(tier.rate)}"
        if tier.up_to is not None:
            lines.append(f"up to {_mtok(tier.up_to)}: {price}")
        else:
            assert before is not None, "one tier alone is a rate per unit"
            assert before.up_to is not None
            lines.append(f"beyond {_mtok(before.up_to)}: {price}")
    return lines


def _mtok(numerator: int) -> str:
    return f"{grouped(decimal_string(numerator, 12))} Mtok"


def standard_tokens(numerator: int) -> str:
    return grouped(decimal_string(numerator, 6))


def lots(quantity: int) -> str:
    return grouped(str(quantity))


def lots_of(numerator: int) -> str:
    """A numerator in lots, exact."""
    return grouped(decimal_string(numerator, 9))


def percent(ppm: int) -> str:
    return f"{grouped(decimal_string(ppm, 4))}\u2009%"


def change_percent(before: int, after: int) -> str:
    """The change in per cent to two decimals, signed. `before` must be positive."""
    assert before > 0
    hundredths = ((after - before) * 20_000 + before) // (2 * before)
    sign = "+" if hundredths > 0 else ""
    text = decimal_string(hundredths, 2, minimum_decimals=2)
    return f"{sign}{grouped(text)}\u2009%"


def short(value: int, exponent: int = 0) -> str:
    """`value / 10**exponent` with a metric prefix where it has one exactly: for axes, whose steps are round."""
    for size, more, prefix in _PREFIXES:
        if value and abs(value) >= size * 10**exponent:
            return f"{decimal_string(value, exponent + more)}\u2009{prefix}"
    return decimal_string(value, exponent)


def axis_tokens(numerator: int) -> str:
    return short(numerator, 6)


def axis_money(micros: int) -> str:
    return decimal_string(micros, 6)


def age(since: datetime, now: datetime) -> str:
    """How long ago, in the largest unit that fits: `3 s`, `12 min`."""
    return length(max(timedelta(0), now - since))


def length(span: timedelta) -> str:
    """A duration in its largest unit, and the next one when that is 1: `12 min`, `1 h 30 min`."""
    seconds = int(span.total_seconds())
    for index, (size, unit) in enumerate(_UNITS):
        count, rest = divmod(seconds, size)
        if count:
            text = f"{count}\u00a0{unit}"
            if count == 1 and index + 1 < len(_UNITS):
                smaller, smaller_unit = _UNITS[index + 1]
                if rest // smaller:
                    text += f" {rest // smaller}\u00a0{smaller_unit}"
            return text
    return "0\u00a0s"


def clock_time(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%H:%M:%S" if at.second else "%H:%M")


def of_day(second: int) -> str:
    """A second of the UTC day as a time of day; the day ends at 24:00."""
    text = f"{second // 3_600:02}:{second // 60 % 60:02}"
    return f"{text}:{second % 60:02}" if second % 60 else text


def day_time(at: datetime) -> str:
    """UTC, as all times of the market."""
    return at.astimezone(UTC).strftime("%d %b %H:%M:%S" if at.second else "%d %b %H:%M")


def tokens_per_second(numerator_per_s: int) -> str:
    """Dependable capacity in whole standard tokens a second."""
    return grouped(str(numerator_per_s // NUMERATOR_PER_STANDARD_TOKEN))
