"""Arguments as they are typed: a text is taken as it is, and what cannot be read is explained in one line."""

from __future__ import annotations

import shlex

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from pipeline.config import compose, schema
from pipeline.config.arguments import explain, format_text, quote_texts, text_keys
from pipeline.config.command import _shorten
from pipeline.config.launcher_schema import TEXT_KEYS
from pipeline.runtime.errors import UserError

TEXTS = text_keys(schema.Config)
# An argument of a process holds no NUL, and ${ is a reference to another key.
typed = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
pathlike = st.text("ab0 ().,=#%'\"[]{}\\/~:*?!&|<>;é`$-+\t", min_size=1, max_size=12)


def parsed(argument: str) -> object:
    """The value that Hydra reads."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(argument).value()


@settings(max_examples=100)
@given(st.sampled_from(["output", "+output", "++output"]), typed | pathlike)
@example("output", "a(1)")
@example("output", "a,b")
@example("output", "lr=1%")
@example("output", "a#b")
@example("output", "josé")
@example("output", " a b ")
@example("output", "'a")
@example("output", "'a'b'")
@example("output", "a\\")
@example("output", "\\'a\\\\'")
@example("output", "007")
@example("output", "1e3")
@example("output", "true")
@example("output", "[a]")
@example("output", "{a:b}")
@example("output", "run(1")
@example("output", "a\n#b")
@example("output", "choice(a,b)")
def test_a_text_is_what_was_typed(key, text):
    assume("${" not in text and text.strip().lower() != "null")
    assume(not (len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] in "'\"" and text.strip() != "'a'b'"))
    [argument] = quote_texts([f"{key}={text}"], TEXTS)
    assert parsed(argument) == text
    # What was quoted once, as in a command that is printed, stays as it is.
    assert quote_texts([argument], TEXTS) == [argument]


@given(typed | pathlike)
def test_a_text_in_quotes_of_its_own_is_what_is_within_them(text):
    [argument] = quote_texts([f"output={format_text(text)}"], TEXTS) if "${" not in text else ['output="x"']
    assert "${" in text or parsed(argument) == text


def test_a_command_takes_paths_as_they_are_typed(call):
    for word in ("a(1)", "a,b", "lr=1%", "a#b", "josé", "my runs/a b", "${name}-1"):
        status, printed, errors = call(
            "sweep", f"output={word}", f"tracking.experiment={word}", "--cfg", "job", "--resolve"
        )
        assert status == 0, errors
        values = yaml.safe_load(printed)
        assert values["output"] == values["tracking"]["experiment"] == word.replace("${name}", "digits")


@pytest.mark.parametrize("verb", ["sweep", "train", "shards", "sample", "evaluate"])
def test_each_command_takes_a_path_with_special_characters(call, verb):
    status, printed, errors = call(verb, "checkpoint=a(1),[b]#c", "--cfg", "job")
    assert status == 0, errors
    assert yaml.safe_load(printed)["checkpoint"] == "a(1),[b]#c"


def test_texts_of_a_launcher_are_taken_as_they_are_typed(call):
    status, printed, errors = call("submit", "launch=slurm", "launch.folder=a(1),b", "--cfg", "job")
    assert status == 0, errors
    assert yaml.safe_load(printed)["launch"]["folder"] == "a(1),b"
    assert quote_texts(["+launch.env.NAME=a b(1)"], TEXT_KEYS) == ['+launch.env.NAME="a b(1)"']


def test_every_path_of_the_schema_is_a_text():
    paths = {"output", "resume", "checkpoint", "log", "data.store", "data.cache", "data.source.url", "tracking.uri"}
    assert paths | {"evaluation.weights", "data.source.split"} <= TEXTS
    assert not {"seed", "train.base_lr", "evaluation.metrics", "sweep.space"} & TEXTS
    assert {"launch.folder", "launch.python", "launch.env."} <= TEXT_KEYS


@pytest.mark.parametrize("word", ["conf=my(exp)", "sweeps=a#b", "conf=josé", "conf=a b"])
def test_a_choice_that_is_no_name_lists_the_names(refused, word):
    group, _, name = word.partition("=")
    line = refused("sweep", word)
    assert f"{group}/{name}" in line
    assert ("lsun" if group == "conf" else "optuna") in line


JARGON = ("mismatched", "Lexer", "viable", "EOF", "extraneous", "token recognition", "Error parsing")


@settings(max_examples=60)
@given(st.sampled_from(["train.base_lr", "evaluation.metrics", "++sweep.space", "seed", "a b", ""]), pathlike)
@example("train.base_lr", "1)")
@example("evaluation.metrics", "[a(b,c]")
@example("++sweep.space", "{a")
@example("spaces.'my#space'", "1")
@example("train.base_lr", "1e-4,1e-3")
def test_what_cannot_be_read_is_explained_without_the_grammars_words(key, text):
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    argument = f"{key}={text}"
    try:
        OverridesParser.create().parse_overrides([argument])
    except HydraException as error:
        line = _shorten(error)
        assert "\n" not in line and not any(word in line for word in JARGON)
        assert "write" in line or "as in" in line


def test_what_the_explanation_says_to_write_can_be_read():
    for argument in ("seed=1)", "data.source.split=a'b(", "train.base_lr=1#"):
        example_of = explain(argument).partition("as in ")[2]
        [word] = shlex.split(example_of)
        assert parsed(word) == argument.partition("=")[2]
    assert parsed(explain("evaluation.metrics=[a(b").partition("as in '")[2][:-1]) == ["a(1)", "b"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("output=a${b", ["output=a${b", "reference"]),
        ("output=a\udcffb", ["output=a\\udcffb", "UTF-8"]),
        ("train.base_lr=1e-4,1e-3", ["one value", "++sweep.space={train.base_lr:{choice:[1e-4,1e-3]}}"]),
        ("a(b", ["a(b", "key=value"]),
    ],
)
def test_what_is_no_value_is_refused_in_a_line(refused, word, expected):
    line = refused("sweep", word)
    assert all(part in line for part in expected), line


def test_names_of_experiments_need_not_be_ascii(call, tmp_path):
    folder = tmp_path / "mine" / "conf"
    folder.mkdir(parents=True)
    source = compose.config_root() / "conf" / "digits.yaml"
    for name in ("josé", "my(exp)", "a b"):
        (folder / f"{name}.yaml").write_text(source.read_text().replace("name: digits", f"name: '{name}'"))
        status, printed, errors = call("sweep", "--config-dir", "mine", f"conf={name}", "--cfg", "job")
        assert status == 0, errors
        assert yaml.safe_load(printed)["name"] == name


def test_a_byte_that_is_no_text_is_refused():
    with pytest.raises(UserError, match="UTF-8"):
        quote_texts(["seed=\udc80"], TEXTS)
