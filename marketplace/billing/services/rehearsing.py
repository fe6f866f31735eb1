"""What cannot be undone is shown first, exactly: done, looked at, rolled back; then done if it is still the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from django.db import transaction

from marketplace.errors import Conflict

Made = TypeVar("Made")
Figures = TypeVar("Figures")


class FiguresChanged(Conflict):
    """What was shown is not what would be done now; nothing was done."""

    code = "figures_changed"


def rehearse(act: Callable[[], Made], figures: Callable[[Made], Figures]) -> Figures:
    """The figures of what `act` would do now, read before it is undone: no row, no number and no event of it stays.

    `act` does nothing outside of the database. Raises what it raises.
    """
    with transaction.atomic():
        found = figures(act())
        transaction.set_rollback(True)
    return found


def carry_out(act: Callable[[], Made], figures: Callable[[Made], Figures], *, shown: Figures) -> Made:
    """Do it, if its figures are those that were shown. Raises FiguresChanged otherwise, and what `act` raises."""
    with transaction.atomic():
        made = act()
        if figures(made) != shown:
            raise FiguresChanged("The figures have changed since they were shown: look at them again.")
    return made
