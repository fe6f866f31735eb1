"""Whether a tax number can be one: its form, by country where that is published. Nobody is asked. Pure."""

from __future__ import annotations

import re
from typing import Final

# Value added tax numbers of the European Union (the Commission's list of structures, VIES), without the prefix.
_UNION: Final = {
    "AT": r"U\d{8}", "BE": r"[01]\d{9}", "BG": r"\d{9,10}", "CY": r"\d{8}[A-Z]", "CZ": r"\d{8,10}", "DE": r"\d{9}",
    "DK": r"\d{8}", "EE": r"\d{9}", "GR": r"\d{9}", "ES": r"[A-Z0-9]\d{7}[A-Z0-9]", "FI": r"\d{8}",
    "FR": r"[A-Z0-9]{2}\d{9}", "HR": r"\d{11}", "HU": r"\d{8}", "IE": r"\d[A-Z0-9+*]\d{5}[A-Z]{1,2}", "IT": r"\d{11}",
    "LT": r"\d{9}|\d{12}", "LU": r"\d{8}", "LV": r"\d{11}", "MT": r"\d{8}", "NL": r"[A-Z0-9+*]{10}\d{2}",
    "PL": r"\d{10}", "PT": r"\d{9}", "RO": r"\d{2,10}", "SE": r"\d{12}", "SI": r"\d{8}", "SK": r"\d{10}",
}  # fmt: skip
_PREFIX: Final = {"GR": "EL"}
_ELSEWHERE: Final = re.compile(r"(?=.*\d)[A-Z0-9][A-Z0-9 ./-]{3,63}", re.ASCII)


def can_be_tax_number(number: str, country: str) -> bool:
    """`number` in capitals; with its country's prefix where the country belongs to the European Union."""
    form = _UNION.get(country)
    if form is None:
        return _ELSEWHERE.fullmatch(number) is not None
    prefix = _PREFIX.get(country, country)
    return re.fullmatch(f"{prefix}(?:{form})", number, re.ASCII) is not None
