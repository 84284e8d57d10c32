"""Digest of a part's code: another where the code is another, and the same wherever else it lies."""

from __future__ import annotations

import importlib
import shutil
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gebm.registry import load_source
from pipeline.runtime.part_code import code_digest

PACKAGE = {
    "gebm_code/__init__.py": "",
    "gebm_code/parts.py": "from gebm_code.deep import f",
    "gebm_code/deep/__init__.py": "f = 1",
}


@pytest.fixture
def modules(monkeypatch):
    """Modules that are imported in the test are forgotten after it."""
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


def digest_in(folder, files, monkeypatch, module="gebm_code.parts"):
    for name in [name for name in sys.modules if name.partition(".")[0] == "gebm_code"]:
        del sys.modules[name]
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(folder)
        importlib.import_module(module)
        return code_digest(module)


@pytest.mark.parametrize("changed", [*PACKAGE, "gebm_code/deep/helper.py"])
def test_any_file_of_the_package_is_code_of_the_part(tmp_path, monkeypatch, modules, changed):
    before = digest_in(tmp_path / "a", PACKAGE, monkeypatch)
    assert (
        len(before) == 64
        and digest_in(tmp_path / "b", PACKAGE | {"other.py": "", "gebm_code/data.txt": "1"}, monkeypatch) == before
    )
    assert digest_in(tmp_path / "c", PACKAGE | {changed: "f = 2"}, monkeypatch) != before
    renamed = {name.replace("deep", "deeper"): text.replace("deep", "deeper") for name, text in PACKAGE.items()}
    assert digest_in(tmp_path / "d", renamed, monkeypatch) != before


def test_a_module_alone_is_its_file_and_one_without_a_file_is_nothing(tmp_path, monkeypatch, modules):
    one, other = (
        digest_in(tmp_path / text, {"gebm_code.py": text, "beside.py": text}, monkeypatch, "gebm_code")
        for text in ("1", "2")
    )
    assert one != other and code_digest("sys") == code_digest("never_imported") == ""


@given(
    st.lists(
        st.text("ab=1\n# é", max_size=6).map("# {}".format).filter(lambda text: "\n" not in text),
        unique=True,
        max_size=4,
    )
)
def test_a_file_is_its_text(texts):
    names = [f"gebm_code_{index}" for index, _ in enumerate(texts)]
    try:
        for name, text in zip(names, texts, strict=True):
            load_source(text, f"/nowhere/{name}.py", name)
        assert len({code_digest(name) for name in names}) == len(texts)
    finally:
        for name in names:
            sys.modules.pop(name, None)
