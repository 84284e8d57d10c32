"""The list of mutations is true of the code and of the tests, and what tries it says what became of each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.cli import REPOSITORY, load

# The list first, which the other one imports.
mutation_list, mutants = load("tools/mutation_list.py"), load("tools/mutants.py")
LISTED = mutation_list.load(REPOSITORY / mutants.LIST)


def test_the_list_is_true():
    """Each old text is in its file once, and each test exists: who changes such a line changes its mutation as well."""
    assert mutation_list.problems(LISTED, REPOSITORY) == []


def test_the_list_has_half_of_its_mutations_in_each_package():
    for package in ("gebm/", "pipeline/"):
        assert sum(mutation.file.startswith(package) for mutation in LISTED) >= 30
    assert all(mutation.breaks.endswith(".") and "\n" not in mutation.breaks for mutation in LISTED)


FILES = {
    "gebm/__init__.py": "",
    "gebm/one.py": "def double(x):\n    return 2 * x  # twice\n",
    "tests/__init__.py": "",
    "tests/test_one.py": """\
from gebm.one import double

def test_double():
    assert double(2) == 4

def test_zero():
    assert double(0) == 0

def test_that_fails():
    assert double(1) == 1
""",
    "docs/mutants.md": "of before",
}
MUTATION = """\
[[mutation]]
name = "{name}"
file = "gebm/one.py"
breaks = "It is broken."
old = "{old}"
new = "{new}"
{why}
"""


def entry(name: str, why: str, old: str = "2 * x", new: str = "3 * x") -> str:
    return MUTATION.format(name=name, why=why, old=old, new=new)


def test_of(function: str) -> str:
    return f'tests = ["tests/test_one.py::{function}"]'


test_of.__test__ = False


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A small one, whose list is written by the test."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    return tmp_path


def test_what_is_wrong_with_a_list_is_a_line(repository):
    path = repository / mutants.LIST
    path.write_text(
        entry("twice", test_of("test_double"))
        + entry("twice", test_of("test_double"), old="x")
        + entry("same", test_of("test_double"), new="2 * x")
        + entry("gone", test_of("test_triple"))
        + entry("untested", "")
    )
    lines = mutation_list.problems(mutation_list.load(path), repository)
    assert lines == [
        "twice: two mutations have this name",
        "twice: the old text occurs 2 times in gebm/one.py, and has to once",
        "same: the new text is the old one",
        "gone: there is no test tests/test_one.py::test_triple",
        "untested: it needs tests, or a reason why there are none",
    ]
    for text, message in (("[[mutation]]", "mutation 1 has no name"), (entry("a", "more = 1"), "unknown key more")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            mutation_list.load(path)


PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); import mutants, pathlib; sys.exit(mutants.main({}, pathlib.Path()))"
)


def try_all(repository: Path, *names: str) -> tuple[int, str]:
    """In a process of its own, since it forks."""
    program = [sys.executable, "-c", PROGRAM.format(list(names)), str(REPOSITORY / "tools")]
    done = subprocess.run(program, cwd=repository, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def test_each_mutation_is_killed_or_said_not_to_be(repository):
    before = (repository / "gebm/one.py").read_bytes()
    (repository / mutants.LIST).write_text(
        entry("seen", test_of("test_double"))
        + entry("unseen", test_of("test_zero"))
        + entry("comment", 'reason = "a comment"', old="# twice", new="# double")
        + entry("broken", test_of("test_that_fails"))
        + entry("unreadable", test_of("test_double"), new="(")
    )
    status, printed = try_all(repository)
    assert status == 1
    for line in ("killed  seen", "SURVIVED  unseen", "reasoned  comment", "tests fail without it  broken"):
        assert line in printed
    assert "tests do not run  unreadable" in printed
    page = (repository / mutants.PAGE).read_text()
    assert "| 5 | 1 | 1 | 1 | 2 | 0 |" in page
    assert "| `seen` | `gebm/one.py` | It is broken. | test_one.py test_double | 2" in page
    assert "**SURVIVED**: test_one.py test_zero" in page
    assert (repository / "gebm/one.py").read_bytes() == before
    # Who tries some of the list leaves the results of the others as they are, unless they are of another mutation.
    changed = (repository / mutants.LIST).read_text().replace("a comment", "no code").replace("# double", "# two")
    added = entry("endless", test_of("test_double"), new="max(iter(int, 1))")
    (repository / mutants.LIST).write_text(changed + added + entry("more", test_of("test_zero")))
    status, printed = try_all(repository, "--limit=1", "endl*")
    assert status == 0 and "killed  endless" in printed and ": the time limit" in printed
    again = (repository / mutants.PAGE).read_text()
    assert (
        "| 7 | 2 | 1 | 1 | 2 | 1 |" in again
        and "| `more` | `gebm/one.py` | It is broken. | **not tried yet** | |" in again
    )
    assert {line for line in page.splitlines() if line.startswith("| `")} < set(again.splitlines())
    status, printed = try_all(repository, "other")
    assert status == 2 and printed.startswith("error: no mutation is called other") and printed.count("\n") == 1
