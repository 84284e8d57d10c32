"""What a real MLflow server answers in a second, and the number of requests that each kind of entry costs.

The requests are counted where they leave, and the server runs on this machine, with SQLite and, where it is installed,
with PostgreSQL.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests

from benchmarks.scale.driver import experiment, figures
from benchmarks.scale.noop_trial import report
from benchmarks.scale.servers import mlflow_server, postgresql
from pipeline import config as schema
from pipeline.config.scores import ChainPoint
from pipeline.tracking.tracker import Tracker

__all__ = ["measure"]

_TOGETHER = 10  # reports of a trial that wait, where many are sent together


def measure(folder: Path, repeat: int) -> list[dict[str, Any]]:
    """Return a table: the requests and seconds of each kind of entry, for each database.

    Args:
        folder: of the servers' files.
        repeat: Repetitions of each entry.
    """
    rows = []
    with postgresql(folder / "postgresql") as database:
        for name, url in (("SQLite", None), ("PostgreSQL", database)):
            if name == "PostgreSQL" and url is None:
                continue
            with mlflow_server(folder / name, url) as address:
                rows += [{"database": name, **row} for row in _measure(address, folder / name, repeat)]
    return rows


def _measure(uri: str, folder: Path, repeat: int) -> Iterator[dict[str, Any]]:
    tracker = Tracker(uri, "scale", artifacts=None, journal=folder / "journal.jsonl", folder=str(folder))
    tracker.start_sweep("scale", {}, "", extractor="inception-v3-compat")
    settings, shown = schema.to_dict(experiment(1)), figures(folder)
    numbers = {key: value for key, value in report(0, []).items() if isinstance(value, int | float)}
    few = {key: value for key, value in report(0).items() if isinstance(value, int | float)}
    chain = {100 * point: ChainPoint(float(point), 0.1) for point in range(11)}

    def evaluated(n: int) -> None:
        tracker.log_metrics(f"{n:03d}", numbers, n)
        tracker.log_chain(f"{n:03d}", "fid", chain, n)
        tracker.log_pictures(f"{n:03d}", shown, n)

    def ended(n: int) -> None:
        tracker.describe(f"{n:03d}", "finished", {"status": "finished"})
        tracker.end(f"{n:03d}", "FINISHED")

    works: list[tuple[str, int, Callable[[int], None]]] = [
        ("a trial's start", repeat, lambda n: tracker.start_trial(f"{n:03d}", settings, {"experiment": "lsun"})),
        ("a result", repeat, lambda n: tracker.log_metrics("000", few, n)),
        ("an evaluation", repeat, evaluated),
        ("a trial's end", repeat, ended),
    ]
    for name, count, send in works:
        with _counted() as found:
            began = time.perf_counter()
            for n in range(count):
                send(n)
                tracker._journal.flush(60.0)
            seconds = time.perf_counter() - began
        yield {"event": name, "requests": found[0] / count, "seconds": seconds / count}
    # As an outbox does that has fallen behind: what a trial has to say goes in one request.
    count = _TOGETHER * repeat
    named = {f"train/{key}": float(value) for key, value in few.items()}
    many = [{"kind": "metrics", "trial": "000", "metrics": named, "step": n, "time": n} for n in range(count)]
    with _counted() as found:
        began = time.perf_counter()
        for start in range(0, count, _TOGETHER):
            tracker._deliver(many[start : start + _TOGETHER])
        seconds = time.perf_counter() - began
    yield {
        "event": f"a result, {_TOGETHER} of a trial at a time",
        "requests": found[0] / count,
        "seconds": seconds / count,
    }
    tracker.close(60.0)


@contextlib.contextmanager
def _counted() -> Iterator[list[int]]:
    """Count what is asked over HTTP."""
    found, send = [0], requests.Session.send

    def counting(self: requests.Session, *args: Any, **named: Any) -> requests.Response:
        found[0] += 1
        return send(self, *args, **named)

    requests.Session.send = counting
    try:
        yield found
    finally:
        requests.Session.send = send
