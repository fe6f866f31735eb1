"""`manage.py bookoperator`: what the operator moved himself at the payment processor."""

from __future__ import annotations

import json
import sys
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandParser

from marketplace import clock
from marketplace.accounts.services import SYSTEM
from marketplace.billing.operator_models import OperatorPosting
from marketplace.billing.services.operator_postings import WITHDRAWN_FROM, post_operator_movement
from marketplace.errors import DomainError
from marketplace.ids import derived_id, uuid7
from marketplace.ledger.models import AccountKind

_NAMESPACE = UUID("01a1fa2c-14f7-7136-8b1d-740cbe8302f3")


class Command(BaseCommand):
    help = (
        "Write down capital put into the payment processor's balance, earnings or tax taken out of it, or a fee that "
        "it billed beside its movements. Moves nothing there. Prints one JSON object: id, kind, amount_micros. With a "
        "reference, again posts nothing more; without one each call posts."
    )
    requires_migrations_checks = False

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("kind", choices=OperatorPosting.Kind.values, help="what it is")
        parser.add_argument("amount_micros", type=int, help="in millionths of the market's currency")
        parser.add_argument(
            "--account",
            choices=[str(kind) for kind in WITHDRAWN_FROM],
            default=str(AccountKind.OPERATOR),
            help="of a withdrawal: out of which account of the operator's; default: operator",
        )
        parser.add_argument("--reference", default="", help="the processor's own name of the movement")
        parser.add_argument("--reason", required=True, help="for the trail")

    def handle(self, *args: Any, **options: Any) -> None:
        reference = options["reference"].strip()
        try:
            made = post_operator_movement(
                kind=options["kind"],
                amount_micros=options["amount_micros"],
                account_kind=options["account"],
                reference=reference,
                reason=options["reason"],
                operation_id=derived_id(_NAMESPACE, reference) if reference else uuid7(),
                now=clock.now(),
                actor=SYSTEM,
            )
        except DomainError as error:
            self.stderr.write(f"bookoperator: {error}")
            sys.exit(1)
        self.stdout.write(
            json.dumps({"id": str(made.id), "kind": made.kind, "amount_micros": made.amount_micros})
        )
