"""A driver that lost its folder to another one: it and its trials stop, and write nothing more."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pipeline.config.command import report_error
from pipeline.data import Store
from pipeline.runtime import lock
from pipeline.runtime.errors import LockLost, UserError
from pipeline.sweep.callback import SweepCallback
from pipeline.sweep.display.console import Display
from pipeline.sweep.finalize import finalize
from pipeline.sweep.plan import SweepPlan, require_unchanged
from pipeline.tracking.summary import SweepSummary, read_summary
from pipeline.training.trial_folder import TrialFolder

OTHER = {"owner": "theirs", "machine": "another", "pid": 17, "born": "0", "host": "far", "beat": 0}


def lose(folder: Path) -> bytes:
    """Let another driver have the lock."""
    content = json.dumps(OTHER).encode()
    (folder / ".lease.json").write_bytes(content)
    return content


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_driver_that_lost_its_lock_stops_and_writes_nothing_more(tmp_path, small, capsys):
    config = small(output=str(tmp_path))
    records = SweepSummary(str(tmp_path), metric="fid_gebm", mode="min", shown=(), facts={})
    watch = SweepCallback(config, records, None, Display(records, "small", Console(file=io.StringIO())))
    # Whatever was observed long ago may have changed: each look is a new one.
    with lock.acquire(str(tmp_path), stale_after=0.0) as held:
        records.verify = held.verify
        records.write()
        records.add("000", {})
        theirs = lose(tmp_path)
        before = contents(tmp_path)
        watch._changed = True
        for act in (
            lambda: watch.on_step_end(0, []),
            lambda: watch.on_trial_start(0, [], None),
            records.write,
            lambda: finalize(config, records, None, "sweep", interrupted=False),
        ):
            with pytest.raises(LockLost, match="process 17 on far") as loss:
                act()
    assert contents(tmp_path) == before and (tmp_path / ".lease.json").read_bytes() == theirs
    assert report_error(loss.value) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: another sweep has taken over") and printed.count("\n") == 1


@pytest.mark.parametrize("on_failure", ["stop", "continue"])
def test_a_worker_of_a_driver_that_lost_its_lock_writes_nothing(tmp_path, small, on_failure):
    config = small(output=str(tmp_path), checkpoints={"on_failure": on_failure})
    with lock.acquire(str(tmp_path)) as held:
        folder = TrialFolder(config, f"{tmp_path}/trials/000", held.owner)
        arguments = {"model": {"w": torch.ones(2)}, "training": {}, "state": {}, "score": None}
        assert folder.save_checkpoint(1, **arguments)[0]
        lose(tmp_path)
        before = contents(tmp_path)
        with pytest.raises(LockLost):
            folder.save_checkpoint(2, **arguments)
        with pytest.raises(LockLost):
            folder.write_figures("step", {"a.png": b""})
        assert contents(tmp_path) == before


def test_a_sweep_that_ended_between_the_look_and_the_lock_is_not_written_over(tmp_path, small, digits: Store):
    records = SweepSummary(str(tmp_path), metric="fid_gebm", mode="min", shown=(), facts={})
    config = small(output=str(tmp_path))
    new = SweepPlan(config, {}, digits, [], "")
    require_unchanged(new)
    records.write()
    resumed = SweepPlan(config, {}, digits, [], "", summary=read_summary(str(tmp_path))[0])
    require_unchanged(resumed)
    records.add("000", {})
    records.write()
    for plan in (new, resumed):
        with pytest.raises(UserError, match="another sweep has just ended"):
            require_unchanged(plan)
