"""Progress of what all trials wait for: reported by a worker, wherever it runs, and shown by the driver."""

from __future__ import annotations

import shutil

import pytest
import torch

from pipeline import tasks
from pipeline.evaluation import metrics
from pipeline.runtime.filesystem import filesystem
from pipeline.sweep import preparation
from pipeline.sweep.cluster import Capacity
from pipeline.sweep.preparation import ProgressFile, StageBars, prepare_shared

SECOND = "computing the statistics of the data"


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path):
    return f"{tmp_path}/out/.preparation.json" if request.param == "file" else f"memory://{tmp_path}/.preparation.json"


def test_each_stage_is_shown_with_its_rate_and_the_time_left(url, capsys, monkeypatch, caplog):
    monkeypatch.setattr(preparation, "_SECONDS_BETWEEN_WRITES", 0.0)
    monkeypatch.setattr("pipeline.runtime.terminal._SECONDS_BETWEEN_LINES", 0.0)
    caplog.set_level("INFO", logger="pipeline")
    report, bars = ProgressFile(url), StageBars(url)
    # Before anything is reported.
    bars.update()
    for stage, counts, total in (("training the classifier", (100, 200, 400), 400), (SECOND, (10, 20), 20)):
        for count in counts:
            report(stage, count, total)
            bars.update()
    bars.close()
    assert capsys.readouterr().err == ""
    messages = [record.getMessage() for record in caplog.records]
    lines = [line for line in messages if "samples" in line]
    assert [line.split(",")[0] for line in lines] == ["200 of 400 samples", "400 of 400 samples", "20 of 20 samples"]
    assert all("samples/s" in line and "s left" in line for line in lines)
    stages = [line for line in messages if line not in lines]
    assert stages == ["training the classifier ...", f"{SECOND} ..."]
    report.close()
    files, path = filesystem(url)
    assert not files.exists(path)
    bars.update()


def test_a_report_is_written_once_a_second_at_most(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(preparation, "write_file", lambda url, content: written.append(content))
    report = ProgressFile(f"{tmp_path}/file")
    for done in range(1000):
        report("stage", done, 1000)
    assert len(written) < 20


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"stage": 1}', b'{"stage":"x","done":"many","total":1}', b"\xff"]
)
def test_a_report_that_cannot_be_read_changes_nothing(tmp_path, capsys, content):
    (tmp_path / "file").write_bytes(content)
    bars = StageBars(f"{tmp_path}/file")
    bars.update()
    bars.close()
    assert capsys.readouterr().err == ""


def test_what_cannot_be_reported_holds_nothing_up(tmp_path):
    (tmp_path / "file").touch()
    report = ProgressFile(f"{tmp_path}/file/below")
    report("stage", 1, 2)
    report.close()


def test_images_report_the_classifier_and_the_statistics(small, monkeypatch):
    def make_extractor(name, *, progress, **options):
        progress(1, 2)
        return type("Extractor", (), {"label": name})()

    monkeypatch.setattr(metrics, "make_extractor", make_extractor)
    monkeypatch.setattr(metrics, "reference", lambda store, extractor, progress: progress(3, 4))
    monkeypatch.setattr(metrics, "reference_images", lambda store: None)
    reports = []
    task = tasks.make(small())
    task.prepare(None, torch.device("cpu"), lambda *report: reports.append(report))
    assert reports == [("training the classifier", 1, 2), ("computing the statistics of the data", 3, 4)]


def test_what_a_sweep_before_has_made_is_read_without_a_process(small, stores, classifier, tmp_path, monkeypatch):
    """And where any of it is gone, it is not all there."""

    def started(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(preparation.ray, "remote", started)
    folder = shutil.copytree(stores / "digits-8", tmp_path / "store", ignore=shutil.ignore_patterns("statistics"))
    config = small(data={"store": str(folder)}, evaluation={"extractor": "classifier"})
    task, store = tasks.make(config), tasks.open_data(config.data)
    assert not task.is_prepared(store)
    label = task.prepare(store, torch.device("cpu"))
    assert label == classifier.label
    assert prepare_shared(config, Capacity([{"CPU": 1.0}], {"CPU": 1.0}, 1)) == label
    made = sorted(path for path in folder.glob("*/*") if path.parent.name in ("extractors", "statistics"))
    assert len(made) == 3
    for path in made:
        path.rename(tmp_path / "away")
        assert not task.is_prepared(store)
        with pytest.raises(AssertionError, match="a process was started"):
            prepare_shared(config, Capacity([{"CPU": 1.0}], {"CPU": 1.0}, 1))
        (tmp_path / "away").rename(path)
    others = small(data={"store": str(folder)}, evaluation={"extractor": "inception-v3-compat"})
    assert not tasks.make(others).is_prepared(store)
