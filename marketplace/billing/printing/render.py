"""From what a document says to a PDF: the same content gives the same bytes (typst, no network, no system fonts)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

import typst
from django.conf import settings

from marketplace.billing.printing.content import digest_of_content, json_of

_TEMPLATE: Final = Path(__file__).with_name("document.typ")
# Those that are in the wheel: Latin, Greek, Cyrillic and Hebrew, then Arabic. DOCUMENT_FONTS_DIR adds others.
_EMBEDDED: Final = ("Libertinus Serif", "New Computer Modern", "DejaVu Sans Mono")


def pdf_of(content: Mapping[str, Any]) -> bytes:
    """The document of this content as PDF."""
    return _compile(content, "pdf")


def png_of(content: Mapping[str, Any]) -> list[bytes]:
    """Its pages as pictures."""
    pages = _compile_any(content, "png")
    return pages if isinstance(pages, list) else [pages]


def _compile(content: Mapping[str, Any], format_: str) -> bytes:
    made = _compile_any(content, format_)
    assert isinstance(made, bytes)
    return made


def _compile_any(content: Mapping[str, Any], format_: Any) -> Any:
    at = datetime.fromtimestamp(content["at"], tz=UTC)
    shown = {**content, "digest": digest_of_content(content), "date": [at.year, at.month, at.day]}
    fonts, families = _fonts()
    return typst.compile(
        _TEMPLATE.read_bytes(),
        format=format_,
        font_paths=fonts,
        sys_inputs={"content": json_of(shown), "fonts": "|".join(families)},
        timestamp=content["at"],
    )


@cache
def _fonts() -> tuple[typst.Fonts, list[str]]:
    added = [settings.DOCUMENT_FONTS_DIR] if settings.DOCUMENT_FONTS_DIR else []
    fonts = typst.Fonts(include_system_fonts=False, font_paths=added)
    return fonts, [*_EMBEDDED, *sorted(set(fonts.families()) - set(_EMBEDDED))]
