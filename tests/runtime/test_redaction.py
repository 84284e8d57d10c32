"""Credentials reach no file, no log, no tracker and no line that is printed: tests look for their canary everywhere."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import logging
import os
import random
import re
import string
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from PIL import Image
from ray.tune.experiment import Trial

from pipeline.data import open_store
from pipeline.runtime.errors import UserError
from pipeline.runtime.redaction import is_secret_name, looks_random, redact, refuse_secrets, without_query
from pipeline.sweep.callback import SweepCallback
from pipeline.sweep.display.console import Display
from pipeline.sweep.trainable import TRIAL_NAME_KEY
from pipeline.tracking.summary import SweepSummary
from pipeline.tracking.tracker import Tracker

CANARY = "kanarienvogel77"
MANY = settings(deadline=None, max_examples=300)
PASSWORDS = st.from_regex(r"[A-Za-z][A-Za-z0-9._~%!$*+-]{8,30}", fullmatch=True)
SIGNED = [
    "X-Amz-Signature",
    "X-Amz-Credential",
    "X-Amz-Security-Token",
    "X-Goog-Signature",
    "GoogleAccessId=x&Signature",
    "AWSAccessKeyId",
    "sv=2026&sig",
    "token",
    "access_token",
    "api_key",
    "password",
    "code",
    "hmac",
    "ticket",
    "passphrase",
    "anything",
]


def holding(folder: Path, canary: str = CANARY) -> list[str]:
    """The files below a folder that have a text in them or in their name."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in found if canary.encode() in path.read_bytes() or canary in str(path)]


@MANY
@given(
    password=PASSWORDS,
    url=st.sampled_from(
        [
            "https://me:{}@mlflow.example.org/a",
            "https://{}@example.org/of/a/token",
            "s3://AKIA:{}@bucket/x",
            "postgresql+psycopg2://me:{}@db:5432/mlflow",
            "postgresql://me:a/{}@db/mlflow",
            *(f"https://example.org/a.zip?x=1&{name}={{}}&y=2" for name in SIGNED),
            "Max retries exceeded with url: /a.zip?sig={} (Caused by NewConnectionError)",
            "https://example.org/x#access_token={}&type=bearer",
            "https://example.org/x?file=a#/y?code={}",
            "Authorization: Bearer {}",
            "{{'Authorization': 'Basic {}'}}",
        ]
    ),
    text=st.sampled_from(["{}", "cannot reach {}: no route", "URL('{}')", '{{"url": "{}"}}', "a\n{}\nb", "<{}>"]),
)
def test_what_is_said_has_no_password_and_no_signature_in_it(password, url, text):
    payload = text.format(url.format(password))
    assert password not in redact(payload)
    assert redact(redact(payload)) == redact(payload)
    assert redact({payload: [payload, (payload,)], "n": 1.5}) == {
        redact(payload): [redact(payload), (redact(payload),)],
        "n": 1.5,
    }
    if "://" in url:
        with pytest.raises(UserError) as refusal:
            refuse_secrets({"data": {"source": {"url": url.format(password)}}})
        assert str(refusal.value).startswith("data.source.url has ") and password not in str(refusal.value)
        refuse_secrets({"data": {"source": {"url": url.format(password)}}}, but=("data.source.url",))
        assert password not in str(without_query(url.format(password)))


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/sweeps/lsun",
        "abfs://container@account.dfs.core.windows.net/x",
        "sqlite:////home/me/results/mlflow.db",
        "https://mlflow.example.org:5000/a@b/#/experiments/1",
        "https://example.org/get?file=lsun.zip&version=7&page=2",
        "https://mlflow.example.org/#/experiments/1/runs/0a1b?workflowType=machine_learning",
        "s3://bucket/9f86d081884c7d659a2feaa0c55ad015a3bf4f1b/x",
        "sweep.num_trials=3 max_tokens=5 model.width=8",
        "http://127.0.0.1:8265",
        "me@example.org",
        "git@github.com:someone/project.git",
        "trial 000: 12/24 base steps; key=value; a Basic choice",
        "[::1]:6379",
    ],
)
def test_what_lets_nobody_in_stays_as_it_is(text):
    assert redact(text) == text == without_query(text)
    refuse_secrets({"x": text})


@MANY
@given(secret=st.text(st.characters(codec="ascii", exclude_characters="\x00"), min_size=8, max_size=40))
def test_secrets_of_the_environment_are_found_in_any_text_as_they_are_and_as_a_url_has_them(secret):
    with contextlib.ExitStack() as stack:
        os.environ["GEBM_TEST_SECRET"] = secret
        stack.callback(os.environ.pop, "GEBM_TEST_SECRET")
        if os.path.exists(secret):  # of a file only the name is known
            return
        for written in (secret, quote(secret, safe="")):
            assert written not in redact(f"<{written}>") or written in "<***>"
            with pytest.raises(UserError, match=r"a\.b has the value of") as refusal:
                refuse_secrets({"a": {"b": f"x{written}y"}})
            assert f"x{written}y" not in str(refusal.value)


@pytest.mark.parametrize(
    ("variable", "secret"),
    [
        ("HF_TOKEN", True),
        ("GPG_KEY", True),
        ("PGPASSWORD", True),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", False),
        ("TOKENIZERS_PARALLELISM", False),
        ("RAY_AUTH_TOKEN_PATH", False),
        ("KEYBOARD", False),
        ("AWS_REGION", False),
        ("GITHUB_PAT", True),
        ("AZURE_STORAGE_CONNECTION_STRING", True),
        ("DB_PASS", True),
        ("COOKIE", True),
        ("SLACK_WEBHOOK_URL", True),
        ("MYSQL_PWD", True),
        ("SSHPASS", True),
        ("PWD", False),
        ("OLDPWD", False),
        ("PATH", False),
        ("SSH_AUTH_SOCK", False),
    ],
)
def test_which_variables_hold_a_secret(variable, secret):
    assert is_secret_name(variable) == secret


RANDOM = st.one_of(
    st.integers(16, 40).flatmap(lambda size: st.binary(min_size=size, max_size=size)).map(lambda b: b.hex()),
    st.uuids().map(str),
    st.builds(
        lambda seed: "".join(random.Random(seed).choices(string.ascii_letters + string.digits, k=32)), st.integers()
    ),
)


@pytest.mark.parametrize(
    "text", ["DefaultEndpointsProtocol=https;AccountName=a;AccountKey={}/x==;EndpointSuffix=x", "pwd={}"]
)
def test_no_connection_string_has_its_key(text):
    payload = text.format("kanarienvogel")
    assert "kanarienvogel" not in redact(payload)
    with pytest.raises(UserError, match=r"a\.b has "):
        refuse_secrets({"a": {"b": payload}})


@settings(max_examples=60)
@given(value=RANDOM)
def test_a_value_of_the_environment_that_looks_random_is_hidden_whatever_its_name_is(value):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEBM_TEST_ANYTHING", value)
        if looks_random(value):
            assert value not in redact(f"a {value} b")
        # What a user has typed, and what names a commit, is needed.
        patch.setattr(sys, "argv", ["sweep", f"output=results/{value}"])
        assert redact(f"a {value} b") == f"a {value} b"
        patch.setattr(sys, "argv", ["sweep"])
        patch.delenv("GEBM_TEST_ANYTHING")
        patch.setenv("GIT_COMMIT", value)
        assert redact(f"a {value} b") == f"a {value} b"


def test_most_random_texts_look_random_and_hardly_any_words_do():
    """Measured on what this repository itself says, which has digests, paths and names of files."""
    draw = random.Random(0)
    letters = string.ascii_letters + string.digits
    keys = ["".join(draw.choices(letters, k=32)) for _ in range(500)]
    keys += [f"{draw.getrandbits(160):040x}" for _ in range(500)]
    assert sum(map(looks_random, keys)) > 980
    root = Path(__file__).resolve().parents[2]
    sources = [
        *root.glob("*.md"),
        *root.glob("docs/**/*.md"),
        *root.glob("pipeline/**/*.py"),
        *root.glob("conf/*.yaml"),
    ]
    words = {word for path in sources for word in re.findall(r"[^\s'\"`(),]{16,}", path.read_text())}
    assert len(words) > 1000 and sum(map(looks_random, words)) < 0.005 * len(words)
    lines = [line for path in sources if path.suffix != ".py" for line in path.read_text().splitlines()]
    # Those that set a password or a key.
    assert sum(redact(line) != line for line in lines) <= 3


PLACES = ["tracking.uri", "output", "data.store", "checkpoint", "resume", "evaluation.weights", "tracking.experiment"]
# What has a store or a model of its own asks less, and refuses the same.
WORDS = {"sweep": PLACES, "train": PLACES, "shards": ["data.store"], "sample": PLACES[1:4], "evaluate": PLACES[1:4]}


@pytest.mark.parametrize(("verb", "key"), [(verb, key) for verb, keys in WORDS.items() for key in keys])
def test_each_verb_refuses_a_credential_in_a_key_before_anything_is_written(refused, monkeypatch, tmp_path, verb, key):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{CANARY}/of+the=environment")
    for value in (
        f"https://me:{CANARY}@example.org/x",
        f"s3://AKIA:{CANARY}@bucket/x",
        f"https://example.org/x?X-Amz-Signature={CANARY}",
        f"x-{CANARY}/of+the=environment",
    ):
        line = refused(verb, f"{key}='{value}'")
        assert line.startswith(f"error: {key} has ") and CANARY not in line
        if key == "tracking.uri" and value.startswith("https"):
            assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in line
    assert list(tmp_path.iterdir()) == []


class _Signed(http.server.SimpleHTTPRequestHandler):
    """Serve files for signed requests."""

    def send_head(self) -> io.BytesIO | None:
        if not parse_qs(urlsplit(self.path).query).get("X-Amz-Signature", [""])[0].startswith(CANARY):
            self.send_error(403)
            return None
        return super().send_head()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def signed(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """A server that asks for a signature, and the folder that it serves, with a zip of images in it."""
    folder = tmp_path_factory.mktemp("served")
    random = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "photographs.zip", "w") as archive:
        for index in range(40):
            picture = io.BytesIO()
            Image.fromarray(random.integers(0, 255, (8, 8, 3), np.uint8)).save(picture, "png")
            archive.writestr(f"{index}.png", picture.getvalue() if index else b"no image")
    (folder / "damaged.zip").write_bytes((folder / "photographs.zip").read_bytes()[:-30])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Signed, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_store_is_made_from_a_signed_url_and_does_not_tell_it(call, signed, tmp_path):
    where, _ = signed
    words = ["data.source.kind=images", "data.channels=3", "data.store=./store"]
    words += ["data.samples_per_shard=16", "data.num_writers=2"]

    def url(name: str, day: int) -> str:
        return f"data.source.url='{where}/{name}?X-Amz-Date={day}&X-Amz-Signature={CANARY}{day}'"

    for broken in (url("damaged.zip", 1), url("nowhere.zip", 1), f"data.source.url='{where}/x?X-Amz-Signature=wrong'"):
        status, printed, errors = call("shards", *words, broken)
        assert status == 2 and errors.count("\n") == 1 and where in errors
        assert CANARY not in printed + errors and "wrong" not in errors
    status, printed, errors = call("shards", *words, url("photographs.zip", 1))
    assert status == 0, errors
    assert CANARY not in printed + errors and "1 broken images were skipped" in printed
    assert open_store(str(tmp_path / "store")).manifest.source.url == f"{where}/photographs.zip"
    assert holding(tmp_path) == []


def test_a_store_that_was_interrupted_is_finished_with_another_signature(call, signed, tmp_path):
    where, _ = signed
    words = ["data.source.kind=images", "data.channels=3", "data.store=./store"]
    words += ["data.samples_per_shard=16", "data.num_writers=1"]
    store = tmp_path / "store"
    assert call("shards", *words, f"data.source.url='{where}/photographs.zip?X-Amz-Signature={CANARY}1'")[0] == 0
    whole = {path.name: path.read_bytes() for path in store.iterdir()}
    (store / "manifest.json").unlink()
    assert call("shards", *words, f"data.source.url='{where}/photographs.zip?X-Amz-Signature={CANARY}2'")[0] == 0
    assert {path.name: path.read_bytes() for path in store.iterdir()} == whole


@pytest.mark.usefixtures("mlflow_tables")
def test_no_error_of_a_trial_takes_a_credential_to_a_file_a_log_or_the_tracker(small, tmp_path, monkeypatch, capsys):
    """The driver's side of a sweep, with what trials report of a storage that quotes what it was given."""
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", f"{CANARY}+/")
    payload = f"no answer from https://me:{CANARY}@example.org/x?sig={CANARY} nor with {CANARY}+/ as password"
    config = small(output=str(tmp_path / "out"))
    shown = ("fid_base", "fid_gebm")
    records = SweepSummary(str(config.output), metric="fid_gebm", mode="min", shown=shown, facts={})
    display = Display(records, "small", event_log=str(tmp_path / "events.jsonl"))
    uri, artifacts = f"sqlite:///{tmp_path / 'mlflow.db'}", (tmp_path / "artifacts").as_uri()
    journal, log = tmp_path / "out" / "journal", logging.getLogger("pipeline")
    tracker = Tracker(uri, "small", artifacts=artifacts, journal=journal, folder=str(tmp_path), notify=log.info)
    parent = tracker.start_sweep("sweep", {"leaked": payload}, payload, extractor=None)
    watch = SweepCallback(config, records, tracker, display)
    with display:
        with display.sweep(2, 2):
            for name in ("000", "001"):
                trial = Trial("small", config={TRIAL_NAME_KEY: name}, trial_id=name, stub=True)
                trial.custom_trial_name = name
                watch.on_trial_start(1, [], trial)
                report = {
                    "base_step": 8,
                    "fid_base": 2.0,
                    "fid_gebm": 1.0,
                    "notes": [payload],
                    "figures": [],
                    "chain": {},
                }
                watch.on_trial_result(1, [], trial, {**report, "reported": list(report)})
                watch.on_trial_result(1, [], trial, {"restart": payload, "reported": ["restart"]})
                if name == "001":
                    watch.on_trial_result(1, [], trial, {"error": payload, "reported": ["error"]})
                watch.on_trial_complete(1, [], trial)
        tracker.describe(None, payload, {"tag": payload})
        tracker.log_files(None, [f"{tmp_path}/nowhere-{CANARY}+/.png"])
        assert tracker.close(flush_timeout=60) == 0
        records.write()
    printed = capsys.readouterr()
    assert CANARY not in printed.out + printed.err and holding(tmp_path) == []
    for text in (printed.out, (tmp_path / "events.jsonl").read_text(), (tmp_path / "out" / "summary.json").read_text()):
        assert "no answer from https://***@example.org/x?sig=*** nor with *** as password" in text
    client = MlflowClient(uri)
    failed = next(run for run in client.search_runs([tracker.experiment_id]) if run.info.status == "FAILED")
    assert "https://***@example.org" in failed.data.tags["error"]
    assert "https://***@example.org" in client.get_run(parent).data.params["leaked"]


def test_a_tracker_that_is_away_is_named_without_the_password_of_the_environment(refused, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", CANARY)
    line = refused("sweep", "tracking.uri=http://127.0.0.1:1", "output=out")
    assert "no MLflow tracker at http://127.0.0.1:1" in line and CANARY not in line
    assert holding(tmp_path) == []
