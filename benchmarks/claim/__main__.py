"""``python -m benchmarks.claim``: does a GEBM outperform the GAN, all else being equal?

Each part is a command of its own, and resumes what is there:

    python -m benchmarks.claim stores --photographs cifar10-jpeg.zip    the stores, once
    python -m benchmarks.claim penalties                                weights of the penalty, for each objective
    python -m benchmarks.claim guard                                    gradient guards over the objectives
    python -m benchmarks.claim runs --setting digits --minutes 110      the experiment, run after run
    python -m benchmarks.claim why                                      what makes or breaks it
    python -m benchmarks.claim page                                     docs/results/images.md from the results' files

Runs keep their checkpoints under ``--folder``, and a result of each as JSON under ``benchmarks/results/claim``. Several
processes share the work by ``--share 0/2`` and ``--share 1/2``. At low priority next to other work: ``nice -n 15``.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from benchmarks.claim.result_files import own_share, write_json

__all__ = ["main"]

RESULTS = Path(__file__).resolve().parents[1] / "results" / "claim"


def main() -> None:
    """Run the part that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["stores", "penalties", "guard", "runs", "why", "page"])
    parser.add_argument("--photographs", type=Path, help="cifar10-jpeg.zip, an image folder in a zip")
    parser.add_argument("--folder", type=Path, default=Path("results/claim"), help="checkpoints of the runs")
    parser.add_argument("--setting", nargs="*", default=[], help="digits, photographs, horses; by default all")
    parser.add_argument("--share", default="0/1", help="i/n: the i-th of n processes that share the work")
    parser.add_argument("--minutes", type=float, default=110.0, help="no new part is begun after that")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))
    import torch

    torch.set_num_threads(arguments.threads)
    parts = {
        "stores": _stores,
        "penalties": _penalties,
        "guard": _guard,
        "runs": _runs,
        "why": _why,
        "page": _page,
    }
    parts[arguments.part](arguments)


def _stores(arguments: argparse.Namespace) -> None:
    from benchmarks.claim.stores import make_stores

    make_stores(arguments.photographs, arguments.folder)


def _penalties(arguments: argparse.Namespace) -> None:
    from benchmarks.claim.experiment import Bench
    from benchmarks.claim.penalties import run_penalty
    from benchmarks.claim.settings import PENALTIES, PENALTY, ROUNDS, SETTINGS

    deadline = _Deadline(arguments.minutes)
    jobs = [(name, o, p) for objectives in ROUNDS for name in PENALTY for o in objectives for p in PENALTIES]
    benches: dict[str, Bench] = {}
    for name, objective, penalty in own_share(jobs, arguments.share):
        path = RESULTS / "penalties" / f"{name}-{objective}-{penalty:g}.json"
        if not path.exists() and not deadline.over():
            bench = benches[name] if name in benches else benches.setdefault(name, Bench(SETTINGS[name]))
            write_json(path, run_penalty(bench, objective, penalty))
            _log(f"written: {path.name}")


def _guard(arguments: argparse.Namespace) -> None:
    from benchmarks.claim.experiment import Bench
    from benchmarks.claim.guard import GUARD_SEEDS, run_guard
    from benchmarks.claim.settings import OBJECTIVES, SETTINGS
    from gebm.training import gradient_guard

    bench, deadline = Bench(SETTINGS["photographs"]), _Deadline(arguments.minutes)
    # The guards that the presets choose from; the authors' own too.
    jobs = [(o, g, s) for s in GUARD_SEEDS for o in OBJECTIVES for g in gradient_guard.NAMES]
    for objective, guard, seed in own_share(jobs, arguments.share):
        path = RESULTS / "guard" / f"{objective}-{guard}-{seed}.json"
        if not path.exists() and not deadline.over():
            write_json(path, run_guard(bench, objective, guard, seed))
            _log(f"written: {path.name}")


def _runs(arguments: argparse.Namespace) -> None:
    from benchmarks.claim.experiment import Bench, OutOfTime, run
    from benchmarks.claim.settings import ROUNDS, SEEDS, SETTINGS

    deadline = _Deadline(arguments.minutes)
    names = arguments.setting or list(SETTINGS)
    jobs = [(name, objective, seed) for name in names for pair in ROUNDS for seed in SEEDS for objective in pair]
    benches: dict[str, Bench] = {}
    for name, objective, seed in own_share(jobs, arguments.share):
        path = RESULTS / name / f"{objective}-{seed}.json"
        if path.exists() or deadline.over():
            continue
        bench = benches[name] if name in benches else benches.setdefault(name, Bench(SETTINGS[name]))
        title = f"{name} {objective} seed {seed}"
        folder = arguments.folder.absolute() / name / f"{objective}-{seed}"
        try:
            result = run(
                bench,
                objective,
                seed,
                folder,
                out_of_time=deadline.over,
                log=lambda line, title=title: _log(f"{title}: {line}"),
            )
        except OutOfTime:
            _log(f"{title}: out of time; the same command resumes it")
            continue
        write_json(path, result)
        _log(f"written: {path}")


def _why(arguments: argparse.Namespace) -> None:
    from benchmarks.claim.energy_experiments import run_why

    run_why(RESULTS / "why", arguments.share, _Deadline(arguments.minutes).over, _log)


def _page(arguments: argparse.Namespace) -> None:
    from benchmarks.claim.page import write_page

    write_page(RESULTS)


class _Deadline:
    """The end of the time that was given."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    def over(self) -> bool:
        """Return whether it has come."""
        return time.monotonic() > self._end


def _log(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


if __name__ == "__main__":
    main()
