"""What the agent keeps between starts, in one directory that only its user may read."""

import base64
import fcntl
import os
from pathlib import Path
from typing import Self, TypeVar
from uuid import UUID

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from providers.agent.errors import CannotStart
from providers.agent.registers import BenchTokens

T = TypeVar("T")


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """What the market answered at enrolment. Keys are base64 of their 32 raw bytes."""

    market_url: str
    host_id: UUID
    source_id: UUID
    market_public_key: str

    def market_key(self) -> Ed25519PublicKey:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(self.market_public_key, validate=True))


class BenchRecord(msgspec.Struct, frozen=True, kw_only=True):
    """That the engine with this fingerprint was benched and the market has the figures."""

    engine_fingerprint: str
    measured_at_s: int


class State:
    """The state directory, locked for this process.

    Holds the Ed25519 key (0600, made at first use), the enrolment, the offerings listed, and the spool.
    """

    def __init__(self, directory: Path, lock: int) -> None:
        self.directory = directory
        self._lock = lock
        self._bench_tokens: BenchTokens | None = None
        self.private_key = self._load_or_make_key()

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Raises CannotStart when the directory cannot be used, or another agent uses it."""
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CannotStart(
                "state", f"{directory} cannot be used: {error.strerror}", "give --state DIR or set state_dir"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise CannotStart(
                "state",
                f"another agent uses {directory}",
                "stop it first, or give each agent its own state_dir",
            ) from None
        return cls(directory, lock)

    def close(self) -> None:
        os.close(self._lock)

    @property
    def spool_path(self) -> Path:
        return self.directory / "spool.sqlite3"

    @property
    def public_key(self) -> str:
        return base64.b64encode(self.private_key.public_key().public_bytes_raw()).decode()

    def enrolment(self) -> Enrolment | None:
        return self._read("enrolment.json", Enrolment)

    def keep_enrolment(self, enrolment: Enrolment) -> None:
        self._write("enrolment.json", msgspec.json.encode(enrolment))

    def offerings(self) -> dict[str, UUID]:
        """Offering id by grade, as last confirmed by the market."""
        return self._read("offerings.json", dict[str, UUID]) or {}

    def keep_offerings(self, offerings: dict[str, UUID]) -> None:
        self._write("offerings.json", msgspec.json.encode(offerings))

    def bench(self) -> BenchRecord | None:
        return self._read("bench.json", BenchRecord)

    def keep_bench(self, record: BenchRecord) -> None:
        self._write("bench.json", msgspec.json.encode(record))

    def bench_tokens(self) -> BenchTokens:
        """What all benches of this agent have used of its engine."""
        if self._bench_tokens is None:
            self._bench_tokens = self._read("bench-tokens.json", BenchTokens) or BenchTokens()
        return self._bench_tokens

    def add_bench_tokens(self, *, input_tokens: int, output_tokens: int) -> None:
        """Durable when it returns: an agent that forgot would let its bench pass for usage that nobody metered."""
        before = self.bench_tokens()
        self._bench_tokens = BenchTokens(
            input_tokens=before.input_tokens + input_tokens,
            output_tokens=before.output_tokens + output_tokens,
        )
        self._write("bench-tokens.json", msgspec.json.encode(self._bench_tokens))

    def _load_or_make_key(self) -> Ed25519PrivateKey:
        path = self.directory / "agent.key"
        try:
            seed = base64.b64decode(path.read_bytes(), validate=True)
            return Ed25519PrivateKey.from_private_bytes(seed)
        except FileNotFoundError:
            key = Ed25519PrivateKey.generate()
            self._write("agent.key", base64.b64encode(key.private_bytes_raw()))
            return key
        except ValueError:
            raise CannotStart(
                "state", f"{path} is not an agent key", "restore it, or remove the directory and enrol again"
            ) from None

    def _read(self, name: str, kind: type[T]) -> T | None:
        path = self.directory / name
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError:
            raise CannotStart(
                "state", f"{path} is damaged", "restore it, or remove it and enrol again"
            ) from None

    def _write(self, name: str, content: bytes) -> None:
        partial = self.directory / f"{name}.partial"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.directory / name)
