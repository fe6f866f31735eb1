"""The local market's launcher: real processes, real kills."""

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from marketplace.local.environment import read_environment, write_private
from marketplace.local.installation import prepare_installation
from marketplace.local.paths import CHECKOUT
from marketplace.local.ports import LOOPBACK, choose_ports, is_free

SETTINGS_OF_OTHERS = ("DATABASE_URL", "DATABASE_OWNER_URL", "REDIS_URL", "SECRET_KEY", "MARKET_SIGNING_KEY")


def test_a_kept_port_comes_first_and_a_taken_one_leads_to_another() -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_free(port)
        chosen = choose_ports({"web": port, "gateway": port}, kept={})
        assert len({port, *chosen.values()}) == 3
        assert choose_ports({"web": port}, kept=chosen)["web"] == chosen["web"]


def test_the_local_market_needs_no_choice_of_payment_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PAYMENT_PROCESSOR")
    assert prepare_installation(tmp_path / "data").environment["PAYMENT_PROCESSOR"] == "sandbox"


def test_private_files_are_private_from_the_first_byte(tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    write_private(file, "one")
    write_private(file, "two")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text() == "two"
    assert list(tmp_path.iterdir()) == [file]


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data directory that PostgreSQL's own user can reach when the tests run as root."""
    root = Path("/var/lib") if os.geteuid() == 0 else tmp_path_factory.mktemp("market")
    chosen = root / f"tokenyard-test-{os.getpid()}"
    yield chosen
    local("stop", chosen)
    assert local("reset", chosen).returncode == 0
    assert not chosen.exists()


def environment(directory: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS_OF_OTHERS}
    return kept | {"TOKENYARD_DATA": str(directory), "TOKENYARD_DEMO": "0"}


def local(command: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "marketplace.local", command],
        cwd=CHECKOUT,
        env=environment(directory),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


class Market:
    """`make run` in the background."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.output = directory.with_name(directory.name + ".output")
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "marketplace.local", "run"],
                cwd=CHECKOUT,
                env=environment(directory),
                stdout=output,
                stderr=output,
            )
        deadline = time.monotonic() + 90
        while "Ctrl-C" not in self.text():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.1)
        self.all = psutil.Process(self.process.pid).children(recursive=True)

    def text(self) -> str:
        return self.output.read_text()

    def supervisor(self) -> psutil.Process:
        return next(process for process in self.all if "supervisor.supervisord" in process.cmdline())

    def end(self, name: signal.Signals) -> int:
        self.process.send_signal(name)
        code = self.process.wait(timeout=90)
        self.output.unlink()
        return code

    def still_there(self) -> list[psutil.Process]:
        return list(psutil.wait_procs(self.all, timeout=30)[1])


@pytest.mark.faults
def test_a_market_starts_stops_cleanly_and_goes_on_after_kills(directory: Path) -> None:
    first = Market(directory)
    kept = read_environment(directory)
    with urllib.request.urlopen(kept["PORTAL_URL"] + "/readyz", timeout=5) as answer:
        assert answer.status == 200
    for name in ("secrets.json", "environment", "supervisord.conf"):
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600, name
    if os.geteuid() == 0:
        postgres = [process for process in first.all if process.name() == "postgres"]
        assert {process.username() for process in postgres} == {"nobody"}
    second = local("run", directory)
    assert second.returncode == 1
    assert "already runs" in second.stderr
    assert first.end(signal.SIGINT) == 0
    assert first.still_there() == []

    again = Market(directory)
    assert read_environment(directory) == kept, "same ports, same secrets, same data"
    supervisor = again.supervisor()
    again.process.kill()
    supervisor.kill()
    again.process.wait()

    third = Market(directory)
    assert re.search(r"Ended what an earlier run left behind: .*postgres", third.text())
    assert again.still_there() == []
    third.supervisor().kill()
    assert third.process.wait(timeout=90) == 1
    assert "ended unexpectedly" in third.text()
    third.output.unlink()
    assert third.still_there() == []
