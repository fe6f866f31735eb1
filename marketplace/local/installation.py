"""What one start of the local market consists of: its directory, ports, secrets and the environment of its programs."""

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from marketplace.local import postgres, redis
from marketplace.local.environment import new_secret, new_signing_key, write_environment, write_private
from marketplace.local.ports import LOOPBACK, USUAL, choose_ports, port_variable, read_ports, write_ports

DATABASE = "tokenyard"
# The demo lives fast: a delivery and a settlement every half minute. The shell's values win.
DEMO_PROFILE: Mapping[str, str] = {
    "DELIVERY_PERIOD_S": "30",
    "SETTLEMENT_PERIOD_S": "30",
    "SETTLEMENT_GRACE_S": "5",
    "MAX_REQUEST_S": "15",
    "ALLOW_PRIVATE_HOSTS": "1",
    "PAYMENT_PROCESSOR": "sandbox",
}
_SECRETS = "secrets.json"
_PORTS = "ports.json"


@dataclass(frozen=True)
class Installation:
    """Everything the programs need; made by `prepare_installation`, kept between starts."""

    directory: Path
    ports: Mapping[str, int]
    passwords: Mapping[str, str]
    environment: Mapping[str, str]
    embeds_postgres: bool
    embeds_redis: bool

    @property
    def admin_url(self) -> str:
        return postgres.database_url(
            postgres.SUPERUSER,
            self.passwords["superuser"],
            port=self.ports["postgres"],
            database="postgres",
        )

    def make_roles(self) -> None:
        """Both roles and the database; only for the embedded server, elsewhere they are the operator's."""
        passwords = {postgres.OWNER_ROLE: self.passwords["owner"], postgres.APP_ROLE: self.passwords["app"]}
        postgres.make_roles(self.admin_url, passwords=passwords, database=DATABASE)


def open_directory(directory: Path) -> None:
    """Make the data directory: private, but for root passable for PostgreSQL's user, whose part is closed again."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o711 if os.geteuid() == 0 else 0o700)
        for name in ("logs", "models"):
            (directory / name).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise postgres.CannotStart(
            f"Data directory {directory} cannot be made ({error.strerror}); set TOKENYARD_DATA to another place"
        ) from None


def is_data_directory(directory: Path) -> bool:
    return (directory / _SECRETS).is_file()


def prepare_installation(directory: Path) -> Installation:
    """Secrets made once and kept (mode 0600), free ports, and the environment file for management commands."""
    open_directory(directory)
    passwords = _kept_secrets(directory / _SECRETS)
    ports = choose_ports(USUAL, kept=read_ports(directory / _PORTS))
    write_ports(directory / _PORTS, ports)
    own = {
        "DJANGO_SETTINGS_MODULE": "marketplace.settings",
        "TOKENYARD_DATA": str(directory),
        "SECRET_KEY": passwords["secret_key"],
        "MARKET_SIGNING_KEY": passwords["signing_key"],
        "PORTAL_URL": f"http://{LOOPBACK}:{ports['web']}",
        "GATEWAY_URL": f"http://{LOOPBACK}:{ports['gateway']}",
        **DEMO_PROFILE,
    }
    embeds_postgres = not os.environ.get("DATABASE_URL")
    if embeds_postgres:
        for variable, role, word in (
            ("DATABASE_URL", postgres.APP_ROLE, "app"),
            ("DATABASE_OWNER_URL", postgres.OWNER_ROLE, "owner"),
        ):
            own[variable] = postgres.database_url(
                role, passwords[word], port=ports["postgres"], database=DATABASE
            )
    embeds_redis = not os.environ.get("REDIS_URL")
    if embeds_redis:
        own["REDIS_URL"] = redis.redis_url(passwords["redis"], port=ports["redis"])
    theirs = ("DATABASE_URL", "DATABASE_OWNER_URL", "REDIS_URL")
    environment = {name: os.environ.get(name) or value for name, value in own.items()}
    environment |= {name: os.environ[name] for name in theirs if os.environ.get(name) and name not in own}
    environment |= {port_variable(name): str(port) for name, port in ports.items()}
    write_environment(directory, environment)
    return Installation(directory, ports, passwords, environment, embeds_postgres, embeds_redis)


def _kept_secrets(file: Path) -> dict[str, str]:
    kept: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    made = {name: secrets.token_hex(16) for name in ("superuser", "owner", "app", "redis", "supervisor")}
    made |= {"secret_key": new_secret(), "signing_key": new_signing_key()}
    complete = made | kept
    if complete != kept:
        write_private(file, json.dumps(complete, indent=1) + "\n")
    return complete


def has_demo() -> bool:
    """Whether the demonstration's cast and traffic are wanted: TOKENYARD_DEMO=0 starts an empty market."""
    return os.environ.get("TOKENYARD_DEMO") != "0"
