"""Fixtures for all tests: real servers, a rolled-back database per test, or a database of one's own.

- `db` (pytest-django): the test's changes are rolled back. The right one for nearly every test.
- `committed_db`: a fresh copy, for tests with real commits, threads or other processes.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.conf import settings
from django.core.cache import caches
from django.db import connections
from pytest_django import DjangoDbBlocker

from tests.database import TEMPLATE, Services, services_of, stop_services

pytest_plugins = ("tests.cast", "tests.engine", "tests.house", "tests.market")

_FOLDER = pytest.StashKey[Path]()
# Redis' own default.
_REDIS_DATABASES = 16
_PYTEST_PID = pytest.StashKey[int]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    worker_input: dict[str, Any] | None = getattr(config, "workerinput", None)
    if worker_input is not None:
        config.stash[_FOLDER] = Path(worker_input["services_folder"])
        config.stash[_PYTEST_PID] = int(worker_input["services_pytest_pid"])
        return
    folder = Path(tempfile.mkdtemp(prefix="tokenyard-tests-"))
    # PostgreSQL's own user must come through as root's guest; the data folder inside is closed to others.
    folder.chmod(0o711)
    config.stash[_FOLDER] = folder
    config.stash[_PYTEST_PID] = os.getpid()


class _TellWorkers:
    @pytest.hookimpl
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput["services_folder"] = str(node.config.stash[_FOLDER])
        node.workerinput["services_pytest_pid"] = node.config.stash[_PYTEST_PID]


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.pluginmanager.hasplugin("dsession"):
        session.config.pluginmanager.register(_TellWorkers())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits for whole markets begins first, so that the other worker has the rest to do meanwhile."""
    slow = ("scenarios/", "faults/", "marketplace/test_local.py", "portal/test_browser.py")
    items.sort(
        key=lambda item: next((place for place, part in enumerate(slow) if part in item.nodeid), len(slow))
    )


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput") and _FOLDER in config.stash:
        stop_services(config.stash[_FOLDER])


@pytest.fixture(scope="session")
def session_folder(pytestconfig: pytest.Config) -> Path:
    """Shared by all workers of this test session, gone after it."""
    return pytestconfig.stash[_FOLDER]


@pytest.fixture(scope="session")
def services(pytestconfig: pytest.Config, worker_name: str) -> Services:
    """PostgreSQL 18 and Redis of this test session; of Redis a database of the worker's own, as tests clear it."""
    shared = services_of(pytestconfig.stash[_FOLDER], pytest_pid=pytestconfig.stash[_PYTEST_PID])
    server, _, number = shared.redis_url.rpartition("/")
    assert number == "0"
    return replace(shared, redis_url=f"{server}/{_redis_database(worker_name)}")


def _redis_database(worker_name: str) -> int:
    return int(worker_name[2:]) % _REDIS_DATABASES if worker_name.startswith("gw") else 0


@dataclass(frozen=True)
class TestDatabase:
    """A database of one's own, for this process and for others started by the test."""

    __test__ = False

    name: str
    database_url: str
    owner_url: str
    redis_url: str

    @property
    def environment(self) -> dict[str, str]:
        """What a program of the market needs to run on this database."""
        return dict(os.environ) | {
            "DATABASE_URL": self.database_url,
            "DATABASE_OWNER_URL": self.owner_url,
            "REDIS_URL": self.redis_url,
        }


def _database(services: Services, name: str) -> TestDatabase:
    return TestDatabase(name, services.database_url(name), services.owner_url(name), services.redis_url)


def _point_django_at(database: TestDatabase) -> None:
    connections.close_all()
    for alias, url in (("default", database.database_url), ("owner", database.owner_url)):
        parts = urlsplit(url)
        place = {
            "NAME": database.name,
            "USER": parts.username,
            "PASSWORD": parts.password,
            "HOST": parts.hostname,
            "PORT": str(parts.port),
        }
        settings.DATABASES[alias].update(place)
        # settings_dict is the very object that new threads' connections are made from.
        connections[alias].settings_dict.update(place)
    os.environ["DATABASE_URL"] = database.database_url
    os.environ["DATABASE_OWNER_URL"] = database.owner_url
    os.environ["REDIS_URL"] = database.redis_url


@pytest.fixture(scope="session")
def django_db_setup(
    services: Services, django_test_environment: None, django_db_blocker: DjangoDbBlocker, worker_name: str
) -> Iterator[None]:
    """This worker's copy of the migrated template, reached as the app role."""
    database = _database(services, f"tests_{worker_name}")
    services.clone(database.name)
    with django_db_blocker.unblock():
        _point_django_at(database)
    # People's passwords are made by the hundred here; what makes them slow to guess is Django's, and tested there.
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    # Everything that speaks Redis reads the settings late: caches, the broker, the readiness probe.
    settings.REDIS_URL = settings.CELERY_BROKER_URL = services.redis_url
    settings.CACHES["default"]["LOCATION"] = services.redis_url
    with suppress(AttributeError):  # none was made yet
        del caches["default"]
    yield
    with django_db_blocker.unblock():
        connections.close_all()
    services.drop(database.name)


@pytest.fixture(scope="session")
def worker_name() -> str:
    return os.environ.get("PYTEST_XDIST_WORKER", "main")


@contextmanager
def own_database(
    services: Services,
    blocker: DjangoDbBlocker,
    worker_name: str,
    name: str,
    *,
    template: str = TEMPLATE,
    home: Services | None = None,
) -> Iterator[TestDatabase]:
    """A fresh copy that Django works on inside the block; `home` is the session's servers if `services` are others."""
    shared = _database(home or services, f"tests_{worker_name}")
    own = _database(services, f"tests_{worker_name}_{name}")
    services.clone(own.name, template=template)
    with blocker.unblock():
        _point_django_at(own)
        try:
            yield own
        finally:
            _point_django_at(shared)
            services.drop(own.name)


@pytest.fixture
def committed_db(
    services: Services, django_db_setup: None, django_db_blocker: DjangoDbBlocker, worker_name: str
) -> Iterator[TestDatabase]:
    """A fresh database where commits are real. Not together with `db`."""
    with own_database(services, django_db_blocker, worker_name, "committed") as own:
        yield own


@pytest.fixture
def now() -> datetime:
    """A fixed moment, at the start of an hour of an ordinary Tuesday."""
    return datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
