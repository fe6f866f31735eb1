"""The environment that all programs of the local market share, kept in one file (mode 0600) in its data directory."""

import base64
import os
import secrets
from pathlib import Path

from marketplace.local.paths import data_directory

FILE_NAME = "environment"


def read_environment(directory: Path) -> dict[str, str]:
    """The kept variables; empty when this market was never started."""
    try:
        lines = (directory / FILE_NAME).read_text().splitlines()
    except (FileNotFoundError, PermissionError):
        return {}
    pairs = (line.partition("=") for line in lines if "=" in line)
    return {name: value for name, _, value in pairs}


def write_environment(directory: Path, variables: dict[str, str]) -> None:
    """Keep the variables for management commands and the next start; readable by this user only."""
    write_private(directory / FILE_NAME, "".join(f"{name}={value}\n" for name, value in variables.items()))


def load_local_environment() -> None:
    """Let a management command speak with the market of this checkout; what is set already wins."""
    for name, value in read_environment(data_directory()).items():
        os.environ.setdefault(name, value)


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)


def new_secret() -> str:
    return secrets.token_urlsafe(36)


def new_signing_key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()
