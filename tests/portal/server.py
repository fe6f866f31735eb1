"""The portal as its own process, the way it runs in production: gunicorn over the WSGI application."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from marketplace.local.ports import any_free_port

CHECKOUT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 90


@dataclass(frozen=True)
class PortalServer:
    url: str


@contextmanager
def serve(environment: Mapping[str, str], folder: Path) -> Iterator[PortalServer]:
    """Started on a free port, stopped and waited for at the end."""
    port = any_free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "marketplace.wsgi",
        "--bind",
        f"127.0.0.1:{port}",
        "--threads",
        "4",
    ]
    with (folder / "portal.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=CHECKOUT, env={**environment, "PORTAL_URL": url}, stdout=log, stderr=log
        )
    try:
        _wait_until_ready(process, url, folder / "portal.log")
        yield PortalServer(url)
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if requests.get(f"{url}/healthz", timeout=2).status_code == 200:
                return
        except requests.RequestException:
            time.sleep(0.1)
    raise RuntimeError(f"the portal did not start:\n{log.read_text()}")
