"""Documents: every link resolves, and every command, target, key and experiment that they name exists."""

from __future__ import annotations

import dataclasses
import doctest
import importlib.util
import json
import re
import typing
from pathlib import Path

import pytest

import gebm
from pipeline.config import launcher_schema, schema
from pipeline.config.compose import experiments, searches

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks" / "RESULTS.md"])
NOTEBOOKS = sorted(ROOT.glob("docs/**/*.ipynb"))

LINK = re.compile(r"\]\((?!\w+:)([^)\s]+)\)")
FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
COMMAND = re.compile(r"\bpython -m ((?:pipeline|benchmarks)(?:\.\w+)*)|(?<![\w/.-])gebm (?=[a-z])(\w+)")
GROUPS = [field.name for field in dataclasses.fields(schema.Config) if dataclasses.is_dataclass(field.default_factory)]
KEY = re.compile(rf"(?<![\w./<])((?:{'|'.join(GROUPS)}|launch)(?:\.\w+)+)(?P<assigned>=)?")
FILE = re.compile(r"\.(?:py|md|json|jsonl|yaml|sh|safetensors|db|ipynb)$")


def code(text: str, languages: tuple[str, ...]) -> list[str]:
    """Return the blocks of code in some languages, and the code in backticks outside of blocks."""
    blocks = [match["code"] for match in FENCE.finditer(text) if match["language"] in languages]
    return blocks + INLINE.findall(FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def is_key(key: str, of: type = schema.Config) -> bool:
    """Return whether a dotted name is a key of the schema; a free dictionary may have any key."""
    name, _, rest = key.partition(".")
    hints = typing.get_type_hints(of)
    if name not in hints or not rest:
        return name in hints
    if dataclasses.is_dataclass(hints[name]):
        return is_key(rest, hints[name])
    return typing.get_origin(hints[name]) is dict


def exists(key: str) -> bool:
    group, _, name = key.partition(".")
    if group == "launch":
        return any(
            is_key(name, launcher)
            for launcher in (launcher_schema.RayJobs, launcher_schema.KubeRay, launcher_schema.Slurm)
        )
    return is_key(key)


every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@every_page
def test_links_and_images_resolve(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in LINK.findall(FENCE.sub("", text)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@every_page
def test_commands_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for part in code(text, ("sh", "bash", "text")):
        for module, verb in COMMAND.findall(part):
            assert importlib.util.find_spec(module or f"pipeline.{verb}"), part
        for script in re.findall(r"\bpython ((?:tools|docs|benchmarks)/\S+\.py)", part):
            assert (ROOT / script).exists(), part


@every_page
def test_targets_of_make_exist(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for part in code(page.read_text(encoding="utf-8"), ("sh",)):
        for target in re.findall(r"^\s*make ([a-z-]+)", part, re.MULTILINE):
            assert target in targets, part


@every_page
def test_keys_and_names_exist(page: Path) -> None:
    """In commands, YAML and backticks; attributes of Python objects, as on the tutorial's page, are no keys."""
    # The changelog names old keys, in the table of what was renamed.
    text = re.sub(r"\| `[\w.]+` \|(?= `)", "|", page.read_text(encoding="utf-8"))
    for part in code(text, ("sh", "yaml")):
        for match in KEY.finditer(part):
            is_attribute = page.name == "tutorial.md" or page.parent.name == "reference"
            if (match["assigned"] or not is_attribute) and not FILE.search(match[1]):
                assert exists(match[1]), f"{match[1]} in: {part}"
        assert set(re.findall(r"(?<![\w.-])conf=(\w+)", part)) <= set(experiments()), part
        assert set(re.findall(r"(?<![\w.-])sweeps=(\w+)", part)) <= set(searches()), part


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_imports_of_notebooks_exist(notebook: Path) -> None:
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for module in re.findall(r"^(?:from|import) ((?:gebm|pipeline)[\w.]*)", "".join(cell["source"]), re.MULTILINE):
            assert importlib.util.find_spec(module), module


def test_every_module_of_gebm_is_in_the_reference() -> None:
    described = set()
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        described |= set(re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE))
    folder = Path(gebm.__file__).parent
    for path in folder.rglob("*.py"):
        module = ".".join(["gebm", *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__")
        # The page of the package itself is generated.
        assert module == "gebm" or module in described, module
        assert importlib.util.find_spec(module)
    assert all(importlib.util.find_spec(module) for module in described)


@pytest.mark.parametrize("tool", ["site_hooks", "docstring_markup"])
def test_examples_of_the_tools_that_build_the_site(tool: str) -> None:
    spec = importlib.util.spec_from_file_location(tool, ROOT / "tools" / f"{tool}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    results = doctest.testmod(module)
    assert results.attempted and not results.failed


def test_the_table_of_networks_has_the_tasks_and_resolutions_of_each() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    section = text.partition("\n## Networks\n")[2].partition("\n## ")[0]
    table = {}
    for line in section.splitlines():
        if line.startswith("| `") and not line.startswith("| `model.networks`"):
            names, tasks, sizes, _ = line.strip("| ").split(" | ")
            facts = (tuple(INLINE.findall(tasks)), tuple(map(int, re.findall(r"\d+", sizes))))
            table |= dict.fromkeys(INLINE.findall(names), facts)
    builtin = [part for part in gebm.networks.NAMES.parts() if part.builtin]
    assert table == {part.name: (part.facts["tasks"], part.facts["resolutions"]) for part in builtin}


def test_the_table_of_samplers_has_each_kernel() -> None:
    text = (ROOT / "docs" / "sampling.md").read_text(encoding="utf-8")
    section = text.partition("| `sampler.name` | kernel |\n")[2].partition("\n\n")[0]
    names = [INLINE.findall(line)[0] for line in section.splitlines()[1:]]
    assert sorted(names) == sorted(part.name for part in gebm.samplers.NAMES.parts() if part.builtin)


def test_what_is_checked_here_is_found() -> None:
    """A wrong key, command or link is seen: the expressions above match what they are meant for."""
    assert not exists("data.hold") and not exists("sweep.points") and exists("train.final_phase.patience")
    assert exists("launch.env.NAME") and not exists("launch.imagee")
    assert KEY.findall("data.hold=true results/data.json") == [("data.hold", "=")]
    assert COMMAND.findall("python -m pipeline.swep conf=x; gebm sample") == [("pipeline.swep", ""), ("", "sample")]
    assert LINK.findall("![a](images/b.png), [c](d.md#e), [f](https://g.example)") == ["images/b.png", "d.md#e"]
    assert anchors("## Does it beat the GAN?\n```sh\n# none\n```\n") == {"does-it-beat-the-gan"}
