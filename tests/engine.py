"""A real llama.cpp server on the tiny model, for tests: one per test process."""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from marketplace.local.tiny_model import write_tiny_model

_START_S = 30.0


@dataclass(frozen=True)
class RunningEngine:
    """Where the engine answers, the file it serves, and the slots' context."""

    url: str
    model_path: Path
    context_tokens: int
    parallel: int


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def run_engine(model_path: Path, *, n_ctx: int = 8192, n_parallel: int = 4) -> Iterator[RunningEngine]:
    """Starts the server, waits until it answers, stops it at the end."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "marketplace.local.engine",
        "--model",
        str(model_path),
        "--port",
        str(port),
    ]
    command += ["--n-ctx", str(n_ctx), "--n-parallel", str(n_parallel)]
    log = model_path.with_name(f"engine-{port}.log")
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait_until_healthy(process, port, log)
            yield RunningEngine(f"http://127.0.0.1:{port}", model_path, n_ctx // n_parallel, n_parallel)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    pytest.fail(f"the engine did not start:\n{log.read_text(errors='replace')[-2000:]}")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_model(path)
    return path


@pytest.fixture(scope="session")
def engine(tiny_model: Path) -> Iterator[RunningEngine]:
    """A real engine with four slots of 2,048 tokens."""
    with run_engine(tiny_model) as running:
        yield running
