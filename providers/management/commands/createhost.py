"""Create a host and print the code its agent enrols with."""

from __future__ import annotations

import json
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from marketplace import clock
from marketplace.accounts.models import Organization
from marketplace.accounts.services import SYSTEM
from marketplace.errors import DomainError
from providers.selectors import hosts_of
from providers.services import ENROLMENT_CODE_VALID, create_host, issue_enrolment_code

_EPILOG = """\
prints one JSON object:
  {"organization_id", "host_id", "name", "region", "enrolment_code", "expires_at"}

The code works once, within an hour, and is not kept in clear: run the command again with --renew for another one.
On the host:  python -m providers.agent enroll --url MARKET_URL --code CODE --config FILE

exit codes: 0 done; 1 refused, with the reason on stderr.
"""


class Command(BaseCommand):
    help = "Create a host of a provider and print, as JSON, its id and the one-time enrolment code for its agent."

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Any:
        return super().create_parser(
            prog_name, subcommand, epilog=_EPILOG, formatter_class=RawDescriptionHelpFormatter, **kwargs
        )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("organization", help="the provider organization: its id, or its name")
        parser.add_argument("name", help="the host's name, unique in the organization")
        parser.add_argument(
            "--region", required=True, help="where it stands; part of what its grades promise"
        )
        parser.add_argument("--site", default="", help="the building or data centre, for people")
        parser.add_argument(
            "--renew", action="store_true", help="the host exists: only issue a new code for it"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        now = clock.now()
        organization = _organization(options["organization"])
        try:
            with transaction.atomic():
                if options["renew"]:
                    host = hosts_of(organization.pk).filter(name=options["name"]).first()
                    if host is None:
                        raise CommandError("name: the organization has no host of this name")
                else:
                    host = create_host(
                        organization_id=organization.pk,
                        name=options["name"],
                        region=options["region"],
                        site=options["site"],
                        now=now,
                        actor=SYSTEM,
                    )
                code = issue_enrolment_code(
                    organization_id=organization.pk, host_id=host.pk, now=now, actor=SYSTEM
                )
        except DomainError as error:
            raise CommandError(f"{error.field}: {error.detail}" if error.field else error.detail) from None
        answer = {
            "organization_id": str(organization.pk),
            "host_id": str(host.pk),
            "name": host.name,
            "region": host.region,
            "enrolment_code": code,
            "expires_at": (now + ENROLMENT_CODE_VALID).isoformat(),
        }
        self.stdout.write(json.dumps(answer))


def _organization(text: str) -> Organization:
    try:
        condition = {"pk": UUID(text)}
    except ValueError:
        condition = {"name__iexact": text}  # type: ignore[dict-item]
    organization = Organization.objects.filter(**condition).first()
    if organization is None:
        raise CommandError("organization: there is none with this id or name")
    return organization
