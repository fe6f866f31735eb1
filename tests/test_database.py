"""The tests' own servers: one guardian a folder, whoever asks and however impatiently."""

from __future__ import annotations

import subprocess
import sys
from fcntl import LOCK_EX, flock
from pathlib import Path

import pytest

from tests import database


def test_a_second_guardian_leaves_the_folder_to_the_first(tmp_path: Path) -> None:
    with (tmp_path / "guardian.lock").open("w") as lock:
        flock(lock, LOCK_EX)
        command = [sys.executable, "-m", "tests.database", str(tmp_path), "1"]
        done = subprocess.run(command, cwd=database._CHECKOUT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["guardian.lock"]


def test_a_start_that_was_given_up_is_ended_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_START_TIMEOUT_S", -1)
    with pytest.raises(RuntimeError, match="did not start"):
        database.services_of(tmp_path, pytest_pid=1)
    with (tmp_path / "guardian.lock").open("a") as lock:
        flock(lock, LOCK_EX)  # Free: nobody is left who writes to this folder.
    with pytest.raises(RuntimeError, match="not ready after"):
        database.services_of(tmp_path, pytest_pid=1)
    assert not (tmp_path / "ready.json").exists()
