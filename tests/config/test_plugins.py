"""A user's own code: named by whoever types the command and by nobody else, and refused by file and line."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch

from gebm import networks, samplers
from pipeline import config as schema
from pipeline.config import from_dict, plugins
from pipeline.config.arguments import quote_texts
from pipeline.config.command import command
from pipeline.config.network_shapes import build_shapes
from pipeline.config.own_choices import choose, keep_choices, load_kept_plugins, own_overrides
from pipeline.config.validation import validate
from pipeline.runtime.errors import UserError
from pipeline.submit import job
from pipeline.submit.bundle import JobBundle
from pipeline.training.build_model import build_model, load_model, make_trainer
from pipeline.training.checkpoints import Checkpoints
from tests.helpers.plugins import NETWORKS, SAMPLER, forget, no_plugins

__all__ = ["no_plugins"]

pytestmark = pytest.mark.usefixtures("no_plugins")


def config(**groups) -> schema.Config:
    base = {"name": "x", "data": {"store": "s", "resolution": 8, "channels": 1, "source": {"kind": "digits"}}}
    return from_dict({**base, **{"model": {"networks": "dcgan", "latent_dim": 4, "width": 4}}, **groups})


PLAIN = {"networks": "plain", "latent_dim": 4, "settings": {"depth": 2}}


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(NETWORKS + SAMPLER)
    return str(path)


def test_a_plugin_is_a_file_or_a_module_from_the_command_line_the_environment_or_a_package(
    tmp_path, monkeypatch, plugin
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("one", "two", "three"):
        (tmp_path / f"gebm_test_{name}.py").write_text(
            f"import gebm\ngebm.samplers.register('{name}')(gebm.samplers.MALA)"
        )
        monkeypatch.delitem(sys.modules, f"gebm_test_{name}", raising=False)
    monkeypatch.setenv("GEBM_PLUGINS", f"gebm_test_two{os.pathsep}gebm_test_one.py, sha256={'0' * 64}")
    entry = SimpleNamespace(module="gebm_test_three")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry] if group == "gebm.plugins" else [])
    expected = [plugin, "gebm_test_two", str(tmp_path / "gebm_test_one.py"), "gebm_test_three"]
    assert plugins.load(["./mine.py"]) == expected
    assert plugins.load(["mine.py", plugin]) == expected
    assert {"plain", "scaled", "one", "two", "three"} <= {*networks.NAMES, *samplers.NAMES}


BROKEN = [
    ("x = (", "mine.py:1: SyntaxError"),
    ("import os\n\nraise KeyError('a\\nb')", "mine.py:3: KeyError"),
    ("import torch\ntorch.zeros(2).view(3)", "mine.py:2: RuntimeError"),
    ("import sys\nsys.exit(0)", "mine.py:2: SystemExit"),
    ("import nothing_like_it", "mine.py:1: ModuleNotFoundError"),
    (
        "import gebm\n\n@gebm.networks.register('dcgan')\ndef f(): ...",
        "mine.py:3: ValueError: there is a network called",
    ),
    ("import gebm\n@gebm.samplers.register('a')\ndef f(x): ...", "mine.py:2: ValueError: sampler 'a': its parameter x"),
    ("import gebm\ngebm.samplers.register('a')(gebm.samplers.MALA)\nopen('/none/at/all')", "mine.py:3: FileNotFound"),
    ("import gebm\n@gebm.networks.register('a', tasks='points')\ndef f(): ...", "has to be a tuple"),
    ("import gebm\ngebm.samplers.register('a')(3)", "mine.py:2: ValueError: sampler 'a': a class or a function"),
    ("exit()", "mine.py:1: SystemExit"),
    ("\0", "null bytes"),
    ("class E(BaseException): ...\nraise E('own')", "mine.py:2: E: own"),
    ("raise GeneratorExit", "mine.py:1: GeneratorExit"),
    (
        "import gebm\n@gebm.samplers.register('a')\ndef f(x: int = 'b'): ...",
        "mine.py:2: ValueError: sampler 'a': its parameter x has the default 'b', which is no int",
    ),
    ("raise ExceptionGroup('two', [ValueError('b')])", "mine.py:1: ExceptionGroup: two"),
    ("\xff", "mine.py: it is not a text in UTF-8"),
    ("#" * (1 << 20) + "#", "has more than 1 MiB"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_a_plugin_that_cannot_be_loaded_is_one_line_with_its_file_and_line(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as refusal:
        plugins.load([str(path)])
    assert message in str(refusal.value) and "\n" not in str(refusal.value)
    assert plugins.names() == [] and "a" not in samplers.NAMES


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./none.py", "No such file"),
        ("s3://bucket/mine.py", "a plugin is a file"),
        ("mine.txt/", "a plugin is a file"),
        ("nothing.like.it", "No module named"),
        (".", "a plugin is a file"),
        ("", "a plugin is a file"),
        (["a"], "a plugin is a file"),
        ("folder", "it is a path, and no module; name a file in it, as ./folder/mine.py"),
        ("./folder.py", "it is a folder or a device"),
        ("./pipe.py", "it is a folder or a device"),
        ("~nobody-like-this/mine.py", "No such file"),
        ("/dev/null", "a plugin is a file"),
    ],
)
def test_what_is_no_plugin_is_refused(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.py")
    for folder in ("folder", "folder.py"):
        os.mkdir(folder)
    with pytest.raises(UserError, match=message) as refusal:
        plugins.load([name])
    assert "\n" not in str(refusal.value)


def test_a_file_is_one_plugin_however_it_is_spelled_and_two_of_one_name_are_two(tmp_path, monkeypatch, capsys):
    """Whatever they print is no result of the command, and a mended one can be loaded again."""
    monkeypatch.chdir(tmp_path)
    for folder, name in (("a b", "first"), ("c", "second")):
        (tmp_path / folder).mkdir()
        text = f"\ufeffimport gebm\nprint('hello')\ngebm.samplers.register('{name}')(gebm.samplers.MALA)\n"
        (tmp_path / folder / "mine.py").write_text(text)
    one, other = str(tmp_path / "a b" / "mine.py"), str(tmp_path / "c" / "mine.py")
    assert plugins.load(["./a b/mine.py", one, "a b/../a b/mine.py", "c/mine.py"]) == [one, other]
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "hello\nhello\n") and {"first", "second"} < set(samplers.NAMES)
    (tmp_path / "half.py").write_text("import gebm\ngebm.samplers.register('half')(gebm.samplers.MALA)\n1 / 0\n")
    with pytest.raises(UserError, match=r"half\.py:3: ZeroDivisionError"):
        plugins.load(["half.py"])
    assert "half" not in samplers.NAMES
    # What a command relies on is as it was.
    text = "import os, torch\nos.chdir('/')\ntorch.set_default_dtype(torch.float64)\ntorch.manual_seed(7)\n"
    (tmp_path / "changing.py").write_text(text)
    before = torch.get_rng_state()
    plugins.load(["changing.py"])
    assert (os.getcwd(), torch.get_default_dtype()) == (str(tmp_path), torch.float32)
    assert torch.equal(before, torch.get_rng_state())
    (tmp_path / "half.py").write_text("import gebm\ngebm.samplers.register('half')(gebm.samplers.MALA)\n")
    assert plugins.load(["half.py"])[-1] == str(tmp_path / "half.py")
    monkeypatch.chdir(tmp_path / "c")
    with pytest.raises(UserError, match=f"{tmp_path}/c/half.py: No such file"):
        plugins.load(["./half.py"])


@pytest.mark.parametrize(
    ("typed", "shown"),
    [("./mine.py", "'plugins=[./mine.py]'"), ("null", "'plugins=[./mine.py]'"), ("{a:b}", "'plugins=[./mine.py]'")],
)
def test_plugins_are_a_list(typed, shown):
    with pytest.raises(UserError, match="plugins are a list") as refusal:
        quote_texts([f"plugins={typed}"], frozenset())
    assert str(refusal.value).endswith(f"write {shown}")


def test_a_command_loads_what_it_is_told_to_before_it_reads_its_keys(plugin, monkeypatch, capsys):
    seen = {}

    @command("Do it.", ["python -m pipeline.it"])
    def main(config, overrides):
        seen.update(config=config, overrides=overrides)
        return 0

    words = [f"plugins=[{plugin}]", "model.networks=plain", "model.settings.depth=3", "sampler.settings.gamma=2"]
    monkeypatch.setattr(sys, "argv", ["it", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code, capsys.readouterr().err) == (0, "")
    assert seen["config"].model.settings == {"depth": 3} and seen["config"].plugins == [plugin]
    assert seen["config"].sampler.settings == {"gamma": 2.0} and seen["overrides"]["plugins"] == [plugin]
    monkeypatch.setattr(sys, "argv", ["it", "plugins=[/none/mine.py]"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert (
        capsys.readouterr().err == "error: plugins: /none/mine.py: No such file or directory; give the path of a file\n"
    )


@pytest.mark.parametrize("kind", ["file", "package"])
def test_what_a_plugin_raises_while_a_command_runs_is_one_line_with_its_file_and_line(
    tmp_path, monkeypatch, capsys, kind
):
    folder = tmp_path / "gebm_test_raising"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    path = folder / "parts.py"
    path.write_text("import torch\n\n\ndef check(store):\n    return torch.zeros(2).view(store)\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    @command("Do it.", ["python -m pipeline.it"])
    def main(config, overrides):
        [module] = [sys.modules[name] for name in set(sys.modules) - before if hasattr(sys.modules[name], "check")]
        return module.check(3) if "seed" in overrides else 1 // 0

    typed = str(path) if kind == "file" else "gebm_test_raising.parts"
    monkeypatch.setattr(sys, "argv", ["it", f"plugins=[{typed}]", "seed=1"])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr().err
    assert end.value.code == 2 and printed.startswith(f"error: {path}:5: RuntimeError: ") and printed.count("\n") == 1
    # What this project raises is a fault of its own.
    monkeypatch.setattr(sys, "argv", ["it", f"plugins=[{typed}]"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1 and "Traceback" in capsys.readouterr().err
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_another_process_has_the_same_parts_without_the_file(plugin, tmp_path):
    plugins.load([plugin])
    sent = json.loads(json.dumps(plugins.sources()))
    os.remove(plugin)
    with pytest.MonkeyPatch.context() as patch:
        forget(patch)
        assert "plain" not in networks.NAMES
        plugins.install(sent)
        plugins.install(sent)
        assert plugins.names() == [plugin] and build_model(config(model=PLAIN)).energy.network[1].in_features == 64
        # What the user has named here before is what came with the job.
        assert plugins.load([plugin]) == [plugin]


def test_a_job_on_a_cluster_comes_with_its_plugins(plugin, monkeypatch):
    plugins.load([plugin])
    bundle = JobBundle("x", config(model=PLAIN), {}, 1, 1.0)
    values = json.loads(json.dumps(bundle.values()))
    ran = {}
    monkeypatch.setattr(job, "wait_for_nodes", lambda *_: None)
    monkeypatch.setattr(job, "_holds_sweep", lambda _: False)
    monkeypatch.setattr(job.driver, "exit_status", lambda config, overrides, command: ran.update(config=config) or 0)
    with pytest.MonkeyPatch.context() as patch:
        forget(patch)
        assert job.run(values) == 0
        assert ran["config"].model.settings == {"depth": 2} and "plain" in networks.NAMES


INNER = """
from typing import Annotated

import gebm


@gebm.samplers.register("outer")
def outer(step_size: float, *, kernel: Annotated[str, gebm.Limits(choices=("scaled", "mala"))] = "mala"):
    return gebm.samplers.make(kernel, step_size=step_size)
"""
OUTER = {"name": "outer", "settings": {"kernel": "scaled"}}


@pytest.mark.parametrize(
    ("groups", "needed"),
    [
        ({"model": PLAIN}, ["nets"]),
        ({"model": {"networks": "imported", "latent_dim": 4, "energy": "plain"}}, ["nets"]),
        ({"model": {"networks": "imported", "latent_dim": 4, "energy": "D.pth"}}, []),
        ({"sampler": {"name": "scaled"}}, ["kernels"]),
        ({"sampler": {"name": "outer"}}, ["more"]),
        ({"sampler": OUTER}, ["kernels", "more"]),
        ({"sampler": OUTER, "model": PLAIN}, ["nets", "kernels", "more"]),
        ({}, []),
    ],
)
@pytest.mark.parametrize("how", ["files", "packages", "neighbors"])
def test_a_model_needs_the_plugins_of_its_networks_and_kernels_whichever_module_registers_them(
    tmp_path, monkeypatch, how, groups, needed
):
    """A plugin may be a file, a package whose inner module registers, or a module that imports one beside it."""
    texts = {"nets": NETWORKS, "kernels": SAMPLER, "more": INNER}
    typed = {}
    for name, text in texts.items():
        if how == "files":
            (tmp_path / f"{name}.py").write_text(text)
            typed[name] = str(tmp_path / f"{name}.py")
            continue
        folder = tmp_path / f"gebm_test_{name}"
        folder.mkdir()
        (folder / "parts.py").write_text(text)
        importing = f"import gebm_test_{name}.parts"
        (folder / "__init__.py").write_text(importing if how == "packages" else "")
        (folder / "front.py").write_text(importing)
        typed[name] = folder.name if how == "packages" else f"{folder.name}.front"
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    try:
        plugins.load(typed.values())
        assert [entry["name"] for entry in plugins.sources_of(config(**groups))] == [typed[name] for name in needed]
        # A folder with such a part is refused where no plugin has it.
        saved = config(**groups, plugins=plugins.names())
        plugins.require_parts(saved, "there")
        with pytest.MonkeyPatch.context() as patch:
            forget(patch)
            with pytest.raises(UserError, match="there needs ") if needed else contextlib.nullcontext():
                plugins.require_parts(saved, "there")
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]


def test_a_folder_names_no_plugin_and_the_user_names_it_again_or_has_named_it_here(plugin, tmp_path):
    stranger = tmp_path / "stranger.py"
    stranger.write_text("raise AssertionError('it was run')")
    saved = config(plugins=[str(stranger)])
    choose(saved, {}, str(tmp_path / "sweep"), ())
    assert saved.plugins == []
    assert own_overrides(f"plugins=[{stranger}] train.base_steps=4", str(tmp_path / "sweep")) == ["train.base_steps=4"]
    load_kept_plugins(str(tmp_path / "sweep"))
    assert plugins.names() == []
    plugins.load([plugin])
    keep_choices(str(tmp_path / "sweep"), config(model=PLAIN, plugins=plugins.names()))
    with pytest.MonkeyPatch.context() as patch:
        forget(patch)
        load_kept_plugins(str(tmp_path / "sweep" / "trials" / "000"))
        assert plugins.names() == [plugin]


def test_a_checkpoint_says_which_plugin_it_was_made_with_and_never_loads_it(plugin, tmp_path):
    plugins.load([plugin])
    values = config(model=PLAIN, plugins=plugins.names())
    model = build_model(values)
    training = {"trainer": make_trainer(model, values, torch.device("cpu")).state_dict(), "plateau": {}}
    state = {"config": schema.to_dict(values), "report": {"base_step": 1}, "lr_scale": 1.0}
    url = Checkpoints(str(tmp_path / "trial")).save(
        1, model=model.state_dict(), training=training, state=state, score=1
    )
    with pytest.MonkeyPatch.context() as patch:
        forget(patch)
        with pytest.raises(UserError) as refusal:
            load_model(url, {})
        text = str(refusal.value)
        assert "needs model.networks=plain" in text and f"add 'plugins=[{plugin}]'" in text and "\n" not in text
        assert plugins.names() == []
        plugins.load([plugin])
        loaded, trained, *_ = load_model(url, {})
        assert trained.model.settings == {"depth": 2} and trained.plugins == [plugin]
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


THEN = """

class Then(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)
"""
SHAPES = [
    ("nn.Unflatten(1, shape)", "nn.Identity()", r"its base maps latents \(2, 4\) to \(2, 64\), and has to map them to"),
    ("nn.Linear(size, 1)", "nn.Linear(size, 2)", r"its energy maps samples \(2, 1, 8, 8\) to \(2, 2\)"),
    ("nn.Linear(size, 1)", "nn.Linear(5, 1)", "RuntimeError"),
    ("return base, ", "return base, 1, ", "it returns tuple, and has to return a base and an energy"),
    ("nn.Linear(size, 1))", "nn.Linear(size, 1), Then(lambda x: x.long()))", "its energy returns torch.int64"),
    ("nn.Linear(size, 1))", "nn.Linear(size, 1), Then(lambda x: x * 1j))", "its energy returns torch.complex64"),
    ("nn.Linear(size, 1))", "nn.Linear(size, 1), Then(lambda x: x.detach()))", "its energy has no gradient"),
    ("nn.Linear(latent_dim, size)", "Then(lambda z: z.repeat(1, size // 4))", "its base has no parameters"),
    ("size = channels", "size = 1 / 0 * channels", r"mine.py:17: plain: ZeroDivisionError"),
    ("size = channels", "size = {}['of'] * channels", r"mine.py:17: plain: KeyError"),
    ("size = channels", "size = iter(()).__next__() * channels", r"mine.py:17: plain: StopIteration"),
    ("depth - 1", "[][depth]", r"mine.py:18: plain: IndexError"),
]


@pytest.mark.parametrize(("old", "new", "message"), SHAPES, ids=[message for *_, message in SHAPES])
def test_networks_of_another_shape_are_refused_before_anything_starts(tmp_path, old, new, message):
    path = tmp_path / "mine.py"
    path.write_text(NETWORKS.replace(old, new) + THEN)
    plugins.load([str(path)])
    with pytest.raises(UserError, match=message) as refusal:
        validate(config(model=PLAIN))
    assert f"{path}:" in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "size",
    [
        "int(torch.tensor(channels).item())",
        "{'cpu': channels}[str(torch.zeros(1).device)]",
        "len(torch.ones(channels).tolist())",
    ],
)
def test_networks_that_cannot_be_built_without_memory_are_built_with_it(tmp_path, size):
    path = tmp_path / "mine.py"
    path.write_text("import torch\n" + NETWORKS.replace("size = channels", f"size = {size}"))
    plugins.load([str(path)])
    validate(config(model=PLAIN))
    assert [len(half.state_dict()) for half in build_shapes(config(model=PLAIN))] == [2, 4]


def test_an_energy_of_ones_own_for_a_generator_that_comes_is_refused_by_its_file_and_line(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(NETWORKS.replace("nn.Linear(size, 1)", "nn.Linear(size, {}['one'])"))
    plugins.load([str(path)])
    data = {"store": "s", "resolution": 32, "channels": 3, "source": {"kind": "digits"}}
    with pytest.raises(UserError, match=r"mine.py:20: plain: KeyError: 'one'"):
        validate(config(data=data, model={"networks": "imported", "base": "G.pth", "energy": "plain"}))


PROTOCOL = [
    ("state.step + 1", "state.step", "after 2 steps state.step is 0"),
    ("value, ~finite_rows", "value[:1], ~finite_rows", r"info.potential has the shape \(2, 1\)"),
    ("philox.normal(philox.draw_key(generator, state.z.device), state.chain, state.z.shape[1])",
     "torch.randn(state.z.shape)", "the same generator gives two different chains"),
    ("philox.normal(philox.draw_key(generator, state.z.device), state.chain, state.z.shape[1])",
     "torch.randn(state.z.shape, generator=generator)", "chain 1 is another one alone"),
    ("state.chain, state.step + 1", "state.chain * 0, state.step + 1", "state.chain is changed by a step"),
    ("state.gradient +", "state.gradients +", "AttributeError|TypeError"),
    ("def init", "def begin", "init"),
    ("return 1", "return None", "gradients_per_step has to be a whole number"),
    ("return GradientState(z, value", "return GradientState(z.double(), value", "state.z is torch.float64 of chains"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), PROTOCOL, ids=[message for *_, message in PROTOCOL])
def test_a_sampler_that_breaks_the_protocol_is_refused_on_two_chains(tmp_path, old, new, message):
    path = tmp_path / "mine.py"
    path.write_text(SAMPLER.replace(old, new))
    plugins.load([str(path)])
    with pytest.raises(UserError, match=message) as refusal:
        validate(config(sampler={"name": "scaled"}))
    assert f"{path}:" in str(refusal.value) and "\n" not in str(refusal.value)


def test_parts_of_ones_own_are_as_good_as_the_built_in_ones(plugin):
    plugins.load([plugin])
    values = config(model=PLAIN, sampler={"name": "scaled", "step_size": 0.1, "settings": {"gamma": 2.0}})
    state = torch.get_rng_state()
    validate(values)
    assert torch.equal(torch.get_rng_state(), state)
    # Of the same law as ULA's at twice the step, to the last bit.
    potential, z = lambda z: z.square().sum(1) / 2, torch.ones(3, 2)
    kernels = samplers.make("scaled", step_size=0.1, gamma=2.0), samplers.make("ula", step_size=0.2)
    mine, ula = (samplers.run(k, potential, z, 5, generator=torch.Generator().manual_seed(0)).z for k in kernels)
    assert torch.allclose(mine, ula)
