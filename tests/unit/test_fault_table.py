"""docs/reference/faults.md names, for every fault, tests that exist, and every numbered test."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "faults.md"
NUMBERS = [*range(1, 26), 27, 29, 30, 51, 31, 32, 33, 47, 48]
NUMBERS += [28, 34, 35, 36, 37, 38, 43, 49]
NUMBERS += [26, 39, 40, 41, 42, 44, 45, 46]
ROW = re.compile(r"^\| (F-\d\d) \|.*\| (?P<tests>[^|]+) \|$", re.MULTILINE)
TEST = re.compile(r"`(?P<file>tests/[\w/]+\.py)::(?P<name>\w+)`(?P<long> \(long\))?")


def rows():
    return {match[1]: list(TEST.finditer(match["tests"])) for match in ROW.finditer(PAGE.read_text())}


def functions(file):
    """Return name -> whether it is marked long, of the tests of a file."""
    tree = ast.parse(file.read_text())
    return {
        node.name: any(
            "mark.long" in ast.unparse(mark) and "param" not in ast.unparse(mark) for mark in node.decorator_list
        )
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_fault_has_a_test():
    table = rows()
    assert sorted(table) == sorted(f"F-{number:02d}" for number in NUMBERS)
    for number, tests in table.items():
        assert [test for test in tests if not test["long"]], f"{number} has no test in make test"


def test_every_test_named_exists():
    for number, tests in rows().items():
        for test in tests:
            found = functions(ROOT / test["file"])
            assert test["name"] in found, f"{number}: {test['file']} has no {test['name']}"
            assert found[test["name"]] == bool(test["long"]), f"{number}: whether {test['name']} is long"


def test_every_numbered_test_is_named():
    named = {(test["file"], test["name"]) for tests in rows().values() for test in tests}
    for file in sorted((ROOT / "tests" / "faults").glob("test_*.py")):
        for name in functions(file):
            match = re.match(r"test_f(\d\d)_", name)
            if match and int(match[1]) in NUMBERS:
                assert (str(file.relative_to(ROOT)), name) in named, f"{name} of {file.name} is not in {PAGE.name}"
