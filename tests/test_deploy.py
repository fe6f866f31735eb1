"""The files of the production shape name things that exist."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings

CHECKOUT = Path(__file__).resolve().parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((CHECKOUT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def test_the_production_shape_is_complete() -> None:
    assert set(SERVICES) == {
        "postgres", "pgbouncer", "redis", "migrate", "web", "gateway", "worker-ingest", "worker-market",
        "worker-billing", "beat", "prometheus", "grafana",
    }  # fmt: skip
    assert SERVICES["postgres"]["image"] == "postgres:18"
    assert SERVICES["pgbouncer"]["environment"]["POOL_MODE"] == "transaction"
    assert "--appendonly" in SERVICES["redis"]["command"]
    assert SERVICES["gateway"]["deploy"]["replicas"] >= 2


@pytest.mark.parametrize("name", [name for name in SERVICES if SERVICES[name].get("image") == "tokenyard"])
def test_commands_name_modules_that_exist(name: str) -> None:
    command = SERVICES[name]["command"]
    modules = [word.partition(":")[0] for word in command if re.match(r"marketplace\.[a-z.]+", word)]
    assert modules or "manage.py" in command
    for module in modules:
        assert find_spec(module) is not None, module


def test_every_queue_has_a_worker_and_every_worker_a_queue_that_is_used() -> None:
    served = {
        queue
        for service in SERVICES.values()
        if "-Q" in service.get("command", [])
        for queue in service["command"][service["command"].index("-Q") + 1].split(",")
    }
    used = {route["queue"] for route in settings.CELERY_TASK_ROUTES.values()}
    assert served == used | {settings.CELERY_TASK_DEFAULT_QUEUE}


def test_no_secret_is_written_down() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|SIGNING", variable):
                assert str(value).startswith("${"), f"{name}: {variable}"


def test_nobody_gets_the_sandbox_without_having_chosen_it() -> None:
    for name, service in SERVICES.items():
        if service.get("image") == "tokenyard":
            assert service["environment"]["PAYMENT_PROCESSOR"].startswith("${PAYMENT_PROCESSOR:?"), name


def test_everything_of_the_market_waits_for_the_migrations() -> None:
    for name, service in SERVICES.items():
        if service.get("image") == "tokenyard" and name != "migrate":
            assert service["depends_on"]["migrate"]["condition"] == "service_completed_successfully", name


def test_the_image_copies_and_installs_what_exists_and_runs_unprivileged() -> None:
    dockerfile = (CHECKOUT / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (CHECKOUT / source).exists(), source
    assert "--require-hashes" in dockerfile
    assert re.search(r"^USER tokenyard$", dockerfile, re.MULTILINE)


@pytest.mark.parametrize("lock", sorted(CHECKOUT.glob("requirements*.lock")), ids=lambda lock: lock.name)
def test_locks_pin_every_package_by_hash_and_name_no_address(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert "--index-url" not in text
    for entry in re.split(r"\n(?=[a-zA-Z0-9])", text):
        assert re.match(r"[a-zA-Z0-9_.\[\]-]+==", entry), entry[:60]
        assert "--hash=sha256:" in entry, entry[:60]
