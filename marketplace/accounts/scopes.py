"""What an API key may be allowed to do. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final


class Scope(StrEnum):
    READ = "read"
    INFERENCE = "inference"
    TRADE = "trade"
    PROVIDE = "provide"
    MANAGE = "manage"
    OPERATE = "operate"


_BY_ROLE: Final = {
    "buyer": {Scope.READ, Scope.INFERENCE, Scope.TRADE, Scope.MANAGE},
    "provider": {Scope.READ, Scope.PROVIDE, Scope.MANAGE},
    "operator": {Scope.READ, Scope.OPERATE, Scope.MANAGE},
}


def scopes_allowed(roles: Iterable[str]) -> list[str]:
    """Every scope a key of an organization with these roles may carry, in a fixed order."""
    allowed = set().union(*(_BY_ROLE[role] for role in roles))
    return [scope.value for scope in Scope if scope in allowed]
