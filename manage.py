#!/usr/bin/env python3
"""Run the market's management commands, by default against the market that `make run` keeps on this machine."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "marketplace.settings")
    if "DATABASE_URL" not in os.environ:
        from marketplace.local.environment import load_local_environment

        load_local_environment()
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
