"""Sweeps against each other: means and intervals as scipy has them, what is missing, and what cannot be compared."""

from __future__ import annotations

import importlib
import itertools
import json
import shutil
import tempfile
from pathlib import Path

import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from gebm import objectives
from pipeline.report.comparisons.groups import GANS, Group, difference, group_runs
from pipeline.report.comparisons.page import markdown
from pipeline.report.comparisons.sweeps import load_sweeps
from pipeline.report.comparisons.tables import MISSING, differences_table, groups_table, missing_lines, scores_table
from pipeline.runtime.errors import UserError
from tests.helpers.compared import write_sweep

scores = st.floats(0.1, 500).map(lambda value: round(value, 4))
OBJECTIVES = ("kale_fenchel", "kale_dv", "gan", "hinge")


def compared(*folders: str) -> list[Group]:
    return group_runs(load_sweeps(folders))


def grid(objectives_: list[str], seeds: list[int], **more: object) -> list[dict[str, object]]:
    return [{"train.objective": name, "seed": seed, **more} for name in objectives_ for seed in seeds]


@st.composite
def tables(draw):
    """Objectives, and of each the scores of its seeds: base, then with the energy."""
    names = draw(st.lists(st.sampled_from(OBJECTIVES), min_size=1, max_size=4, unique=True))
    seeds = st.dictionaries(st.integers(0, 6), st.tuples(scores, scores), min_size=1, max_size=5)
    return {name: draw(seeds) for name in names}


@settings(max_examples=30)
@given(tables(), st.sampled_from(["min", "max"]))
def test_means_errors_and_intervals_are_scipys(table, mode):
    def score(params, seed):
        return dict(zip(("fid_base", "fid_gebm"), table[params["train.objective"]][seed], strict=True))

    with tempfile.TemporaryDirectory() as folder:
        params = [{"train.objective": name, "seed": seed} for name, seeds in table.items() for seed in seeds]
        groups = compared(write_sweep(Path(folder) / "sweep", params, score, mode=mode))
    assert [group.objective for group in groups] == list(table)
    for group in groups:
        values = [table[group.objective][seed] for seed in sorted(table[group.objective])]
        for name, column in zip(("fid_base", "fid_gebm"), zip(*values, strict=True), strict=True):
            found = group.estimate(name)
            assert found.mean == pytest.approx(sum(column) / len(column))
            assert len(column) == 1 or found.error == pytest.approx(scipy.stats.sem(column), abs=1e-9)
        seed, best = group.best()
        own = [value[0 if group.is_gan else 1] for value in values]
        assert best.best_metrics[group.own_score] == (min if mode == "min" else max)(own)
        assert group.runs[seed] is best
    for first, second in itertools.combinations(groups, 2):
        common = sorted(table[first.objective].keys() & table[second.objective].keys())
        found = difference(first, first.own_score, second, second.own_score)
        assert found.count == len(common)
        if found.count > 1 and found.error > 1e-6:
            mine, others = ([table[g.objective][s][0 if g.is_gan else 1] for s in common] for g in (first, second))
            expected = scipy.stats.ttest_rel(mine, others).confidence_interval(0.95)
            assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-6)
    differences = differences_table(groups)
    assert {row[-1] for row in differences.rows} <= {"first", "second", "not shown", "-"}
    # One seed alone has no interval, and none is counted for it.
    count = sum(" to " in row[-2] for row in differences.rows)
    assert ("interval(s)" in differences.note) == (count > 0) and (not count or f"Of {count} " in differences.note)


@settings(max_examples=20)
@given(tables(), st.randoms())
def test_one_sweep_over_seeds_is_the_same_as_a_training_for_each(table, random):
    """However runs are spread over folders, and in whichever order these are named."""

    def score(params, seed):
        return dict(zip(("fid_base", "fid_gebm"), table[params["train.objective"]][seed], strict=True))

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        params = [{"train.objective": name, "seed": seed} for name, seeds in table.items() for seed in seeds]
        whole = compared(write_sweep(root / "whole", params, score))
        parts = []
        for one in params:
            name, seed = one["train.objective"], one["seed"]

            def of_one(_, seed, name=name):
                return score({"train.objective": name}, seed)

            parts.append(write_sweep(root / f"{name}-{seed}", scores=of_one, train={"objective": name}, seed=seed))
        random.shuffle(parts)
        split = compared(*parts)

    def shown(groups: list[Group]) -> set[tuple]:
        return {(g.objective, tuple(g.values("fid_base").items()), tuple(g.values("fid_gebm").items())) for g in groups}

    assert shown(whole) == shown(split)
    assert sorted(scores_table(whole).rows[0][2:]) == sorted(scores_table(split).rows[0][2:])


def paper(folder: Path, leave_out: tuple[str, str] | None = None, seeds: int = 3) -> list[str]:
    """Eight sweeps: data sets times networks."""
    made = []
    for data, networks in itertools.product(("cifar10", "lsun", "celeba", "imagenet32"), ("dcgan", "sngan_resnet")):
        if (data, networks) != leave_out:
            facts = {"store": f"s3://stores/{data}", "store_checksum": data * 8, "extractor": f"classifier-{data}"}
            facts["measure"] = f"FID by classifier-{data}"
            params = grid(["kale_fenchel", "gan"], list(range(seeds)))
            path = folder / f"{data}-{networks}"
            made.append(write_sweep(path, params, facts=facts, model={"networks": networks}))
    return made


def test_the_table_of_the_paper_comes_of_eight_sweeps(tmp_path):
    table = scores_table(compared(*paper(tmp_path)))
    assert table.title == "FID" and table.heads == ["data", "networks", "GEBM", "base", "GAN"]
    assert len(table.rows) == 8 and not any(MISSING in row for row in table.rows)
    assert table.rows[0] == ["cifar10", "dcgan", "19.17 ± 0.12", "21.30 ± 0.17", "12.30 ± 0.17"]
    assert "lsun: FID by classifier-lsun, 10,000 samples (beta 1: the model itself)." in table.note


def test_what_is_missing_is_marked(tmp_path):
    folders = paper(tmp_path, leave_out=("lsun", "dcgan"))

    def fail(trial):
        if trial.name == "001":
            trial.status, trial.error, trial.best_metrics = "failed", "diverged", {}

    shutil.rmtree(folders[0])
    facts = {"store": "s3://stores/cifar10", "store_checksum": "cifar10" * 8, "extractor": "classifier-cifar10"}
    write_sweep(Path(folders[0]), grid(["kale_fenchel"], [0, 1]), facts=facts, finish=fail)
    groups = compared(*folders)
    table = scores_table(groups)
    rows = {tuple(row[:2]): row[2:] for row in table.rows}
    assert len(rows) == 8 and rows["lsun", "dcgan"] == [MISSING] * 3
    assert rows["cifar10", "dcgan"][2] == MISSING and rows["cifar10", "dcgan"][0] == "19.00"
    lines = missing_lines(groups)
    assert "lsun, dcgan: no GEBM, no base, no GAN" in lines and "cifar10, dcgan: no GAN" in lines
    assert "cifar10, dcgan, kale_fenchel: no seed 1, 2" in lines
    assert "cifar10, dcgan, kale_fenchel: of 2 trials 1 failed" in lines and len(lines) == 4
    assert all(line in markdown(groups).replace("\\", "") for line in lines)


def test_of_a_search_the_best_setting_is_compared_and_one_without_all_seeds_is_not(tmp_path):
    def score(params, seed):
        rate = params["train.base_lr"]
        return {"fid_base": 9.0, "fid_gebm": {1e-4: 5.0 + seed, 2e-4: 3.0 + seed, 3e-4: 1.0}[rate]}

    params = [{"train.base_lr": rate, "seed": seed} for rate in (1e-4, 2e-4) for seed in (0, 1)]
    [group] = compared(write_sweep(tmp_path / "a", [*params, {"train.base_lr": 3e-4, "seed": 0}], score))
    assert group.values("fid_gebm") == {0: 3.0, 1: 4.0} and group.settings == 3
    assert groups_table([group]).rows[0][-3:] == ["3", "5", "2.5"]
    # Without seeds among what is searched, each sweep has one: its own.
    folders = [
        write_sweep(tmp_path / f"s{seed}", [{"train.base_lr": rate} for rate in (1e-4, 2e-4)], score, seed=seed)
        for seed in (3, 5)
    ]
    [group] = compared(*folders)
    assert group.values("fid_gebm") == {3: 6.0, 5: 8.0}


def test_sweeps_that_differ_in_more_than_the_seed_are_told_apart(tmp_path):
    params = grid(["kale_fenchel"], [0, 1])
    one, two, three = (
        write_sweep(tmp_path / name, params, train={"energy_lr": rate})
        for name, rate in (("one", 1e-4), ("two", 2e-4), ("three", 1e-4))
    )
    assert [group.extra for group in compared(one, two)] == ["train.energy_lr=0.0001", "train.energy_lr=0.0002"]
    # A run that was done twice has no key that differs.
    assert [group.extra for group in compared(one, three)] == ["one", "three"]
    assert scores_table(compared(one, two)).heads[2:4] == [
        "GEBM, kale_fenchel, train.energy_lr=0.0001", "base, kale_fenchel, train.energy_lr=0.0001",
    ]  # fmt: skip
    # Workers, addresses and places say nothing of what was trained.
    other = write_sweep(tmp_path / "other", grid(["kale_fenchel"], [2]), scale={"num_workers": 4}, ray={"address": "x"})
    [group] = compared(write_sweep(tmp_path / "first", params), other)
    assert sorted(group.runs) == [0, 1, 2] and group.hours == 2 * 0.5 + 4 * 0.5


@pytest.mark.parametrize(
    ("metric", "score"), [("nll_gebm_validation", "nll"), ("distance_validation_gebm", "distance")]
)
def test_what_validation_data_choose_is_compared_on_test_data(tmp_path, metric, score):
    """The setting that is best by the validation score is the worse one by the test score."""

    def scores(params, seed):
        worse = params["train.base_lr"] == 1e-4
        found = {f"{score}_base": 5.0 + worse, f"{score}_gebm": 4.0 + worse}
        return found | {metric: 3.0 - worse, metric.replace("_gebm", "_base"): 3.0 - worse}

    for objective in ("kale_fenchel", "gan"):
        params = [{"train.base_lr": rate, "train.objective": objective} for rate in (1e-4, 2e-4)]
        [group] = compared(write_sweep(tmp_path / objective, params, scores, metric=metric))
        assert group.estimate(f"{score}_gebm").mean == 5.0 and group.estimate(f"{score}_base").mean == 6.0
        assert group.own_score == (f"{score}_base" if objective == "gan" else f"{score}_gebm")


def test_which_objectives_are_of_gans_is_what_the_registry_has():
    kinds = (objectives.NonSaturating, objectives.Hinge, objectives.Wasserstein)
    assert set(GANS) == {name for name in OBJECTIVES_WITHOUT_SETTINGS if isinstance(objectives.make(name), kinds)}


OBJECTIVES_WITHOUT_SETTINGS = [name for name in objectives.NAMES if "cd" not in name]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"facts": {"store_checksum": "2" * 64}}, "the checksum of the store digits-8"),
        ({"facts": {"extractor": "inception"}}, "the feature extractor"),
        ({"evaluation": {"num_samples": 500}}, "the number of samples of a score"),
        ({"metric": "kid_gebm"}, "the score"),
        ({"mode": "max"}, "the better end of the score"),
        ({"task": "points"}, "the task"),
    ],
)
def test_what_is_not_measured_alike_is_refused(tmp_path, changed, expected):
    def score(params, seed):
        return {"fid_base": 9.0, "fid_gebm": 8.0, "kid_base": 9.0, "kid_gebm": 8.0}

    one, two = write_sweep(tmp_path / "one"), write_sweep(tmp_path / "two", scores=score, **changed)
    with pytest.raises(UserError, match=f"^not comparable: {expected} of {two} is .*, and of {one} ") as refused:
        load_sweeps([one, two])
    assert "\n" not in str(refused.value)


def test_a_folder_that_is_no_sweep_or_comes_twice_is_refused(tmp_path, monkeypatch):
    one = write_sweep(tmp_path / "one")
    (tmp_path / "link").symlink_to(one)
    monkeypatch.chdir(tmp_path)
    for twice in (one, f"{one}/", "one", "link"):
        with pytest.raises(UserError, match=r"the same folder .* name each sweep once$"):
            load_sweeps([one, twice])
    with pytest.raises(UserError, match=r"no sweep at"):
        load_sweeps([one, str(tmp_path)])
    without = write_sweep(tmp_path / "without")
    for content, expected in ((b"\xff", "cannot be read"), (b"- 1", "damaged"), (b"a: 1", "damaged")):
        (tmp_path / "without/config.yaml").write_bytes(content)
        with pytest.raises(UserError, match=expected):
            load_sweeps([one, without])
    (tmp_path / "without/config.yaml").unlink()
    with pytest.raises(UserError, match=r"has no config\.yaml"):
        load_sweeps([one, without])


def test_trials_that_two_extractors_measured_are_refused(tmp_path):
    def finish(trial):
        trial.best_metrics["extractor"] = f"classifier-{trial.name}"

    folder = write_sweep(tmp_path / "one", [{"seed": 0}, {"seed": 1}], finish=finish)
    with pytest.raises(UserError, match=r"trials of .* were measured by classifier-000, classifier-001"):
        load_sweeps([folder])


@settings(max_examples=30)
@given(
    st.lists(
        st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 0.0, 5.0, None]),
        min_size=4,
        max_size=4,
    ),
    st.sampled_from(["finished", "pruned", "failed", "running", "pending"]),
)
def test_whatever_scores_are_there_makes_tables(values, status):
    def finish(trial):
        found = values[int(trial.name)]
        trial.best_metrics |= {"fid_gebm": found}
        trial.status = status

    with tempfile.TemporaryDirectory() as folder:
        groups = compared(write_sweep(Path(folder) / "one", grid(["kale_fenchel", "gan"], [0, 1]), finish=finish))
    text = markdown(groups)
    assert not {"nan", "inf"} & set(text.replace("|", " ").split())
    assert len({len(row) for row in scores_table(groups).rows}) == 1
    json.dumps([scores_table(groups), differences_table(groups), groups_table(groups), missing_lines(groups)])


@pytest.mark.parametrize("module", ["pipeline.compare", "pipeline.report.__main__"])
def test_an_output_as_other_commands_take_it_is_refused(module, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["command", "output=page"])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(module).main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: output=page: this command takes --output page\n"
