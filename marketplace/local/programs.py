"""The programs of the local market, and the supervisor's configuration that runs them."""

import os
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from marketplace.local import postgres, redis
from marketplace.local.installation import Installation, has_demo
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
    found = [_web(installation), _gateway(installation), *_celery(installation)]
    if has_demo():
        found += [*_engines(installation), *_agents(installation)]
        traffic = [PYTHON, str(CHECKOUT / "manage.py"), "demo", "--traffic"]
        found.append(Program("demo", traffic, needs=("web", "gateway")))
    return found


def _web(installation: Installation) -> Program:
    command = [PYTHON, "-m", "gunicorn", "marketplace.wsgi:application"]
    command += [
        "--bind",
        f"{LOOPBACK}:{installation.ports['web']}",
        "--worker-class",
        "gthread",
        "--workers",
        "1",
    ]
    command += ["--threads", "8", "--no-control-socket"]
    return Program("web", command, needs=("postgres", "redis"), probe="web", stop_as_group=False)


def _gateway(installation: Installation) -> Program:
    command = [PYTHON, "-m", "uvicorn", "marketplace.gateway.asgi:application", "--host", LOOPBACK]
    command += [
        "--port",
        str(installation.ports["gateway"]),
        "--no-access-log",
        "--loop",
        "uvloop",
        "--workers",
        "1",
    ]
    return Program("gateway", command, needs=("postgres",), probe="gateway", stop_wait_s=25)


def _celery(installation: Installation) -> list[Program]:
    celery = [PYTHON, "-m", "celery", "-A", "marketplace.celery"]
    worker = [*celery, "worker", "-Q", "ingest,market,billing,default", "--concurrency", "2", "-P", "prefork"]
    worker += ["--without-gossip", "--without-mingle", "--loglevel", "WARNING"]
    beat = [*celery, "beat", "--schedule", str(installation.directory / "beat-schedule"), "--pidfile="]
    beat += ["--loglevel", "WARNING"]
    needs = ("postgres", "redis")
    return [
        Program("worker", worker, needs=needs, stop_wait_s=60, stop_as_group=False),
        Program("beat", beat, needs=needs),
    ]


def _engines(installation: Installation) -> list[Program]:
    """Two hosts of different size."""
    found = []
    for number, context, parallel in ((1, 16_384, 4), (2, 8_192, 2)):
        name = f"engine-{number}"
        command = [PYTHON, "-m", "marketplace.local.engine", "--port", str(installation.ports[name])]
        command += ["--model", str(installation.directory / "models" / f"tiny-{number}.gguf")]
        command += ["--n-ctx", str(context), "--n-parallel", str(parallel)]
        found.append(Program(name, command, probe=name))
    return found


def _agents(installation: Installation) -> list[Program]:
    found = []
    for number in (1, 2):
        configuration = installation.directory / f"agent-{number}.toml"
        command = [PYTHON, "-m", "providers.agent", "run", "--config", str(configuration)]
        needs = ("web", f"engine-{number}")
        found.append(
            Program(f"agent-{number}", command, needs=needs, probe=f"agent-{number}", stop_wait_s=25)
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
