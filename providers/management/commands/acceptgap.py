"""Show what usage is missing, and take a gap for lost."""

from __future__ import annotations

import json
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError

from marketplace import clock
from marketplace.accounts.services import SYSTEM
from marketplace.errors import DomainError
from metering.selectors import sequence_gaps, sources_with_gaps
from providers.services import accept_gap

_EPILOG = """\
prints one JSON object for each meter of which numbered usage is missing:
  {"source_id", "host_id", "since", "missing": [[first, last], ...]}

The market asks hosts for missing usage by itself, and raises an alarm when it does not come. With a meter, the first
and last number of its earliest gap and a reason, that gap is taken for lost (the reason goes into the audit trail), and
what is still missing after that is printed. Should lost usage come after all, it counts.

exit codes: 0 done; 1 refused, with the reason on stderr.
"""


class Command(BaseCommand):
    help = "Show the gaps in hosts' numbered usage and, given one and a reason, take it for lost: the alarm ends."

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Any:
        return super().create_parser(
            prog_name, subcommand, epilog=_EPILOG, formatter_class=RawDescriptionHelpFormatter, **kwargs
        )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "source_id", nargs="?", type=UUID, help="the meter; without it gaps are only shown"
        )
        parser.add_argument("first", nargs="?", type=int, help="first number of the meter's earliest gap")
        parser.add_argument("last", nargs="?", type=int, help="last number of that gap")
        parser.add_argument("--reason", default="", help="why it is lost, for the audit trail")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["source_id"] is not None:
            if options["first"] is None or options["last"] is None:
                raise CommandError("first, last: give both ends of the gap")
            try:
                accept_gap(
                    source_id=options["source_id"],
                    first=options["first"],
                    last=options["last"],
                    reason=options["reason"],
                    now=clock.now(),
                    actor=SYSTEM,
                )
            except DomainError as error:
                raise CommandError(
                    f"{error.field}: {error.detail}" if error.field else error.detail
                ) from None
        for source in sources_with_gaps():
            assert source.gap_since is not None
            shown = {
                "source_id": str(source.pk),
                "host_id": str(source.host_id),
                "since": source.gap_since.isoformat(),
                "missing": sequence_gaps(source),
            }
            self.stdout.write(json.dumps(shown))
