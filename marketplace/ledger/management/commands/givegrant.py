"""`manage.py givegrant`: credit for an organization, by its name."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from marketplace import clock
from marketplace.accounts.models import Organization
from marketplace.errors import DomainError
from marketplace.ids import uuid7
from marketplace.ledger.grants import GrantTerms, give_grant
from marketplace.ledger.models import Grant


class Command(BaseCommand):
    help = (
        "Give an organization credit that is burned before its balance. Of a purchased one it pays the cost basis out "
        "of its prepaid balance. Prints one JSON object: id, free_micros, expires_at. Each call gives one grant more."
    )
    requires_migrations_checks = False

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("organization", help="its name")
        parser.add_argument("amount_micros", type=int, help="in millionths of the market's currency")
        parser.add_argument(
            "--kind", choices=Grant.Kind.values, default=Grant.Kind.GRANTED.value, help="default: granted"
        )
        parser.add_argument("--cost-basis-ppm", type=int, default=0, help="what a purchased one costs")
        parser.add_argument("--priority", type=int, default=100, help="0 to 999, low is burned first")
        parser.add_argument("--days", type=int, help="until it expires; default: never")

    def handle(self, *args: Any, **options: Any) -> None:
        now = clock.now()
        organization = Organization.objects.filter(name=options["organization"]).first()
        if organization is None:
            raise CommandError(f"no organization is called {options['organization']}")
        days = options["days"]
        terms = GrantTerms(
            kind=options["kind"],
            amount_micros=options["amount_micros"],
            currency=settings.MARKET_CURRENCY,
            cost_basis_ppm=options["cost_basis_ppm"],
            priority=options["priority"],
            expires_at=None if days is None else now + timedelta(days=days),
        )
        try:
            given = give_grant(id=uuid7(), organization_id=organization.id, terms=terms, now=now)
        except DomainError as error:
            self.stderr.write(f"givegrant: {error}")
            sys.exit(1)
        expires_at = given.expires_at.isoformat() if given.expires_at else None
        self.stdout.write(
            json.dumps({"id": str(given.id), "free_micros": given.free_micros, "expires_at": expires_at})
        )
