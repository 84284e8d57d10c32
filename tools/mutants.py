"""Mutation testing by a list: each mistake of ``tests/mutations.toml``, made on purpose, has to fail a test it names.

The tracked files are copied into a temporary folder. There one mutation after another is made, its tests run, and the
file is restored. A process that has imported the libraries, and nothing of this project, forks for each mutation: what
takes time is then the tests alone. The last result of each mutation is written to ``docs/mutants.md``.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import contextlib
import fnmatch
import gc
import importlib
import importlib.util
import json
import os
import platform
import py_compile
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutation_list import Mutation, load, problems

__all__ = ["Outcome", "Result", "Workplace", "main", "page", "run"]

ROOT = Path(__file__).resolve().parents[1]
LIST, PAGE = "tests/mutations.toml", "docs/mutants.md"

# Packages of this project, which no process may have imported before a mutation is made.
_OWN = ("benchmarks", "gebm", "pipeline", "tests")
# Kept without a look at the source: a mutated file's is deleted instead.
_COMPILED = py_compile.PycInvalidationMode.UNCHECKED_HASH
_PYTEST = ["-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--hypothesis-profile=mutants"]
_POLL_SECONDS = 0.02
# Seconds that all tests may take at first, in addition to their limits, for what they share is made once.
_FIRST_LIMIT = 600.0

KILLED, SURVIVED, REASONED = "killed", "SURVIVED", "reasoned"
FAILS_WITHOUT, NOT_RUN, NOT_TRIED = "tests fail without it", "tests do not run", "not tried yet"


@dataclass(frozen=True)
class Outcome:
    """Result of a run of pytest.

    Args:
        status: Exit status; minus a signal's number, or None where it ran out of time.
        failed: Tests that failed, in their order.
        seconds: How long it took.
        log: End of what it printed.
    """

    status: int | None
    failed: tuple[str, ...]
    seconds: float
    log: str


@dataclass(frozen=True)
class Result:
    """What became of a mutation.

    Args:
        mutation: The mutation.
        state: ``killed``, ``SURVIVED``, ``reasoned``, ``tests fail without it`` or ``tests do not run``.
        by: The test that killed it, or what else there is to say.
        seconds: How long its tests took.
    """

    mutation: Mutation
    state: str
    by: str = ""
    seconds: float = 0.0


class _Recorder:
    """Plugin of pytest that notes which tests have failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


class Workplace:
    """Copy of the tracked files, in which mutations are made and tests run.

    Args:
        root: Folder of the repository.
        folder: An empty folder.
        limit: Seconds that a mutation's tests may take.
    """

    def __init__(self, root: Path, folder: Path, limit: float) -> None:
        self.copy, self._folder, self._limit = folder / "copy", folder, limit
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True).stdout
        for name in filter(None, listed.split("\0")):
            # A file may be deleted and not committed yet.
            if (root / name).is_file():
                (self.copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, self.copy / name)
        for package in _OWN:
            compileall.compile_dir(self.copy / package, quiet=2, invalidation_mode=_COMPILED)

    def import_libraries(self, tests: Iterable[str]) -> None:
        """Import what the project and these files of tests import, and nothing of the project itself.

        Args:
            tests: Files of tests.
        """
        files = [*self.copy.glob("gebm/**/*.py"), *self.copy.glob("pipeline/**/*.py"), *self.copy.glob("tests/*.py")]
        files += [*self.copy.glob("tests/helpers/*.py"), *(self.copy / name for name in tests)]
        for name in sorted({"hypothesis", "pytest", *(name for path in files for name in _imported(path))}):
            # What is missing here is missed by the tests that need it.
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        # What is collected in a forked process is copied there: the libraries are not looked at again.
        gc.freeze()

    def run_mutated(self, mutation: Mutation) -> Outcome:
        """Make a mutation, run its tests up to the first that fails, and restore the file."""
        path = self.copy / mutation.file
        content = path.read_bytes()
        compiled = Path(importlib.util.cache_from_source(str(path)))
        try:
            compiled.unlink(missing_ok=True)
            path.write_bytes(content.replace(mutation.old.encode(), mutation.new.encode()))
            return self.run_tests(mutation.tests, self._limit, mutated=True)
        finally:
            path.write_bytes(content)
            py_compile.compile(str(path), doraise=False, invalidation_mode=_COMPILED)

    def run_tests(self, tests: Sequence[str], limit: float, *, mutated: bool) -> Outcome:
        """Run tests in a process of their own.

        Args:
            tests: Selectors.
            limit: Seconds after which it is killed.
            mutated: Whether the first that fails is enough, and nothing of the copy may be kept compiled.
        """
        scratch = self._folder / "scratch"
        scratch.mkdir()
        started = time.monotonic()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            self._run_child([*_PYTEST, *(["-x"] if mutated else []), *tests], scratch, mutated)
        try:
            status = _wait(pid, limit)
            log, failed = scratch / "log", scratch / "failed"
            return Outcome(
                status,
                tuple(json.loads(failed.read_text())) if failed.exists() else (),
                time.monotonic() - started,
                log.read_text(errors="replace")[-2000:] if log.exists() else "",
            )
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _run_child(self, arguments: list[str], scratch: Path, mutated: bool) -> None:
        """Run pytest in the copy, and exit; the body of a forked process."""
        status = 70
        try:
            os.setsid()
            log = os.open(scratch / "log", os.O_WRONLY | os.O_CREAT)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(self.copy)
            os.environ |= {"PYTHONPATH": str(self.copy), "TMPDIR": str(scratch)}
            if mutated:
                os.environ["PYTHONDONTWRITEBYTECODE"], sys.dont_write_bytecode = "1", True
            sys.argv, tempfile.tempdir = ["pytest"], None
            sys.path[0] = str(self.copy)
            import pytest

            _register_profile()
            recorder = _Recorder()
            status = int(pytest.main(arguments, plugins=[recorder]))
            (scratch / "failed").write_text(json.dumps(recorder.failed))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def _register_profile() -> None:
    """Register settings of hypothesis that end at the first example that fails: nobody reads the smallest one."""
    from hypothesis import HealthCheck, Phase, settings

    settings.register_profile(
        "mutants",
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )


def _imported(path: Path) -> set[str]:
    """Return the modules of other packages that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module)
    return {name for name in names if name.partition(".")[0] not in _OWN}


def _wait(pid: int, limit: float) -> int | None:
    """Wait for a process, and end it and all that it has started; None where it ran out of time."""
    end, ended, status = time.monotonic() + limit, 0, 0
    try:
        while not ended and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
            ended, status = os.waitpid(pid, os.WNOHANG)
    finally:
        # Also where this process is interrupted, of which a group of its own hears nothing.
        for end_all in (os.killpg, *([] if ended else [os.kill])):
            with contextlib.suppress(ProcessLookupError):
                end_all(pid, signal.SIGKILL)
        if not ended:
            os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) if ended else None


def run(
    mutations: Sequence[Mutation],
    root: Path = ROOT,
    limit: float = 300.0,
    keep: Callable[[Sequence[Result]], None] = lambda results: None,
) -> list[Result]:
    """Make each mutation in turn, and print a line on each.

    Args:
        mutations: The mutations.
        root: Folder of the repository.
        limit: Seconds that a mutation's tests may take; more is a sign that it was seen.
        keep: Called with all results after each mutation.

    Raises:
        RuntimeError: If the tests do not run without any mutation.
    """
    # With more threads than one the order of sums depends on the machine, and a fork keeps none of them.
    os.environ["OMP_NUM_THREADS"] = "1"
    tests = list(dict.fromkeys(test for mutation in mutations for test in mutation.tests))
    # The folder's name is short: sockets of processes that tests start are in it.
    with tempfile.TemporaryDirectory(prefix="mu-", ignore_cleanup_errors=True) as folder:
        workplace = Workplace(root, Path(folder), limit)
        workplace.import_libraries({test.partition("::")[0] for test in tests})
        without = Outcome(0, (), 0.0, "")
        if tests:
            print(f"{len(tests)} tests without any mutation ...", flush=True)
            without = workplace.run_tests(tests, _FIRST_LIMIT + limit * len(tests), mutated=False)
            print(f"{len(tests)} tests without any mutation: {len(without.failed)} fail, {without.seconds:.0f} s")
        if without.status not in (0, 1):
            raise RuntimeError(f"the tests do not run as they are (status {without.status}):\n{without.log}")
        results: list[Result] = []
        started = time.monotonic()
        for mutation in mutations:
            results.append(_result(workplace, mutation, without.failed))
            keep(results)
            _print_progress(results, len(mutations), time.monotonic() - started)
    return results


def _result(workplace: Workplace, mutation: Mutation, failing: Sequence[str]) -> Result:
    if mutation.reason:
        return Result(mutation, REASONED, mutation.reason)
    for test in mutation.tests:
        # A selector without brackets stands for all cases of its function.
        if any(failed == test or failed.startswith((f"{test}[", f"{test}::")) for failed in failing):
            return Result(mutation, FAILS_WITHOUT, test)
    outcome = workplace.run_mutated(mutation)
    if outcome.status is None:
        return Result(mutation, KILLED, "the time limit", outcome.seconds)
    if outcome.status == 1 and outcome.failed:
        return Result(mutation, KILLED, outcome.failed[0], outcome.seconds)
    if outcome.status == 0:
        return Result(mutation, SURVIVED, ", ".join(mutation.tests), outcome.seconds)
    print(outcome.log)
    return Result(mutation, NOT_RUN, f"status {outcome.status}", outcome.seconds)


def _print_progress(results: Sequence[Result], total: int, seconds: float) -> None:
    newest, done = results[-1], len(results)
    left = seconds / done * (total - done)
    rate = f"{60 * done / max(seconds, 1e-9):.1f} a minute, {left / 60:.1f} min left"
    by = f": {newest.by}" if newest.by else ""
    print(f"[{done}/{total}] {newest.state}  {newest.mutation.name}  {newest.seconds:.1f} s ({rate}){by}", flush=True)


def page(mutations: Sequence[Mutation], results: Sequence[Result], before: str, *, date: str, machine: str) -> str:
    """Return the page of the last result of each mutation.

    Args:
        mutations: The whole list.
        results: Results of this run.
        before: The page of earlier runs, whose rows stay for what was not tried again.
        date: Date of this run.
        machine: Kind of its machine.
    """
    earlier = {line.split("`")[1]: line for line in before.splitlines() if line.startswith("| `")}
    tried = {result.mutation.name: result for result in results}
    rows = []
    for mutation in sorted(mutations, key=lambda one: one.file):
        head = f"| `{mutation.name}` | `{mutation.file}` | {mutation.breaks.replace('|', '/')} |"
        row = earlier.get(mutation.name, "")
        if mutation.name in tried:
            rows.append(f"{head} {_seen_by(tried[mutation.name])} | {date} |")
        else:
            rows.append(row if row.startswith(head) else f"{head} **{NOT_TRIED}** | |")
    counts = [sum(f" **{state}**" in row for row in rows) for state in (SURVIVED, REASONED, FAILS_WITHOUT, NOT_RUN)]
    missing = sum(f"**{NOT_TRIED}**" in row for row in rows)
    killed = len(rows) - sum(counts) - missing
    lines = [
        "# Mutants",
        "",
        "A mutation is a mistake that is made on purpose, one at a time. It is killed where one of the tests that",
        "`tests/mutations.toml` names for it fails. `make mutants` tries them, and writes the last result of each.",
        "",
        "| last run | machine | mutations | killed | survived | no test can see | not run | not tried |",
        "|---|---|---|---|---|---|---|---|",
        f"| {date} | {machine} | {len(rows)} | {killed} | {counts[0]} | {counts[1]} | {counts[2] + counts[3]} "
        f"| {missing} |",
        "",
        "| mutation | file | what is broken | killed by | date |",
        "|---|---|---|---|---|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def _seen_by(result: Result) -> str:
    """Return a cell of the page: the test that killed a mutation, or what else became of it."""
    by = result.by.replace("tests/", "").replace("::", " ").replace("|", "/")
    return by if result.state == KILLED else f"**{result.state}**: {by}"


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Run the mutations that the arguments name, or all, and return 1 where one was not killed.

    Args:
        arguments: Words of the command line.
        root: Folder of the repository.
    """
    parser = argparse.ArgumentParser(description="Break the code in one place after another, and run its tests.")
    parser.add_argument("names", nargs="*", help="names of mutations, with * and ? (default: all of the list)")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that a mutation's tests may take")
    options = parser.parse_args(arguments)
    try:
        known = load(root / LIST)
    except ValueError as error:
        return _refuse(str(error))
    for name in options.names:
        if not fnmatch.filter([mutation.name for mutation in known], name):
            return _refuse(f"no mutation is called {name}: take a name of {LIST}, with * for any letters")
    chosen = [one for one in known if not options.names or any(fnmatch.fnmatch(one.name, n) for n in options.names)]
    if wrong := problems(known, root):
        return _refuse(f"{LIST}: {wrong[0]} ({len(wrong)} in all)")
    path = root / PAGE
    before = path.read_text(encoding="utf-8") if path.is_file() else ""

    def keep(results: Sequence[Result]) -> None:
        # After each mutation, so that a run that is interrupted has not been in vain.
        text = page(known, results, before, date=time.strftime("%Y-%m-%d"), machine=_machine())
        path.write_text(text, encoding="utf-8")

    try:
        results = run(chosen, root, options.limit, keep)
    except RuntimeError as error:
        return _refuse(str(error))
    bad = [result for result in results if result.state not in (KILLED, REASONED)]
    killed = sum(result.state == KILLED for result in results)
    print(f"{killed} of {len(results)} killed, {len(bad)} to look at: {', '.join(r.mutation.name for r in bad) or '-'}")
    return 1 if bad else 0


def _refuse(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
