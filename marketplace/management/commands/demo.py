"""`manage.py demo`: the demonstration market of `make run`: its cast, its agents' files, its traffic."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand

from marketplace import clock
from marketplace.local import demo, traffic
from marketplace.local.paths import data_directory
from marketplace.local.ports import chosen_ports


class Command(BaseCommand):
    help = (
        "The demonstration market that `make run` shows. --prepare makes a buyer (acme), a provider (hyperion) with "
        "two hosts, the operator, a grade and the agents' configuration, once; running it again changes nothing. "
        "--traffic sends real requests through the gateway until it is stopped. --banner prints addresses and "
        "sign-ins. The sign-ins are kept in demo.json (mode 0600). Prints JSON, but --banner."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument("--prepare", action="store_true", help="make what is missing")
        what.add_argument("--traffic", action="store_true", help="buy, bid and send requests until stopped")
        what.add_argument(
            "--banner", action="store_true", help="print addresses, sign-ins, an API key and a curl line"
        )
        parser.add_argument(
            "--directory",
            type=Path,
            default=data_directory(),
            help="where demo.json and the agents' files are (default: the data directory of this checkout's market)",
        )
        parser.add_argument(
            "--seconds", type=int, default=0, help="with --traffic: stop after so long (0: never)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        directory: Path = options["directory"]
        if options["prepare"]:
            made = demo.prepare(directory=directory, ports=chosen_ports(), now=clock.now())
            self.stdout.write(json.dumps(made, indent=1))
        elif options["banner"]:
            self.stdout.write(demo.banner(directory))
        else:
            traffic.run(directory=directory, seconds=options["seconds"])
