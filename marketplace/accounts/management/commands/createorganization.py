"""`manage.py createorganization NAME --roles buyer,provider`."""

from __future__ import annotations

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db import transaction

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.accounts.scopes import scopes_allowed
from marketplace.accounts.services import SYSTEM, create_api_key, create_organization, ensure_operator
from marketplace.errors import DomainError


class Command(BaseCommand):
    help = (
        "Create an organization and one API key for it. Prints one JSON object: organization_id, name, roles, "
        "api_key_id, scopes, api_key and operator_id. The text of the key is shown here and never again: only its "
        "SHA-256 is kept. Roles: buyer, provider, operator, joined by commas. A market has exactly one operator, "
        "whose books take the fees: the first run creates it, named 'Operator', unless it is the one you create. "
        "Exits 0 when created; 1 when refused, with a JSON problem (code, detail, field) on stderr and nothing "
        "changed; 2 for a wrong command line."
    )
    requires_migrations_checks = False

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", metavar="NAME", help="unique in the market, 1 to 200 characters")
        parser.add_argument(
            "--roles",
            required=True,
            help=f"one or more of {', '.join(OrganizationRole.values)}, joined by commas",
        )
        parser.add_argument(
            "--label", default="createorganization", help="of the API key (default: %(default)s)"
        )
        parser.add_argument("--project", default="", help="of the API key; usage is reported per project")

    def handle(self, *args: Any, **options: Any) -> None:
        roles = [role.strip() for role in options["roles"].split(",")]
        now = clock.now()
        try:
            with transaction.atomic():
                organization = create_organization(name=options["name"], roles=roles, now=now)
                operator = ensure_operator(now=now)
                api_key, text = create_api_key(
                    organization_id=organization.id,
                    label=options["label"],
                    project=options["project"],
                    scopes=scopes_allowed(roles),
                    now=now,
                    actor=SYSTEM,
                )
        except DomainError as error:
            refusal = {"code": error.code, "detail": error.detail, "field": error.field or ""}
            self.stderr.write(json.dumps(refusal))
            sys.exit(1)
        report = {
            "organization_id": str(organization.id),
            "name": organization.name,
            "roles": organization.roles,
            "api_key_id": str(api_key.id),
            "scopes": api_key.scopes,
            "api_key": text,
            "operator_id": str(operator.id),
        }
        self.stdout.write(json.dumps(report))
