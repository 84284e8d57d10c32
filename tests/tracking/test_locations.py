"""A sweep's folder can be moved and copied: what it names is below it, wherever it is."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml

from pipeline import config as schema
from pipeline.config.own_choices import keep_choices
from pipeline.report.analysis import load_results
from pipeline.runtime.errors import UserError
from pipeline.sweep.plan import load_sweep
from pipeline.tracking.locations import own_checkpoint
from pipeline.tracking.summary import SweepSummary, read_summary
from pipeline.training.checkpoints import Checkpoints, read
from pipeline.training.trial_folder import TrialFolder


def sweep(folder, config) -> SweepSummary:
    """Two trials that were evaluated, of which the second one started from a model elsewhere and saved none."""
    records = SweepSummary(str(folder), metric="fid_gebm", mode="min", shown=("fid_base", "fid_gebm"), facts={})
    url = Checkpoints(f"{folder}/trials/000").save(
        8, model={"w": torch.ones(1)}, training={}, state={"config": schema.to_dict(config)}, score=1.0
    )
    metrics = {"base_step": 8, "fid_base": 2.0, "fid_gebm": 1.0}
    records.evaluated(records.add("000", {"train.base_lr": 1e-4}), metrics, url)
    records.evaluated(records.add("001", {}), {**metrics, "fid_gebm": 3.0}, f"{folder.parent}/model/trials/001/step-8")
    # The model that a sweep was started from is the user's choice.
    config.checkpoint = f"{folder.parent}/model/trials/001/step-8"
    keep_choices(str(folder), config)
    (folder / "config.yaml").write_text(yaml.safe_dump(schema.to_dict(config)))
    return records


def with_urls(folder) -> None:
    """Make the summary one of an earlier version, which named its checkpoints by where they were."""
    document = json.loads((folder / "summary.json").read_text())
    for trial in [document["best"], *document["trials"]]:
        for key in ("checkpoint", "best_checkpoint"):
            trial[key] = str(folder / trial[key])
    (folder / "summary.json").write_text(json.dumps(document))


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("how", ["stays", "moved", "copied"])
def test_a_sweep_that_was_moved_names_its_checkpoints_where_they_are(tmp_path, small, how, earlier):
    old, new = tmp_path / "old", tmp_path / "elsewhere" / "new"
    old.mkdir()
    new.parent.mkdir()
    records = sweep(old, small(output=str(old)))
    records.write()
    assert str(old) not in (old / "summary.json").read_text()
    if earlier:
        with_urls(old)
    # As the driver does before it writes.
    keep_choices(str(old), small(checkpoint=f"{tmp_path}/model/trials/001/step-8"))
    if how == "stays":
        new = old
    elif how == "moved":
        shutil.move(old, new)
    else:
        shutil.copytree(old, new)
    # In another folder the user names the model again.
    config, trials, _ = load_sweep(str(new), None if how == "stays" else f"{tmp_path}/model/trials/001/step-8")
    keep_choices(str(new), small(checkpoint=f"{tmp_path}/model/trials/001/step-8"))
    place = f"{new}/trials/000/checkpoints/step-00000008"
    assert config.output == str(new)
    assert [trials[0].checkpoint, trials[0].best_checkpoint] == [place, place]
    assert trials[1].checkpoint == f"{tmp_path}/model/trials/001/step-8"
    assert read(str(trials[0].best_checkpoint)).state["base_step"] == 8
    best = load_results(str(new)).records.best()
    assert best is not None and best.best_checkpoint == place
    # Resumed there, it is written for there.
    SweepSummary(str(new), metric="fid_gebm", mode="min", shown=(), facts={}, trials=trials).write()
    assert read_summary(str(new))[1] == trials and str(new) not in (new / "summary.json").read_text()


def test_a_report_names_checkpoints_so_that_its_commands_run_anywhere(tmp_path, small, monkeypatch):
    (tmp_path / "sweep").mkdir()
    sweep(tmp_path / "sweep", small(output=str(tmp_path / "sweep"))).write()
    monkeypatch.chdir(tmp_path)
    best = load_results("sweep").records.best()
    assert best is not None and best.best_checkpoint == f"{tmp_path}/sweep/trials/000/checkpoints/step-00000008"


@pytest.mark.parametrize("place", ["../other/trials/000", "trials/../../x", ".."])
def test_a_place_that_leads_out_of_the_folder_is_refused(tmp_path, small, place):
    records = sweep(tmp_path, small(output=str(tmp_path)))
    records.trials[0].checkpoint = place
    records.write()
    with pytest.raises(UserError, match=r"summary\.json is damaged"):
        read_summary(str(tmp_path))


def test_a_checkpoint_of_another_trial_is_refused():
    with pytest.raises(ValueError, match="is no checkpoint of trial 000"):
        own_checkpoint("memory://moved/sweep", "000", "/old/sweep/trials/001/checkpoints/step-00000008")


def test_figures_of_a_report_are_looked_for_where_the_sweep_is_now(tmp_path, small):
    folder = TrialFolder(small(output=str(tmp_path)), f"{tmp_path}/trials/000")
    saved = {"base_step": 8, "figures": ["/old/sweep/trials/000/figures/step-8/base.png", 3]}
    assert folder.present_report(saved)["figures"] == [f"{tmp_path}/trials/000/figures/step-8/base.png"]
    assert folder.present_report({"base_step": 8}) == {"base_step": 8}
