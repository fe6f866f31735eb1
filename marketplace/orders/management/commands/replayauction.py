"""`manage.py replayauction ID`: recompute a past auction from its stored book."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError

from marketplace.errors import DomainError
from marketplace.orders.services.replaying import replay_auction


class Command(BaseCommand):
    help = (
        "Recompute a past auction from its sealed book and compare both digests with the stored ones. Prints JSON; "
        "exits 1 when one differs. Changes nothing."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("auction", type=UUID, help="the auction's id")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            result = replay_auction(auction_id=options["auction"])
        except DomainError as error:
            raise CommandError(error.detail) from error
        self.stdout.write(json.dumps(result, indent=1))
        if not result["matches"]:
            raise SystemExit(1)
