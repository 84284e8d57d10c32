"""Sweep's plan: the complete config, its data and its first trials, before anything is started."""

from __future__ import annotations

import dataclasses
import re
import shlex
import time
from operator import attrgetter
from pathlib import Path
from typing import Any

import fsspec

from gebm import networks
from pipeline import config as schema
from pipeline import tasks
from pipeline.config import invocation, plugins
from pipeline.config.compose import format_overrides
from pipeline.config.networks import is_weights
from pipeline.config.own_choices import DATA_KEYS, RESUME_KEYS, choose, is_own, load_kept_plugins, own_overrides
from pipeline.config.sampler_search import check_sampler_search, is_sampler_search
from pipeline.config.validation import validate
from pipeline.data import Store
from pipeline.runtime.errors import UserError, one_line
from pipeline.runtime.filesystem import filesystem, refuse_links, require_writable
from pipeline.runtime.untrusted import CONFIG, InvalidDocument, parse_yaml, read_bytes
from pipeline.runtime.user_folders import default_tracker
from pipeline.sweep.cluster import RAY_STORAGE
from pipeline.sweep.points import check_count, plan_trials
from pipeline.sweep.search_space import SearchSpace, is_searchable, parse_space
from pipeline.tasks.open_store import ensure_store
from pipeline.tracking.locations import CONFIG_FILE, imported_start, is_imported_start
from pipeline.tracking.summary import TERMINAL_STATUSES, TrialRecord, read_summary
from pipeline.training.build_model import build_model, trained_config
from pipeline.training.checkpoint_format import load_state
from pipeline.training.checkpoints import read
from pipeline.training.import_weights import ImportedPair, forget_files, read_pair

__all__ = ["SweepPlan", "load_sweep", "require_unchanged", "resolve"]


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """A sweep that can be started.

    Attributes:
        config: The experiment, with absolute paths, an output folder and a tracker.
        space: Search space; empty for a single run.
        store: Training data.
        trials: Trials of the sweep that is resumed, followed by those that are known in advance.
        overrides: Keys of this command line and of those before it, as text.
        artifacts: Where a new MLflow experiment keeps its artifacts; None where the tracker decides.
        experiment: Fields of the summary that name the experiment's file; see
            :meth:`pipeline.config.invocation.Invocation.facts`.
        summary: Summary of the sweep that is resumed, as it was read; empty for a new one.
        notes: Lines for the user.
        imported: Trained pair that the trials start from, which is not in the folder yet; None without one.
    """

    config: schema.Config
    space: SearchSpace
    store: Store
    trials: list[TrialRecord]
    overrides: str
    artifacts: str | None = None
    experiment: dict[str, str] = dataclasses.field(default_factory=dict)
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    imported: ImportedPair | None = None

    @property
    def run_id(self) -> str | None:
        """MLflow run of the sweep that is resumed, or None."""
        return self.summary.get("mlflow_run_id")

    @property
    def output(self) -> str:
        """Folder of the results."""
        return str(self.config.output)


def resolve(config: schema.Config, overrides: dict[str, Any]) -> SweepPlan:
    """Return the plan of a sweep from what the command line says.

    Args:
        config: The experiment; with ``resume`` set, it is read from that folder.
        overrides: Keys of the command line, which apply to a resumed sweep as well.

    Raises:
        UserError: A value is not valid, the data are missing, or the output folder cannot be used.
    """
    resuming = bool(config.resume)
    trials: list[TrialRecord] = []
    summary: dict[str, Any] = {}
    imported = _import_pair(config)
    if resuming:
        config, trials, summary = _resumed_config(config, overrides)
    elif config.checkpoint:
        config = _checkpoint_config(config, overrides)
    validate(config)
    space = parse_space(config)
    if imported and (sized := [key for key in space if key.startswith("model.")]):
        raise UserError(f"sweep.space: {sized[0]} cannot be searched with model.base, whose weights have their sizes")
    if is_sampler_search(config):
        check_sampler_search(config)
        # Nothing is trained: the imported model is sampled.
        config.train.base_steps = 0 if imported else config.train.base_steps
    check_count(config, space)
    trials, notes = plan_trials(config, space, trials)
    if config.evaluation.weights:
        # Workers have working directories of their own.
        config.evaluation.weights = _absolute(config.evaluation.weights)
    store = ensure_store(config)
    if imported:
        imported.require_classes(store)
    _check_batches(config, space, store)
    config.data.store = store.url
    config.output, config.tracking.uri, artifacts = _resolve_output(config, resuming=resuming)
    if imported:
        forget_files(config)
        config.checkpoint = imported_start(config.output)
    earlier = map(shlex.quote, own_overrides(str(summary.get("named", "")), str(config.output)))
    text = " ".join([*earlier, *format_overrides(overrides)])
    chosen = invocation.current().facts(config.name)
    if resuming:
        known = summary if is_own(str(config.output)) else {}
        chosen = {key: value for key in ("conf", "config_dir") if isinstance(value := known.get(key), str)}
    return SweepPlan(config, space, store, trials, text, artifacts, chosen, summary, (*space.notes, *notes), imported)


def _import_pair(config: schema.Config) -> ImportedPair | None:
    """Read the trained pair that a command names; ``None`` where it names none.

    Raises:
        UserError: It cannot be read or does not fit, or the command names another start, or none where it has to.
    """
    base, others = config.model.base, {"resume": config.resume, "checkpoint": config.checkpoint}
    start = next((f"{key}={value}" for key, value in others.items() if value), None)
    if base is None:
        if is_weights(config.model.energy) or (start is None and _needs_weights(config)):
            named = "model.energy" if is_weights(config.model.energy) else "model.networks"
            value = attrgetter(named)(config)
            raise UserError(f"{named}={value} comes without model.base: add the weights of a trained generator")
        return None
    if start is not None:
        raise UserError(f"model.base={base}: {start} has its weights already; leave out one of the two")
    return read_pair(config)


def _needs_weights(config: schema.Config) -> bool:
    return config.model.networks in networks.NAMES and networks.needs_weights(config.model.networks)


def require_unchanged(plan: SweepPlan) -> None:
    """Check, once the folder is locked, that its sweep is still the one that the plan was made from.

    Args:
        plan: The plan, which was made before.

    Raises:
        UserError: Another driver has written there in between.
    """
    files, path = filesystem(plan.output)
    files.invalidate_cache(path)
    present = read_summary(plan.output, plan.config.checkpoint)[0] if files.exists(f"{path}/summary.json") else {}
    if present != plan.summary:
        raise UserError(f"another sweep has just ended in {plan.output}: run the command again")


def _check_batches(config: schema.Config, space: SearchSpace, store: Store) -> None:
    """Refuse a search over batch sizes the largest of which the store cannot fill."""
    if "train.batch_size" not in space:
        return
    largest = max(space["train.batch_size"].extremes)
    try:
        tasks.make(schema.apply(config, {"train.batch_size": largest})).check(store)
    except UserError as error:
        raise UserError(f"sweep.space: {error}") from None


def load_sweep(folder: str, start: str | None = None) -> tuple[schema.Config, list[TrialRecord], dict[str, Any]]:
    """Return the config, the trials and the summary of an interrupted sweep.

    Args:
        folder: The sweep's folder, behind any fsspec URL.
        start: Model that the user says the sweep was started from; see :func:`read_summary`.

    Raises:
        UserError: The folder holds no sweep, or one of its files is damaged or a link.
    """
    folder = _absolute(folder)
    refuse_links(folder, skip=(RAY_STORAGE,))
    summary, trials = read_summary(folder, start)
    files, path = fsspec.url_to_fs(folder)
    try:
        config = schema.from_saved(parse_yaml(read_bytes(files, f"{path}/{CONFIG_FILE}", CONFIG), CONFIG))
    except FileNotFoundError:
        raise UserError(f"{folder}/{CONFIG_FILE} is missing") from None
    except InvalidDocument as error:
        raise UserError(f"{folder}/{CONFIG_FILE} cannot be read: {error}") from None
    plugins.require_parts(config, folder)
    config.output = folder
    if is_imported_start(config.checkpoint or ""):
        config.checkpoint = imported_start(folder)
    for trial in trials:
        if foreign := [key for key in trial.params if not is_searchable(key)]:
            raise UserError(f"{folder}/summary.json is damaged: trial {trial.name} sets {foreign[0]!r}")
        trial.status = trial.status if trial.status in TERMINAL_STATUSES else "pending"
    return config, trials, summary


def _resumed_config(
    config: schema.Config, overrides: dict[str, Any]
) -> tuple[schema.Config, list[TrialRecord], dict[str, Any]]:
    """Return the sweep that ``resume`` names, with the overrides of this command applied to its config."""
    # As in a new sweep: one checkpoint, whatever a trial's folder has later, and the same for all workers.
    load_kept_plugins(_absolute(str(config.resume)))
    start = read(_absolute(str(overrides["checkpoint"]))).url if overrides.get("checkpoint") else None
    saved, trials, summary = load_sweep(str(config.resume), start)
    folder = str(saved.output)
    # The imported model in the folder itself needs no choice by the user.
    start = start or (saved.checkpoint if saved.checkpoint == imported_start(folder) else None)
    overrides = overrides | ({"checkpoint": start} if start else {})
    saved = schema.apply(saved, {key: value for key, value in overrides.items() if key not in ("resume", "output")})
    choose(saved, overrides, folder, RESUME_KEYS)
    # The event log is that of this command, not that of the command which began the sweep.
    saved.output, saved.log, saved.resume = folder, config.log, None
    return saved, trials, summary


def _checkpoint_config(config: schema.Config, overrides: dict[str, Any]) -> schema.Config:
    """Return the config of the trained model to start from, with this command's search and overrides."""
    config.checkpoint = _absolute(str(config.checkpoint))
    checkpoint = read(config.checkpoint)
    load_kept_plugins(config.checkpoint)
    trained = trained_config(checkpoint)
    # The experiment is the model's own. One that is named all the same, and is about something else, is a mistake.
    chosen = invocation.current()
    if config.task != trained.task and (chosen.names_conf or "task" in overrides):
        named = f"task={config.task}" if "task" in overrides else f"conf={chosen.conf}, which is about {config.task},"
        raise UserError(
            f"{named} does not go with the model in {config.checkpoint}, which is about {trained.task}: leave it out, "
            "since the experiment is that of the model, or give another checkpoint"
        )
    choose(trained, overrides, config.checkpoint, (*DATA_KEYS, "evaluation.weights"))
    space = config.sweep.space
    if space == config.spaces.get("sampler") and "sweep.space" not in overrides:
        # The default space is that of the experiment in which the model was trained.
        space = trained.spaces.get("sampler", space)
    # How to search is the command's, and by what to rank is that of the model's experiment.
    sweep = dataclasses.replace(config.sweep, space=space, metric=trained.sweep.metric, mode=trained.sweep.mode)
    config = dataclasses.replace(
        trained,
        scale=config.scale,
        ray=config.ray,
        tracking=config.tracking,
        output=config.output,
        resume=config.resume,
        log=config.log,
        sweep=sweep,
        checkpoint=checkpoint.url,
    )
    applied_elsewhere = ("checkpoint", "output", "resume")
    config = schema.apply(config, {key: value for key, value in overrides.items() if key not in applied_elsewhere})
    load_state(build_model(config, checkpoint.classes), checkpoint)
    if is_sampler_search(config):
        # The model is trained already, and a trial only samples.
        config.train.base_steps = checkpoint.state["base_step"]
    return config


def _resolve_output(config: schema.Config, *, resuming: bool) -> tuple[str, str, str | None]:
    """Return the output folder, the tracker's URI, and where a new MLflow experiment keeps artifacts, or None."""
    default = Path("results").absolute()
    # A checkpoint's experiment may have any name.
    name = re.sub(r"[^\w.-]+", "-", config.name)
    output = _absolute(config.output or str(default / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"))
    files, path = filesystem(output)
    try:
        if not resuming and files.exists(f"{path}/summary.json"):
            raise UserError(f"{output} already holds a sweep: use resume={output}, or choose another output")
    except UserError:
        raise
    # Each file system has exceptions of its own.
    except Exception as error:
        raise UserError(f"cannot write to output={output} ({one_line(error)}): choose another output") from None
    # A folder that is resumed was looked through when it was read.
    if not resuming:
        refuse_links(output, skip=(RAY_STORAGE,))
    require_writable(output)
    if config.tracking.uri:
        return output, config.tracking.uri, None
    require_writable(str(default), "tracking.uri")
    return output, default_tracker(), (default / "artifacts").as_uri()


def _absolute(url: str) -> str:
    # Without a trailing slash: to an object store "x/" + "/y" is another key than "x" + "/y".
    return url.rstrip("/") if "://" in url else str(Path(url).expanduser().absolute())
