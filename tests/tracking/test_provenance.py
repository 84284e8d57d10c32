"""What a run says of its code, its data and its machine."""

from __future__ import annotations

import dataclasses
import subprocess

import torch

from pipeline.runtime.system_metrics import SystemMetrics
from pipeline.tracking.provenance import code_version, describe_dataset, tags


def git(folder, *words):
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_code_is_named_by_its_revision_only_where_it_is_in_the_repository(tmp_path):
    git(tmp_path, "init", "-q")
    code, environment = tmp_path / "pipeline", tmp_path / "environment"
    for folder in (code, environment):
        folder.mkdir()
        (folder / "provenance.py").write_text("")
    git(tmp_path, "add", "pipeline")
    git(tmp_path, "commit", "-qm", "begun")
    revision = git(tmp_path, "rev-parse", "HEAD")
    assert code_version(code) == revision
    # An environment inside somebody's repository has no revision of ours.
    assert revision not in code_version(environment)
    (code / "provenance.py").write_text("# changed")
    code_version.cache_clear()
    assert code_version(code) == f"{revision}-dirty"


def test_the_data_are_named_without_what_lets_one_in(digits, small):
    payload = describe_dataset(digits)
    assert (
        payload["checksum"] == digits.manifest.digest
        and payload["num_samples"] == 1797
        and payload["name"] == "digits-8"
    )
    signed = "https://me:hush-hush@example.org/stores/digits-8?X-Amz-Signature=c0ffeec0ffee"
    hidden = describe_dataset(dataclasses.replace(digits, url=signed))
    assert "hush" not in str(hidden) and "c0ffee" not in str(hidden) and hidden["name"] == "digits-8"
    wanted = {"experiment": "small", "networks": "dcgan", "sampler": "hmc", "objective": "gan"}
    assert tags(small(sampler={"name": "hmc"}, train={"objective": "gan"})).items() >= wanted.items()


def test_a_machine_is_used_within_its_bounds():
    machine = SystemMetrics(torch.device("cpu"))
    sum(range(10**6))
    found = machine.sample()
    shares = [value for name, value in found.items() if name.endswith("percentage")]
    assert len(shares) == 3 and all(0 <= value <= 100 for value in shares)
    assert all(value >= 0 for value in found.values())
