"""``python -m benchmarks.scale``: the page ``docs/results/scale.md``, what a sweep asks of storage, driver and tracker.

``measure`` measures the coefficients on this machine and writes them to ``benchmarks/scale/scale-cpu.json``, table by
table: it takes half an hour, and about 30 MB of memory for each trial. Tables that are not asked for stay what they
were, and so do the rows of other numbers of trials. ``page`` puts them into the model (``benchmarks/scale/model.py``)
and writes the page and its figure, which takes seconds. A PostgreSQL server is measured where Debian's ``postgresql``
and Python's ``psycopg2`` are installed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import cli, harness
from benchmarks.scale import driver, page, storage, summary_io, tracker
from benchmarks.scale.servers import mlflow_server

__all__ = ["main"]

_LOGGERS = "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"
_TABLES = ("keeping", "images", "checkpoints", "requests", "tracker", "driver")


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "page"))
    parser.add_argument("--tables", nargs="+", choices=_TABLES, default=_TABLES, help="what to measure; all by default")
    parser.add_argument("--trials", nargs="+", type=cli.positive, default=[100, 250, 500], help="side by side")
    parser.add_argument("--files", action="store_true", help="the driver with Tune's own files of each trial, too")
    parser.add_argument("--period", type=float, default=10.0, help="seconds between two reports of a trial")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each phase of a measurement of the driver")
    parser.add_argument("--repeat", type=cli.positive, default=20, help="repetitions of each request to the tracker")
    parser.add_argument("--images", type=cli.positive, default=2048, help="in each store")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/scale"), help="folder of the JSON file")
    parser.add_argument("--page", type=Path, default=Path("docs/results/scale.md"), help="the page to write")
    arguments = parser.parse_args()
    if arguments.what == "measure":
        _measure(arguments)
    else:
        [found] = [json.loads(path.read_text()) for path in arguments.out.glob("scale-cpu.json")]
        page.write(found, arguments.page)
        print(f"written: {arguments.page}")


def _measure(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    earlier = arguments.out / "scale-cpu.json"
    results: dict[str, Any] = json.loads(earlier.read_text())["results"] if earlier.exists() else {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o755)  # PostgreSQL runs as another user
        works: dict[str, Callable[[], list[dict[str, Any]]]] = {
            "keeping": lambda: summary_io.measure(folder, trials=1000, repeat=5),
            "images": lambda: storage.images(folder, page.RESOLUTIONS, arguments.images),
            "checkpoints": lambda: storage.checkpoints(page.RESOLUTIONS),
            "requests": lambda: storage.requests(shards=16),
            "tracker": lambda: tracker.measure(folder, arguments.repeat),
        }
        for table in works:
            if table in arguments.tables:
                results[table] = works[table]()
        if "driver" in arguments.tables:
            for table, rows in _drive(arguments, folder).items():
                results[table] = _merged(results.get(table, []), rows)
    for rows in results.values():
        print(harness.table(rows), end="\n\n")
    settings = {
        key: value for key, value in vars(arguments).items() if key in ("period", "seconds", "repeat", "images")
    }
    print(f"written: {harness.write(arguments.out, 'scale', torch.device('cpu'), settings, results)}")


def _merged(earlier: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the driver's tables, those that were measured anew in place of earlier ones."""

    def key(row: dict[str, Any]) -> tuple[int, bool]:
        return row["trials"], row["Tune's files"] == "no"

    anew = {key(row) for row in rows}
    return sorted([*(row for row in earlier if key(row) not in anew), *rows], key=key)


def _drive(arguments: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Measure the driver as it is, and with Tune's own files of each trial, as it was."""
    speed, memory = [], []
    for trials, disabled in itertools.product(arguments.trials, ("0", "1") if arguments.files else ("1",)):
        load = driver.Load(trials, (arguments.period, 0.0), arguments.seconds, settings={_LOGGERS: disabled})
        place = folder / f"driver-{trials}-{disabled}"
        place.mkdir()
        with mlflow_server(folder / f"server-{trials}-{disabled}") as uri:
            found = driver.drive(load, uri, place)
        for period, phase in zip(load.periods, found.phases, strict=True):
            speed.append(
                {
                    "trials": trials,
                    "Tune's files": "no" if disabled == "1" else "yes",
                    "reports": f"every {period:g} s" if period else "at once",
                    "results/s": phase.a_second,
                    "CPU, ms a result": 1000 * phase.cpu_seconds,
                    "the loop's, ms": 1000 * phase.loop_seconds,
                    "the project's, ms": 1000 * phase.watch_seconds / phase.results,
                    "to the driver, s": statistics.median(phase.to_driver),
                    "99 %": driver.percentile(phase.to_driver, 99),
                    "kept, s": statistics.median(phase.kept),
                    "kept, 99 %": driver.percentile(phase.kept, 99),
                    "to MLflow, s": statistics.median(phase.to_tracker) if phase.to_tracker else "",
                    "to MLflow, 99 %": driver.percentile(phase.to_tracker, 99) if phase.to_tracker else "",
                }
            )
            print(speed[-1], flush=True)
        memory.append(
            {
                "trials": trials,
                "Tune's files": "no" if disabled == "1" else "yes",
                "driver alone, MB": found.bytes_before / 1e6,
                "with the trials, MB": found.bytes_started / 1e6,
                "at the end, MB": found.bytes_after / 1e6,
                "a trial, kB": (found.bytes_started - found.bytes_before) / trials / 1e3,
                "its process, MB": found.trial_bytes / 1e6,
                "start, s": found.start_seconds,
                "CPU of a start, ms": 1000 * found.start_cpu_seconds / trials,
                "left for MLflow": found.waiting,
                "a minute later": found.left,
            }
        )
        print(memory[-1], flush=True)
    return {"driver": speed, "driver's memory": memory}


if __name__ == "__main__":
    main()
