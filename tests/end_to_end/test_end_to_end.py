"""Whole commands, as a user types them: real Ray, real MLflow, real stores, real signals."""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from nbclient import NotebookClient
from PIL import Image

from benchmarks.scale.servers import mlflow_server, postgresql
from pipeline.data import open_store
from tests.helpers.cli import (
    REPOSITORY,
    SMALL,
    kill,
    load,
    run,
    run_unread,
    start,
    summary,
    trial_processes,
    wait_for,
)  # fmt: skip
from tests.helpers.s3 import s3_bucket

screenshots = load("tools/make_screenshots.py")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A working directory, far from the checkout, in which nothing is prepared: the first sweep makes it all."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def database():
    """The URL of a PostgreSQL database; none where it is not installed."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # the account that runs it must get in
        with postgresql(Path(folder) / "postgresql") as url:
            yield url


@pytest.fixture(scope="module")
def server(home, database):
    """MLflow as a team has it: a server on a database, which hands on artifacts itself."""
    with mlflow_server(home / "mlflow", database) as address:
        yield address


@pytest.fixture(scope="module")
def swept(home, server):
    """A sweep with one trial that cannot but diverge, tracked by a server."""
    output = home / "swept"
    space = "{train.energy_lr:{log_uniform:[1e-4,1e-3]},train.base_lr:{choice:[3e-4,1e30]}}"
    words = [*SMALL, f"output={output}", f"++sweep.space={space}", "sweeps=grid", "sweep.grid_size=1"]
    words += ["train.max_nonfinite_restarts=1", f"tracking.uri={server}"]
    return output, run(home, "sweep", *words)


def test_a_sweep_ranks_its_trials_and_survives_one_that_diverges(swept):
    output, printed = swept
    document = summary(output)
    status = {trial["params"]["train.base_lr"]: trial["status"] for trial in document["trials"]}
    assert status == {3e-4: "finished", 1e30: "failed"}
    assert document["best"]["params"]["train.base_lr"] == 3e-4
    [good] = [trial for trial in document["trials"] if trial["status"] == "finished"]
    assert document["best"]["metrics"]["fid_gebm"] == min(entry["fid_gebm"] for entry in good["evaluations"])
    assert good["metrics"]["base_step"] == 24
    assert good["metrics"]["fid_base"] > 0 and good["metrics"]["fid_gebm"] > 0
    assert good["metrics"]["extractor"] == document["extractor"] and document["extractor"].startswith("classifier-")
    assert good["checkpoint"] and good["mlflow_run_id"] and good["seconds"] > 0
    assert [entry["base_step"] for entry in good["evaluations"]] == [8, 16, 24]
    [bad] = [trial for trial in document["trials"] if trial["status"] == "failed"]
    assert "base step" in bad["error"] and ("nan" in bad["error"] or "inf" in bad["error"])
    assert " ".join(printed.split()).count("with half the learning rates") == 1
    assert "Trials, best first" in printed and document["extractor"] in printed
    assert f"open '{document['tracking_uri']}/#/experiments/" in printed and str(output) in printed
    assert "24/24 base steps" in printed and "samples/s" in printed and "left" in printed


def artifacts(client: MlflowClient, run: Run, folder: str) -> list[Path]:
    return [Path(entry.path) for entry in client.list_artifacts(run.info.run_id, folder)]


def test_the_tracker_holds_what_the_sweep_found(swept, home):
    output, printed = swept
    document = summary(output)
    client = MlflowClient(document["tracking_uri"])
    parent = client.get_run(document["mlflow_run_id"])
    best = client.get_run(document["best"]["mlflow_run_id"])
    extractor = document["extractor"]
    assert best.data.tags["mlflow.parentRunId"] == parent.info.run_id
    [good] = [trial for trial in document["trials"] if trial["status"] == "finished"]
    assert best.data.metrics[f"fid/gebm.{extractor}"] == good["metrics"]["fid_gebm"]
    assert best.data.params["train.base_lr"] == "0.0003"
    assert set(best.data.params) == {
        "train.base_lr", "train.energy_lr", "model.networks", "train.objective", "sampler.name", "seed"
    }  # fmt: skip
    config = Path(client.download_artifacts(best.info.run_id, "config.yaml", str(home)))
    assert "num_steps: 6" in config.read_text()
    names = set(best.data.metrics)
    groups = {"kale/log_partition", "kale/log_partition_monte_carlo", "train/energy_loss", "rate/images_per_second"}
    assert groups | {"rate/flops_per_second", "rate/evaluation_seconds"} <= names
    # There is a time at each evaluation, a rate at each report as well; those between come no more than one a second.
    for name, due in (("flops_per_second", {6, 12, 18}), ("evaluation_seconds", set())):
        history = client.get_metric_history(best.info.run_id, f"rate/{name}")
        steps = [point.step for point in history]
        assert steps == sorted(set(steps)) and {8, 16, 24} <= set(steps) <= {8, 16, 24} | due
        assert all(point.value > 0 for point in history)
    assert best.data.metrics[f"best/fid_gebm.{extractor}"] == document["best"]["metrics"]["fid_gebm"]
    groups = {f"{name}/{model}.{extractor}" for name in ("fid", "nearest") for model in ("base", "gebm")}
    assert groups | {"system/cpu_utilization_percentage", "system/disk_available_megabytes"} <= names
    store = open_store(str(home / "stores" / "digits-8"))
    for found in (parent, best):
        tags = {"experiment": "digits", "networks": "dcgan", "sampler": "ula", "objective": "kale_fenchel"}
        assert found.data.tags.items() >= {**tags, "store_checksum": store.manifest.digest}.items()
        assert found.data.tags["code_version"]
        [seen] = found.inputs.dataset_inputs
        assert seen.dataset.digest == store.manifest.digest and json.loads(seen.dataset.source)["uri"] == store.url
        assert json.loads(seen.dataset.profile)["num_rows"] == 1797
    along = client.get_metric_history(best.info.run_id, f"fid_chain/00006.{extractor}")
    assert [point.step for point in along] == [8, 16, 24]
    steps = {f"step-{step:08d}" for step in (8, 16, 24)}
    assert {entry.path for entry in client.list_artifacts(best.info.run_id)} == {"config.yaml", "images", *steps}
    assert {path.name for path in artifacts(client, best, "step-00000024")} == {"chain.gif"}
    shown = {tuple(path.name.split("+")[:3]) for path in artifacts(client, best, "images")}
    pictures = ["base", "gebm", "base_and_gebm", "by_energy", "neighbours", "energies", "log_partition"]
    pictures += ["chain", "fid_along_chain"]
    # A slider starts at step 0.
    assert shown == {(name, "step", str(step)) for name in pictures for step in (0, 8, 16, 24)}
    assert {entry.path for entry in client.list_artifacts(parent.info.run_id)} >= {"config.yaml", "summary.json"}
    report = {Path(entry.path).name for entry in client.list_artifacts(parent.info.run_id, "report")}
    assert {"report.html", "learning_curves.png", "pruning.png"} <= report
    note = parent.data.tags["mlflow.note.content"]
    assert f"The best is trial {document['best']['name']}" in note and "failed: " in note and "resume=" in note
    # The best is a model in the registry, of the checkpoint that scored best.
    registered = client.get_model_version_by_alias("digits", "best")
    assert registered.run_id == best.info.run_id
    assert registered.tags["checkpoint"] == str(output / document["best"]["checkpoint"])
    assert float(registered.tags["value"]) == document["best"]["metrics"]["fid_gebm"]
    assert "models:/digits@best" in printed
    bad = next(trial for trial in document["trials"] if trial["status"] == "failed")
    assert client.get_run(bad["mlflow_run_id"]).info.status == "FAILED"
    assert parent.info.status == "FINISHED"


def test_the_sweep_is_reviewed_in_a_browser(swept, database, tmp_path):
    """As somebody with a browser sees it: one visit after another, for the browser is most of what they cost."""
    if screenshots.missing() or database is None:
        pytest.skip(f"no {screenshots.missing() or 'PostgreSQL'} here: apt-get install chromium-driver postgresql")
    output, printed = swept
    document = summary(output)
    best, runs = document["best"], [trial["mlflow_run_id"] for trial in document["trials"]]
    parent = MlflowClient(document["tracking_uri"]).get_run(document["mlflow_run_id"]).info
    with screenshots.browser(tmp_path / "browser") as driver:
        review = screenshots.Review(driver, document["tracking_uri"], parent.experiment_id, parent.run_id)
        # A new browser, which by itself shows what MLflow has for language models.
        assert review.landed(re.search(r"open '(http[^']+)'", printed).group(1))[:2] == ["digits", "Runs"]
        review.settle()

        note = review.description()
        assert note.find_element("css selector", "strong").text.startswith("digits: 2 trials by FID")
        assert f"The best is trial {best['name']} at base step" in note.text
        rows = [row.text.split()[:2] for row in note.find_elements("css selector", "tbody tr")]
        assert rows[0] == [best["name"], "finished"] and rows[1][1] == "failed"
        assert {"report.html", "learning_curves.png", "pruning.png"} <= set(review.artifacts("report"))
        titles = [figure.find_element("css selector", ".gtitle").text for figure in review.report()]
        assert titles[0] == "Learning curves of all trials" and titles[-1].startswith("How far each trial came")
        # For people without the tracker: the file alone draws as much, and asks no host for anything.
        screenshots.requested(driver)
        driver.get((output / "report" / "report.html").as_uri())
        assert [figure.find_element("css selector", ".gtitle").text for figure in review.figures()] == titles
        assert screenshots.requested(driver) <= {"file://", "data://", "blob://"}

        # The best trial is the first, and the one that failed says so.
        first, second = review.trials(re.search(r"best first +(http\S+)", printed).group(1))
        assert f"trial {best['name']}" in first and f"{best['metrics']['fid_gebm']:.3f}"[:-1] in first
        assert ", failed" in second

        # Of the two trials one rate alone differs, and one has no scores: next to the sweep's own parameters.
        assert {"train.base_lr", "train.energy_lr"} <= review.comparison([*runs, parent.run_id])

        groups = review.metrics(best["mlflow_run_id"])
        assert {"best", "fid", "fid_chain", "kale", "mcmc", "nearest", "rate", "train"} <= set(groups)
        assert "cpu_utilization_percentage" in review.system(best["mlflow_run_id"])
        shown = review.pictures(best["mlflow_run_id"], "base_and_gebm")
        assert list(shown) == [8, 16, 24] and len(set(shown.values())) == 3
        assert review.is_whole_in_view("base_and_gebm")
        assert review.enlarged("base_and_gebm").get_property("naturalWidth") > 256, (
            "it is the picture itself, not its thumbnail"
        )
        assert "best" in review.model("digits").text


def test_the_notebook_runs_on_the_sweep(swept, home, monkeypatch):
    document = summary(swept[0])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", document["tracking_uri"])
    monkeypatch.setenv("GEBM_SWEEP", document["mlflow_run_id"])
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    path = REPOSITORY / "docs" / "review.ipynb"
    assert path.stat().st_size < 300_000
    book = nbformat.read(path, as_version=4)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(home)}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output["data"] for output in outputs if "data" in output]
    assert f"The best is trial {document['best']['name']}" in shown[0]["text/markdown"]
    # The report's charts, the chain's curve, the samples and their energies.
    stills = list((swept[0] / "report").glob("*.png"))
    assert sum("image/png" in data for data in shown) == len(stills) + 3


def test_a_second_sweep_into_the_same_folder_is_refused(swept, refused):
    output, _ = swept
    before = summary(output)
    assert "resume=" in refused("sweep", *SMALL, f"output={output}")
    assert summary(output) == before


def test_the_samplers_settings_are_searched_without_training(swept, home, done):
    output, _ = swept
    checkpoint = str(output / summary(output)["best"]["checkpoint"])
    files = {path: path.read_bytes() for path in Path(checkpoint).iterdir()}
    folder = home / "mcmc"
    words = ["sweeps=mcmc", f"checkpoint={checkpoint}", f"output={folder}", *SMALL, "sweep.num_trials=2"]
    printed = done("sweep", *words)
    document = summary(folder)
    assert [trial["status"] for trial in document["trials"]] == ["finished"] * 2
    assert {trial["checkpoint"] for trial in document["trials"]} == {checkpoint}
    assert all(key.startswith("sampler.") for trial in document["trials"] for key in trial["params"])
    # What is to be copied samples with what was found, and so does the model in the registry.
    found = document["best"]["params"]
    assert f"checkpoint={checkpoint} sampler.name={found['sampler.name']} " in printed
    client = MlflowClient(document["tracking_uri"])
    versions = client.search_model_versions(f"run_id = '{document['best']['mlflow_run_id']}'")
    place = versions[0].source.removeprefix("file://")
    sampler = json.loads(Path(place, "artifacts/gebm-model/settings.json").read_text())["sampler"]
    of_all = {key for key in found if key.count(".") == 1}
    of_its_kernel = {key for key in found if key.startswith(f"sampler.{found['sampler.name']}.")}
    assert of_its_kernel
    assert all(
        sampler[key.rpartition(".")[2].replace("name", "sampler")] == found[key] for key in of_all | of_its_kernel
    )
    # The base is the same and so are its latents: only what the sampler adds may differ.
    assert len({trial["metrics"]["fid_base"] for trial in document["trials"]}) == 1
    assert {path: path.read_bytes() for path in Path(checkpoint).iterdir()} == files


def test_a_checkpoint_is_sampled_and_evaluated_with_settings_of_the_users_own(swept, home, done):
    output, _ = swept
    checkpoint = str(output / summary(output)["best"]["checkpoint"])
    words = [f"checkpoint={checkpoint}", "sampler.name=mala", "sampler.step_size=0.01"]
    done("sample", *words, "sampler.num_samples=20", f"output={home / 'samples'}")
    images = np.load(home / "samples" / "samples.npy", allow_pickle=False)
    assert images.shape == (20, 1, 8, 8) and images.dtype == np.uint8
    assert Image.open(home / "samples" / "grid.png").width > 8 * 32
    settings = json.loads((home / "samples" / "settings.json").read_text())
    assert settings["sampler"]["name"] == "mala" and settings["sampler"]["num_steps"] == 6
    metrics = "evaluation.metrics=[fid,kid,is,prc]"
    printed = done("evaluate", *words, f"output={home / 'evaluation'}", metrics)
    scores = json.loads((home / "evaluation" / "evaluation.json").read_text())
    assert {"fid_base", "fid_gebm", "kid_gebm", "is_gebm", "precision_gebm", "acceptance_rate"} <= set(scores["scores"])
    assert scores["extractor"] in printed
    assert list(scores["chain"]) == ["0", "3", "6"]


def test_interrupted_by_ctrl_c_it_says_how_to_go_on_and_does_not_run_the_finished_again(home, done):
    """With trials that Optuna proposes one by one, one after the other in a process that is killed once."""
    output = home / "interrupted"
    words = [*SMALL, f"output={output}", "sweeps=optuna", "sweep.scheduler=none", "sweep.num_trials=2"]
    process = start(home, "sweep", *words, "sweep.max_concurrent=1")
    while not (output / "trials/000/reports.jsonl").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    # It is a process of the tests' cluster.
    kill(trial_processes(os.getpid()))
    wait_for(output, lambda document: len(document["trials"]) > 1 and document["trials"][1]["evaluations"], process)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130, printed
    assert f"python -m pipeline.sweep resume={output}" in printed
    assert printed.count("trial 000 restarts from its last checkpoint: its process died") == 1, printed
    before = summary(output)["trials"]
    assert [trial["status"] for trial in before] == ["finished", "running"]
    done("sweep", f"resume={output}", "sweep.max_concurrent=2")
    after = summary(output)["trials"]
    assert [trial["status"] for trial in after] == ["finished"] * 2
    assert after[0] == before[0]
    assert after[1]["mlflow_run_id"] == before[1]["mlflow_run_id"]
    assert [entry["base_step"] for entry in after[1]["evaluations"]] == [8, 16, 24]
    assert len({trial["params"]["train.energy_lr"] for trial in after}) == 2


def test_population_based_training_goes_on_from_the_better_trial(home, cluster):
    output = home / "pbt"
    # One of the two learns nothing, and so is the worse whichever of them reports first: after 30 steps by far.
    space = "++sweep.space={train.base_lr:{log_uniform:[1e-12,1e-3]}}"
    long = ["train.base_steps=60", "evaluation.every=30", "sweep.perturbation_steps=30"]
    words = ["sweeps=pbt", "sweep.search=grid", "sweep.grid_size=2", space, f"output={output}"]
    # Nobody reads what it prints, which ends no trial.
    run_unread(home, "sweep", *SMALL, *long, *words, f"ray.address={cluster}")
    assert not (output / ".ray").exists()
    trials = summary(output)["trials"]
    assert [(trial["name"], trial["status"]) for trial in trials] == [("000", "finished"), ("001", "finished")]
    assert all(trial["metrics"]["base_step"] == 60 for trial in trials)
    # It takes over the other's weights, and a rate that is perturbed or drawn anew.
    assert 1e-12 not in [trial["params"]["train.base_lr"] for trial in trials]
    # What it took over is in its own folder from then on.
    assert all(trial["checkpoint"].startswith(f"trials/{trial['name']}/") for trial in trials)


def wine(path: Path) -> None:
    """A file as UCI distributes the red wine, of 400 rows that correlate."""
    random = np.random.RandomState(0)
    columns = [
        "fixed acidity", "volatile acidity", "citric acid", "residual sugar", "chlorides", "free sulfur dioxide",
        "total sulfur dioxide", "density", "pH", "sulphates", "alcohol", "quality",
    ]  # fmt: skip
    rows = np.round(random.standard_normal((400, 12)) @ random.standard_normal((12, 12)), 2)
    lines = [";".join(f'"{name}"' for name in columns), *(";".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


def test_a_density_is_estimated_and_an_energy_put_on_top_of_it(home, done, call_with_ray):
    """From the published file to a flow, by maximum likelihood, and on to an energy over that flow."""
    wine(home / "winequality-red.csv")
    status, _, printed = call_with_ray("train", "conf=redwine")
    assert status == 2 and "python -m pipeline.shards conf=redwine" in printed
    source = [f"data.source.url={home / 'winequality-red.csv'}", "data.source.published_counts=false"]
    printed = done("shards", "conf=redwine", *source)
    assert "400 rows of 11 columns" in printed
    short = ["train.batch_size=64", "train.report_every=10", "evaluation.every=20", "evaluation.num_samples=1000"]
    flow, top = home / "flow", home / "top"
    words = ["conf=redwine", "train.objective=ml", "model.energy=mlp", *short, "train.base_steps=40"]
    done("train", *words, f"output={flow}")
    [trial] = summary(flow)["trials"]
    scores = trial["metrics"]
    assert scores["nll_gebm"] == scores["nll_base"] and scores["base_step"] == 40
    assert "extractor" not in summary(flow) and "nats" in summary(flow)["measure"]
    words = [f"checkpoint={flow / trial['checkpoint']}", "train.objective=kale_fenchel", "train.train_base=false"]
    printed = done("train", *words, "train.base_steps=60", f"output={top}")
    [above] = summary(top)["trials"]
    # The base stood still under the energy, and the energy is not nothing.
    assert above["metrics"]["nll_base"] == scores["nll_base"] != above["metrics"]["nll_gebm"]
    assert "nll_gebm" in printed and "60/60 base steps" in printed
    client = MlflowClient(summary(top)["tracking_uri"])
    logged = client.get_run(above["mlflow_run_id"]).data.metrics
    assert {"nll/gebm", "nll/base", "nll/gebm_validation", "kale/log_partition_monte_carlo"} <= set(logged)
    shown = [path.name.split("+") for path in artifacts(client, client.get_run(above["mlflow_run_id"]), "images")]
    assert {name for name, _, step, *_ in shown if step == "60"} == {"marginals", "energies", "density"}
    done("sample", f"checkpoint={top}/trials/000", "sampler.num_samples=30", f"output={home / 'rows'}")
    rows = np.load(home / "rows" / "samples.npy", allow_pickle=False)
    assert rows.shape == (30, 11) and rows.dtype == np.float32
    assert "nll_gebm" in done("evaluate", f"checkpoint={top}/trials/000", f"output={home / 'scored'}")


def test_points_are_compared_all_else_being_equal(home, done):
    """The toy of the paper, without any file: the same networks by two objectives."""
    output = home / "toy"
    short = ["train.base_steps=20", "train.report_every=10", "evaluation.every=10", "evaluation.num_samples=200"]
    space = "++sweep.space={train.objective:{choice:[kale_fenchel,gan]}}"
    words = ["conf=toy", "sweeps=comparison", space, *short, "sampler.num_steps=10"]
    printed = done("sweep", *words, f"output={output}")
    trials = summary(output)["trials"]
    assert {trial["params"]["train.objective"] for trial in trials} == {"kale_fenchel", "gan"}
    assert all(trial["status"] == "finished" for trial in trials)
    assert all({"distance_base", "distance_gebm", "off_support_gebm"} <= set(trial["metrics"]) for trial in trials)
    assert "sliced Wasserstein distance" in printed and "mlflow ui --backend-store-uri" in printed


@pytest.fixture
def bucket():
    with s3_bucket() as url:
        yield url


def test_store_and_results_may_lie_on_s3(home, bucket, done, monkeypatch):
    url = bucket
    # A cluster of its own has the server's address from the environment.
    monkeypatch.delenv("RAY_ADDRESS")
    words = [*SMALL, f"data.store={url}/stores/digits", "train.base_steps=8", f"data.cache={home / 'cache'}"]
    printed = done("train", *words, f"output={url}/run/")
    assert f"shards are kept in {home / 'cache'} of each machine" in printed
    assert f"python -m pipeline.sample checkpoint={url}/run/trials/000/checkpoints/step-00000008" in printed
    done("sample", f"checkpoint={url}/run/trials/000", "sampler.num_samples=4", f"output={home / 'from-s3'}")
    assert np.load(home / "from-s3" / "samples.npy", allow_pickle=False).shape == (4, 1, 8, 8)
    assert list((home / "cache").glob("*.tar"))
    # Nothing is left to do, and that is seen from the bucket alone.
    assert "Trials, best first" in done("train", f"resume={url}/run")
