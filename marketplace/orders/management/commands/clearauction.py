"""`manage.py clearauction`: move the market's rounds on by hand."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError

from marketplace import clock
from marketplace.errors import DomainError
from marketplace.orders.services.clearing import clear_auction, publish_auction
from marketplace.orders.services.rounds import advance_auctions


class Command(BaseCommand):
    help = (
        "Do what is due of the spot market's rounds: open books, close them at the gate, clear, publish. With an id: "
        "clear and publish that closed auction only. Every step may be repeated; a step another worker has done is not "
        "done again. Prints JSON."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "auction", nargs="?", type=UUID, help="the auction's id; all that is due when left out"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        auction_id: UUID | None = options["auction"]
        try:
            result = self._run(auction_id)
        except DomainError as error:
            raise CommandError(error.detail) from error
        self.stdout.write(json.dumps(result, indent=1))

    def _run(self, auction_id: UUID | None) -> dict[str, Any]:
        now = clock.now()
        if auction_id is None:
            return dict(advance_auctions(now=now))
        return {
            "auction_id": str(auction_id),
            "cleared": clear_auction(auction_id=auction_id, now=now),
            "published": publish_auction(auction_id=auction_id, now=now),
        }
