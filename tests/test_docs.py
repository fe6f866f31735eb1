"""What is written about the market is still true: settings, commands, rooms, links, dependencies, words."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from urllib.parse import unquote

import pytest
from django.core.management import get_commands, load_command_class

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("marketplace", "metering", "pricing", "providers")
SETTINGS_READERS = {
    "env.str",
    "env.list",
    "os.environ.get",
    "_required",
    "_integer",
    "_flag",
    "_http_url",
    "_database",
}
READS_SETTINGS = ("marketplace/settings.py", "marketplace/gateway/config.py")
LONGEST_README = 60
# Words of other worlds, for things that have a name here (docs/concepts.md).
FORBIDDEN = re.compile(
    r"(api_?token|access_?token|auth_?token|secret_?token|bearer_?token|refresh_?token|customer|tenant|subscription"
    r"|normali[sz]ed_tokens|price_per_1k|unit_price|sku)s?",
    re.IGNORECASE,
)


def own_sources() -> list[Path]:
    return sorted(
        path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if "migrations" not in path.parts
    )


def pages() -> list[Path]:
    rooms = [path for package in PACKAGES for path in (ROOT / package).rglob("README.md")]
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *rooms])


def rooms() -> list[Path]:
    """Every folder of ours with models or with a daemon in it, and the skins."""
    found = {path.parent for path in own_sources() if path.name == "models.py"} - {ROOT / "marketplace"}
    return sorted(
        found | {ROOT / "marketplace/gateway", ROOT / "marketplace/portal", ROOT / "providers/agent"}
    )


def commands() -> list[str]:
    return sorted(name for name, app in get_commands().items() if app.split(".")[0] in PACKAGES)


def settings_read() -> set[str]:
    """Names in capitals that settings take from the environment."""
    found: set[str] = set()
    for path in READS_SETTINGS:
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            first = node.args[0]
            if ast.unparse(node.func) in SETTINGS_READERS and isinstance(first, ast.Constant):
                found.add(str(first.value))
    return found


def test_every_setting_is_documented() -> None:
    names = settings_read()
    assert len(names) > 25
    page = (ROOT / "docs/production.md").read_text()
    assert sorted(name for name in names if f"`{name}`" not in page) == []


def test_every_documented_setting_is_read() -> None:
    table = re.findall(r"^\| (`[A-Z].*?) \|", (ROOT / "docs/production.md").read_text(), re.MULTILINE)
    documented = {name for row in table for name in re.findall(r"`([A-Z0-9_]+)`", row)}
    assert documented - settings_read() == set()


@pytest.mark.parametrize("name", commands())
def test_every_command_explains_itself(name: str) -> None:
    command = load_command_class(get_commands()[name], name)
    assert len(command.help) > 60, "say what it does and what it prints"
    assert command.help.rstrip().endswith(".")
    parser = command.create_parser("manage.py", name)
    own = {action.dest: action for action in parser._actions if action.help}
    for action in parser._actions:
        assert action.dest in own, f"{name}: {action.dest} has no help"
    assert "usage: manage.py" in parser.format_help()


def test_every_command_is_named_where_people_look() -> None:
    written = "\n".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    assert [name for name in commands() if not re.search(rf"\b{name}\b", written)] == []


@pytest.mark.parametrize("room", rooms(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_room_says_on_one_page_what_it_owns(room: Path) -> None:
    text = (room / "README.md").read_text()
    assert len(text.splitlines()) <= LONGEST_README
    assert len(text) > 200


@pytest.mark.parametrize("page", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = unquote(target).partition("#")
        file = (page.parent / place).resolve() if place else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name} links to {target}"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == []
    page = (ROOT / "docs/dependencies.md").read_text()
    told: dict[str, set[str]] = {}
    for title, text in re.findall(r"^## (\w+).*?\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL):
        cells = re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)
        told[title] = {name.strip() for cell in cells for name in cell.split(",")}
    for extra, requirements in project["optional-dependencies"].items():
        for requirement in requirements:
            name = re.split(r"[<>=!~ ]", requirement)[0]
            bare = name.split("[")[0]
            # psutil stands once, where it is needed first.
            known = told[extra] | (told["agent"] if extra == "dev" else set())
            # Extras may hold a comma: `psycopg[binary,pool]` was cut in two.
            assert any(word.split("[")[0] == bare for word in known), f"{extra}: {name}"


def test_the_locks_hold_every_dependency_with_hashes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for lock, extras in (
        ("requirements.lock", ("agent", "server", "dev", "calibrate")),
        ("requirements-server.lock", ("server",)),
        ("requirements-agent.lock", ("agent",)),
    ):
        text = (ROOT / lock).read_text()
        assert "://" not in text, "an address of an index"
        entries = re.split(r"\n(?=\w)", text)
        locked = {re.split(r"[=\[ ]", entry)[0].lower() for entry in entries if "--hash=sha256:" in entry}
        wanted = {
            re.split(r"[<>=!~\[ ]", requirement)[0].lower()
            for extra in extras
            for requirement in project[extra]
        }
        assert wanted - locked == set(), lock


def identifiers(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg | ast.keyword):
            names.add(node.arg or "")
    return names


def test_no_identifier_uses_a_forbidden_word() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in own_sources()
        for name in identifiers(ast.parse(path.read_text()))
        if FORBIDDEN.search(name)
    ]
    assert found == []
