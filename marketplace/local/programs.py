"""The programs of the local market, and the supervisor's configuration that runs them."""

import os
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from marketplace.local import postgres, redis
from marketplace.local.installation import Installation, has_demo, has_module
from marketplace.local.paths import CHECKOUT
from marketplace.local.ports import LOOPBACK

PYTHON = sys.executable
_KEEP_LOG_BYTES = 10 * 1024 * 1024


@dataclass(frozen=True)
class Program:
    """One supervised process. `needs` are waited for at every start, also after a crash."""

    name: str
    command: list[str]
    needs: tuple[str, ...] = ()
    user: str | None = None
    stop_signal: str = "TERM"
    stop_wait_s: int = 15
    # False where the process ends its own children in good order.
    stop_as_group: bool = True
    # Ready when this answers; None: ready when it runs.
    probe: str | None = None


def stores(installation: Installation) -> list[Program]:
    """PostgreSQL and Redis, unless the environment points elsewhere."""
    found = []
    if installation.embeds_postgres:
        folder = postgres.binaries(installation.directory)
        data = installation.directory / "postgres"
        postgres.make_cluster(data, binaries=folder, password=installation.passwords["superuser"])
        user = postgres.system_user()
        found.append(
            Program(
                "postgres",
                postgres.server_command(data, binaries=folder, port=installation.ports["postgres"]),
                user=user.pw_name if user else None,
                stop_signal="INT",  # Fast shutdown: SIGTERM would wait for every client.
                stop_wait_s=60,
                stop_as_group=False,
            )
        )
    if installation.embeds_redis:
        command = redis.server_command(
            installation.directory / "redis",
            port=installation.ports["redis"],
            password=installation.passwords["redis"],
        )
        found.append(Program("redis", command, stop_wait_s=30))
    return found


def market(installation: Installation) -> list[Program]:
    """Everything above the stores, in the order of their start."""
    ports, directory = installation.ports, installation.directory
    web = [PYTHON, "-m", "gunicorn", "marketplace.wsgi:application", "--bind", f"{LOOPBACK}:{ports['web']}"]
    web += ["--worker-class", "gthread", "--workers", "1", "--threads", "8", "--no-control-socket"]
    found = [
        Program("web", web, needs=("postgres", "redis"), probe="web", stop_as_group=False),
    ]
    if has_module("marketplace.gateway.asgi"):
        gateway = [PYTHON, "-m", "uvicorn", "marketplace.gateway.asgi:application", "--host", LOOPBACK]
        gateway += ["--port", str(ports["gateway"]), "--no-access-log", "--loop", "uvloop", "--workers", "1"]
        found.append(Program("gateway", gateway, needs=("postgres",), probe="gateway", stop_wait_s=25))
    celery = [PYTHON, "-m", "celery", "-A", "marketplace.celery"]
    worker = [*celery, "worker", "-Q", "ingest,market,billing,default", "--concurrency", "2", "-P", "prefork"]
    worker += ["--without-gossip", "--without-mingle", "--loglevel", "WARNING"]
    beat = [
        *celery,
        "beat",
        "--schedule",
        str(directory / "beat-schedule"),
        "--pidfile=",
        "--loglevel",
        "WARNING",
    ]
    stores_ready = ("postgres", "redis")
    found.append(Program("worker", worker, needs=stores_ready, stop_wait_s=60, stop_as_group=False))
    found.append(Program("beat", beat, needs=stores_ready))
    if has_module("marketplace.local.engine"):
        # Two hosts of different size.
        for number, context, parallel in ((1, 16_384, 4), (2, 8_192, 2)):
            name = f"engine-{number}"
            engine = [PYTHON, "-m", "marketplace.local.engine", "--port", str(ports[name])]
            engine += ["--model", str(directory / "models" / f"tiny-{number}.gguf")]
            engine += ["--n-ctx", str(context), "--n-parallel", str(parallel)]
            found.append(Program(name, engine, probe=name))
    if has_module("providers.agent.__main__"):
        for number in (1, 2):
            configuration = directory / f"agent-{number}.toml"
            if configuration.exists():
                agent = [PYTHON, "-m", "providers.agent", "run", "--config", str(configuration)]
                needs = ("web", f"engine-{number}")
                found.append(
                    Program(f"agent-{number}", agent, needs=needs, probe=f"agent-{number}", stop_wait_s=25)
                )
    if has_demo():
        found.append(
            Program(
                "demo", [PYTHON, str(CHECKOUT / "manage.py"), "demo", "--traffic"], needs=("web", "gateway")
            )
        )
    return found


def supervisor_configuration(installation: Installation, programs: Iterable[Program]) -> str:
    """The whole file. Secrets are in the environment, not here, but for the control password (mode 0600)."""
    directory = installation.directory
    address = f"{LOOPBACK}:{installation.ports['supervisor']}"
    password = installation.passwords["supervisor"]
    sections = [
        f"""[supervisord]
nodaemon=true
silent=true
logfile={_plain(directory / "logs" / "supervisor.log")}
logfile_maxbytes={_KEEP_LOG_BYTES}
logfile_backups=1
pidfile={_plain(directory / "supervisord.pid")}
childlogdir={_plain(directory / "logs")}
directory={_plain(CHECKOUT)}
{"user=root" if os.geteuid() == 0 else ""}

[inet_http_server]
port={address}
username=tokenyard
password={password}

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""
    ]
    # Lower priorities start first and stop last.
    sections += [
        _section(installation, program, priority=10 * place)
        for place, program in enumerate(programs, start=1)
    ]
    return "\n".join(sections)


def _section(installation: Installation, program: Program, *, priority: int) -> str:
    command = program.command
    if program.needs:
        wait = [PYTHON, "-m", "marketplace.local", "wait", "--for", ",".join(program.needs), "--", *command]
        command = wait
    as_group = "true" if program.stop_as_group else "false"
    lines = [
        f"[program:{program.name}]",
        f"command={_plain(shlex.join(command))}",
        f"priority={priority}",
        "autostart=false",
        "autorestart=true",
        "startsecs=1",
        "startretries=1000",
        f"stopsignal={program.stop_signal}",
        f"stopwaitsecs={program.stop_wait_s}",
        f"stopasgroup={as_group}",
        "killasgroup=true",
        "redirect_stderr=true",
        f"stdout_logfile={_plain(installation.directory / 'logs' / program.name)}.log",
        f"stdout_logfile_maxbytes={_KEEP_LOG_BYTES}",
        "stdout_logfile_backups=1",
    ]
    if program.user is not None:
        lines += [f"user={program.user}", "directory=/"]
    return "\n".join(lines) + "\n"


def _plain(value: object) -> str:
    """Supervisor expands % in its file."""
    return str(value).replace("%", "%%")
