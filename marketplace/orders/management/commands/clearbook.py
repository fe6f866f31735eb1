"""`manage.py clearbook < book.json`: clear a book that is no auction's."""

from __future__ import annotations

import sys
from typing import Any, Final

import msgspec
from django.core.management.base import BaseCommand, CommandError

from pricing.clearing_json import DocumentError, clear_document

_encoder: Final = msgspec.json.Encoder(decimal_format="number")


class Command(BaseCommand):
    help = (
        'Clear a book read from stdin, {"bids": [...], "offers": [...], "tie_rule", "floor", "cap", '
        '"reserve_price"}, by the rule of the market but without a tick, and print the result in the units of the '
        'input. An order is {"id", "price", "quantity", "all_or_none"} or [price, quantity]; numbers may be decimal '
        "strings. Touches no database."
    )
    requires_system_checks = []

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            result = clear_document(sys.stdin.buffer.read().decode())
        except UnicodeDecodeError:
            raise CommandError("document: is not UTF-8") from None
        except DocumentError as error:
            raise CommandError(str(error)) from None
        self.stdout.write(_encoder.encode(result).decode())
