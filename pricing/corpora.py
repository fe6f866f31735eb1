"""Reads a folder of texts: each file is a content class."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path
from typing import Final

from marketplace.errors import InvalidInput
from pricing.calibrating import CorpusClass

MAX_FILE_BYTES: Final = 64 * 1024 * 1024
MAX_CLASSES: Final = 1_000
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]{0,31}")
_LINE_BY_LINE: Final = ("", ".txt")


def read_corpus(folder: Path) -> list[CorpusClass]:
    """The classes of a folder, by name; a file's name without its suffix names its class.

    A file without suffix, or `.txt`, has one text a line; in any other (`.py`, `.json`) line ends are part of what is
    tokenized, so it is one text. Hidden files are left out. Raises InvalidInput (field `corpus_folder`).
    """
    if not folder.is_dir():
        raise InvalidInput("It must be a folder.", field="corpus_folder")
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if not 1 <= len(paths) <= MAX_CLASSES:
        raise InvalidInput(f"It must have 1 to {MAX_CLASSES} files.", field="corpus_folder")
    classes = [_read(path) for path in paths]
    if len({one.name for one in classes}) < len(classes):
        raise InvalidInput("Two files have one name.", field="corpus_folder")
    return sorted(classes, key=lambda one: one.name)


def _read(path: Path) -> CorpusClass:
    if not _NAME.fullmatch(path.stem):
        raise InvalidInput(
            f"{path.name}: a class is named by up to 32 ASCII letters, digits, _, + and -.",
            field="corpus_folder",
        )
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InvalidInput(f"{path.name} is larger than {MAX_FILE_BYTES} bytes.", field="corpus_folder")
    raw = path.read_bytes()
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise InvalidInput(f"{path.name} is not UTF-8.", field="corpus_folder") from None
    parts = text.split("\n") if path.suffix in _LINE_BY_LINE else [text]
    texts = tuple(part for part in (part.removesuffix("\r") for part in parts) if part.strip())
    if not texts:
        raise InvalidInput(f"{path.name} has no text.", field="corpus_folder")
    return CorpusClass(path.stem, texts, sha256(raw).hexdigest())
