"""Every case is run by a test, or named in the table of docs/rounding.md, which tells each difference."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.peers.cases import CASES

TESTS = Path(__file__).resolve().parent.parent
PAGE = (TESTS.parent / "docs" / "rounding.md").read_text()


def run_cases() -> set[str]:
    found = set()
    for file in TESTS.rglob("test_*.py"):
        source = file.read_text()
        if "tests.peers.cases" not in source:
            continue
        for function in ast.walk(ast.parse(source)):
            if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
                found |= {
                    argument.value
                    for mark in function.decorator_list
                    if isinstance(mark, ast.Call)
                    and isinstance(mark.func, ast.Name)
                    and mark.func.id == "runs"
                    for argument in mark.args
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
                }
    return found


def named_differences() -> set[str]:
    return set(re.findall(r"^\| ([a-z]+-\d\d) \|", PAGE, re.MULTILINE))


def test_every_case_is_run_or_named_as_a_difference() -> None:
    assert len(CASES) == 46
    assert run_cases() | named_differences() == set(CASES)


def test_each_difference_is_told_in_the_data_and_on_the_page() -> None:
    told = {id_ for id_, case in CASES.items() if case.get("ours", {}).get("why")}
    assert told == named_differences()


def test_only_what_is_not_sold_is_not_run() -> None:
    assert set(CASES) - run_cases() == {"tok-09"}
