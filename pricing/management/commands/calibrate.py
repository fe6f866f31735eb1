"""Measure kappa of a tokenizer on a folder of texts."""

from __future__ import annotations

import json
import re
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from marketplace import clock
from marketplace.errors import DomainError
from pricing.calibrating import (
    MAX_WEIGHT,
    ClassCounts,
    CorpusClass,
    corpus_digest,
    kappa_of,
    measure,
    spread_of,
)
from pricing.corpora import read_corpus
from pricing.services import publish_known_calibrations, record_calibration
from pricing.tokenizers import TOKENIZER_NAMES, count_o200k, open_tokenizer

_EPILOG = f"""\
tokenizers: {", ".join(TOKENIZER_NAMES)};
  or the path of a tokenizer.json, of a Tekken JSON (its name begins with "tekken"), or of a SentencePiece model

Each file of the folder is a content class and is named after it: a language, or code. A file without suffix, or .txt,
has one text a line; any other is one text.

prints one JSON object a measurement:
  {{"tokenizer", "tokenizer_digest", "made_by", "corpus", "corpus_digest", "kappa_ppm",
   "spread": {{"least_ppm", "p10_ppm", "median_ppm", "p90_ppm", "most_ppm"}},
   "classes": [{{"name", "weight", "texts", "utf8_bytes", "native_tokens", "o200k_tokens", "kappa_ppm"}}],
   "calibration_id", "version", "new"}}
The same vocabulary on the same corpus and mix makes no new version. With --dry-run the last three are left out.

exit codes: 0 done; 1 refused, with the reason on stderr.
"""


class Command(BaseCommand):
    help = (
        "Measure how many o200k tokens one token of a tokenizer carries (kappa, in ppm) on a folder of texts, with its "
        "spread per content class, keep it as the tokenizer's next version, and print it as JSON."
    )

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Any:
        return super().create_parser(
            prog_name, subcommand, epilog=_EPILOG, formatter_class=RawDescriptionHelpFormatter, **kwargs
        )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("tokenizer", nargs="?", help="a name or a path, see below")
        parser.add_argument("corpus_folder", nargs="?", type=Path, help="a folder, one file a content class")
        parser.add_argument("--name", help="what to call the tokenizer; default: its name, or the file's")
        parser.add_argument("--corpus", help="what to call the corpus; default: the folder's name")
        parser.add_argument(
            "--weight",
            action="append",
            default=[],
            metavar="CLASS=WEIGHT",
            help="count a class that often in the mix, instead of once; repeatable",
        )
        parser.add_argument("--dry-run", action="store_true", help="measure and print, keep nothing")
        parser.add_argument(
            "--known",
            action="store_true",
            help="measure nothing: keep the calibrations that come with this software, where they are not kept yet",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            if options["known"]:
                if options["tokenizer"] is not None:
                    raise CommandError("--known: takes no tokenizer and no folder")
                for made in publish_known_calibrations(now=clock.now()):
                    self._print(
                        {"tokenizer": made.tokenizer, "version": made.version, "calibration_id": made.pk}
                    )
                return
            if options["corpus_folder"] is None:
                raise CommandError("corpus_folder: name a tokenizer and a folder, or use --known")
            self._calibrate(options)
        except DomainError as error:
            raise CommandError(f"{error.field}: {error.detail}" if error.field else error.detail) from error

    def _calibrate(self, options: dict[str, Any]) -> None:
        corpus = read_corpus(options["corpus_folder"])
        weights = _weights(options["weight"], corpus)
        tokenizer = open_tokenizer(options["tokenizer"])
        classes = measure(corpus, native=tokenizer.count, reference=count_o200k, weights=weights)
        terms = {
            "tokenizer": options["name"] or tokenizer.name,
            "tokenizer_digest": tokenizer.digest,
            "made_by": tokenizer.made_by,
            "corpus": options["corpus"] or options["corpus_folder"].resolve().name,
            "corpus_digest": corpus_digest(corpus, weights),
        }
        shown = {**terms, **_figures(classes)}
        if not options["dry_run"]:
            made, new = record_calibration(**terms, classes=classes, now=clock.now())
            shown |= {"calibration_id": made.pk, "version": made.version, "new": new}
        self._print(shown)

    def _print(self, shown: dict[str, Any]) -> None:
        self.stdout.write(json.dumps(shown, default=str))


def _figures(classes: Sequence[ClassCounts]) -> dict[str, Any]:
    spread = spread_of(classes)
    return {
        "kappa_ppm": kappa_of(classes),
        "spread": {name: getattr(spread, name) for name in spread.__slots__},
        "classes": [{name: getattr(one, name) for name in (*one.__slots__, "kappa_ppm")} for one in classes],
    }


def _weights(asked: Sequence[str], corpus: Sequence[CorpusClass]) -> dict[str, int]:
    known = {one.name for one in corpus}
    weights: dict[str, int] = {}
    for text in asked:
        found = re.fullmatch(r"(.+)=([0-9]{1,7})", text)
        if found is None or not 1 <= int(found[2]) <= MAX_WEIGHT:
            raise CommandError(
                f"weight: {text[:80]!r} is not CLASS=WEIGHT with a weight from 1 to {MAX_WEIGHT}"
            )
        if found[1] not in known:
            raise CommandError(f"weight: the folder has no class {found[1][:80]!r}")
        if found[1] in weights:
            raise CommandError(f"weight: {found[1]} has two")
        weights[found[1]] = int(found[2])
    return weights
