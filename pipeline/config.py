"""The schema of every key, and what has to hold before anything starts.

``conf/<experiment>.yaml`` says what to run and ``sweeps/<search>.yaml`` how to search; both are Hydra config groups
over the dataclasses below, so an unknown key or a wrong type is refused by name. :func:`validate` adds what a type
cannot say.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gebm import StandardNormal, networks, objectives, penalties, samplers
from gebm.relative_mmd import PlateauDecay
from gebm.samplers import StepDecay
from pipeline.errors import UserError

__all__ = [
    "CONFIG_NAME",
    "FEWEST_SAMPLES",
    "HYDRA_KEYS",
    "Config",
    "Data",
    "Evaluation",
    "LearningRateDecay",
    "Model",
    "Negatives",
    "RayCluster",
    "Sampler",
    "Scale",
    "Source",
    "Sweep",
    "Tracking",
    "Train",
    "apply",
    "config_root",
    "experiments",
    "from_dict",
    "headline",
    "searches",
    "to_dict",
    "validate",
]

CONFIG_NAME = "gebm"
HYDRA_KEYS = ("defaults", "hydra")  # what Hydra wants of a primary config besides the schema
PRECISIONS = ("auto", "float32", "bfloat16")
SEEDS = 2**31  # what torch, NumPy and Optuna all take, with room for what is added to it
# With fewer samples a metric is not defined: a covariance; two subsets of two; one sample a split; a third neighbour.
FEWEST_SAMPLES = {"fid": 2, "kid": 4, "is": 10, "prc": 4}
# The scores that each of evaluation.metrics gives, by which a sweep of images can rank its trials.
_SCORES = {"fid": ("fid",), "kid": ("kid",), "is": ("is",), "prc": ("precision", "recall")}
# What each task follows, the networks that fit it, and the encodings of its stores.
_PRIMARY = {"images": "fid", "density": "nll", "points": "distance"}
_NETWORKS = {
    "images": ("dcgan", "sngan_convnet", "sngan_resnet"),
    "density": networks.flows.FLOWS,
    "points": networks.VECTORS,
}
_CHAINS = ("ula", "mala", "hmc", "rwm")  # what moves negatives: kernels that need no prior and no friction
_EXACT = ("mala", "hmc", "rwm")  # what leaves a law at a temperature alone, as annealed importance sampling needs
LOG_PARTITIONS = ("auto", "monte_carlo", "trained", "annealed")
_ENCODINGS = {"images": ("blocks", "images"), "density": ("rows",), "points": ("rows",)}


@dataclass
class Source:
    """Where the data of a store come from, as their publishers distribute them."""

    kind: str = MISSING  # digits, lsun, cifar10, celeba, imagenet32, images; redwine, hepmass, toy and the like
    url: str | None = None  # any fsspec URL or path; not needed where the data come with a package
    split: str | None = None  # as its publisher calls it; by default everything there is


@dataclass
class Data:
    """The store, of images or of a table's rows."""

    store: str = MISSING  # a name under GEBM_STORES, a path, or any fsspec URL
    resolution: int | None = 32  # pixels; none where the data are rows
    channels: int = 3  # of an image; columns of a row, once those are dropped that max_correlation says
    encoding: str = "blocks"  # blocks (arrays, fast to read), images (one encoded image a sample), rows (of a table)
    split_seed: int | None = None  # of a table's parts; by default the seed, and a trained model keeps its own
    dequantise: bool = False  # add to each column of rows uniform noise of its own resolution
    max_correlation: float | None = None  # of two columns that correlate more strongly, one is dropped
    samples_per_shard: int = 8192
    writers: int | None = None  # processes that write a store; by default one a core
    reader_workers: int = 0  # loader processes a training worker; 0 reads in the worker itself
    source: Source = field(default_factory=Source)


@dataclass
class Model:
    """Base and energy."""

    networks: str = MISSING  # dcgan, sngan_convnet, sngan_resnet; of rows gaussian, realnvp, maf, nsf, mlp
    energy: str | None = None  # by default the family's own; mlp puts a plain network on a flow
    energy_offset: float = 0.0  # nats; of a flow's energy: minus the log-partition, which training is not told
    latent_dim: int = 100
    width: int | None = None  # channels of the narrowest layer; by default what the paper uses
    energy_floor: float | None = None  # least energy; by default -10, and none (-.inf) of an energy relative to a flow


@dataclass
class LearningRateDecay:
    """Learning rates fall when the relative MMD test says that the base has stopped improving."""

    factor: float = 0.8
    every: int = 2000  # base steps between two tests
    lag: int = 20000  # base steps between the two bases that are compared
    patience: int = 3  # failures in a row before the rates fall
    num_samples: int = 2000  # images a test


@dataclass
class Negatives:
    """The chains of contrastive divergence, in an energy step."""

    sampler: str = "ula"
    step_size: float = 1e-2
    num_steps: int = 10


@dataclass
class Train:
    """The alternation of energy steps and base steps (Algorithm 1)."""

    base_steps: int = 150_000
    energy_steps: int = 5  # energy steps a base step
    warmup_energy_steps: int = 100  # energy steps at a warm-up
    warmup_base_steps: int = 2  # the first base steps that are warm-ups
    warmup_every: int = 500  # base steps between later warm-ups
    batch_size: int = 128  # images a step, over all workers together
    latent_batch_size: int | None = None  # latents a step, over all workers; by default the batch size
    energy_lr: float = 1e-4
    base_lr: float = 1e-4
    beta1: float = 0.5
    beta2: float = 0.999
    weight_decay: float = 0.0  # L2 of the energy's weights
    objective: str = (
        "kale_fenchel"  # kale_dv, gan, hinge, wasserstein; cd, pcd; of flows ml, ml_kale, cd_data, pcd_data
    )
    negatives: Negatives = field(default_factory=Negatives)
    train_base: bool = True  # false: the energy alone learns, for example on the base of a checkpoint=...
    penalty: float | None = None  # weight of the penalty; by default 1, and 10 of wgan_gp
    penalty_kind: str = "gradient"  # at interpolates; wgan_gp, r1, r2, l2, none
    penalty_every: int = 1  # energy steps; above one the penalty is lazy, and as much heavier when it comes
    log_partition_samples: int = 1024  # base samples that initialise the log-partition; 0 starts it at zero
    ema_decay: float | None = None  # exponential moving average of the base's weights, a step
    precision: str = "auto"  # float32, bfloat16; auto takes bfloat16 on a GPU that has it
    report_every: int = 50  # base steps between two progress reports
    learning_rate_decay: LearningRateDecay = field(default_factory=LearningRateDecay)


@dataclass
class Sampler:
    """MCMC in latent space."""

    name: str = "ula"
    step_size: float = 1e-4
    num_steps: int = 1000
    beta: float = 1.0  # inverse temperature; 1 is the model itself
    friction: float = 0.1  # of the kinetic sampler
    decay: float = 1.0  # factor on the step size ...
    decay_every: int = 200  # ... every so many steps
    num_samples: int = 64  # images that `python -m pipeline.sample` draws


@dataclass
class Evaluation:
    """What is measured, and how often."""

    every: int = 5000  # base steps between two evaluations; the last step is always evaluated
    num_samples: int = 10_000  # images a FID
    batch_size: int = 500  # chains that run at once on a worker
    chain_points: int = 5  # places along the chain where FID is measured
    extractor: str = "inception-v3-compat"
    weights: str | None = None  # a file of the extractor's weights; a classifier's may be another store's
    metrics: list[str] = field(default_factory=lambda: ["fid"])  # fid, kid, is, prc
    grid: int = 64  # images in a sample grid
    # Of a density: the true one where it is known and else monte_carlo; or monte_carlo, trained (kale_fenchel's c), or
    # annealed, by importance sampling with sampler.name and sampler.step_size at so many temperatures.
    log_partition: str = "auto"
    temperatures: int = 100


@dataclass
class Scale:
    """What a trial runs on."""

    num_workers: int = 1
    use_gpu: bool | None = None  # by default, whether the cluster has GPUs
    cpus_per_worker: int = 1
    timeout: float = 1800.0  # seconds that workers wait for one another before they give up


@dataclass
class RayCluster:
    """The Ray cluster that runs it."""

    # An existing cluster ("auto", "host:6379"); by default that of RAY_ADDRESS, or else one on this machine alone.
    address: str | None = None


@dataclass
class Tracking:
    """MLflow."""

    uri: str | None = None  # any MLflow server; by default a SQLite file beside the results
    experiment: str | None = None  # by default the name of the experiment file


@dataclass
class Sweep:
    """How to search. ``sweeps/*.yaml`` fills this in."""

    search: str = "random"  # random, grid, optuna
    scheduler: str = "none"  # asha, pbt, none
    num_trials: int = 1
    points: int = 3  # values a continuous range becomes in a grid
    space: dict[str, Any] = field(default_factory=dict)  # key -> {log_uniform: [a, b]} and the like
    metric: str = "fid_gebm"
    mode: str = "min"
    grace_steps: int | None = None  # base steps before a trial may be pruned; by default a quarter
    reduction_factor: int = 3  # of the trials that reach a rung, one in so many goes on
    perturbation_steps: int | None = None  # base steps between exploits; by default a tenth
    max_concurrent: int | None = None  # trials side by side; by default what the cluster can hold


@dataclass
class Config:
    """Everything one run is told."""

    name: str = MISSING  # of the experiment
    task: str = "images"  # images (judged by FID), density (rows, by likelihood), points (rows, by their samples)
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    train: Train = field(default_factory=Train)
    sampler: Sampler = field(default_factory=Sampler)
    evaluation: Evaluation = field(default_factory=Evaluation)
    scale: Scale = field(default_factory=Scale)
    ray: RayCluster = field(default_factory=RayCluster)
    tracking: Tracking = field(default_factory=Tracking)
    sweep: Sweep = field(default_factory=Sweep)
    # What the experiment offers to search, by purpose; a file in sweeps/ picks one.
    spaces: dict[str, dict[str, Any]] = field(default_factory=dict)
    seed: int = 0
    checkpoint: str | None = None  # a trained model to start from
    output: str | None = None  # a folder or fsspec URL; by default results/<name>-<time>
    resume: str | None = None  # the folder of an interrupted run


@dataclass
class _Primary(Config):
    """The composed config: the schema, then the experiment, then the search, which may override any key."""

    defaults: list[Any] = field(
        default_factory=lambda: [
            "_self_",
            {"conf": "digits"},
            {"sweeps": "asha"},
            {"override hydra/job_logging": "none"},
            {"override hydra/hydra_logging": "none"},
        ]
    )
    # Hydra neither moves us to a folder of its own nor writes one: the results' folder is ours.
    hydra: Any = field(default_factory=lambda: {"run": {"dir": "."}, "output_subdir": None})


ConfigStore.instance().store(name=CONFIG_NAME, node=_Primary)


def config_root() -> Path:
    """The folder that holds ``conf/`` and ``sweeps/``: the checkout's top, or their copy inside an installed wheel.

    Example:
        >>> sorted(path.name for path in config_root().iterdir() if path.name in ("conf", "sweeps"))
        ['conf', 'sweeps']
    """
    installed = Path(__file__).resolve().parent / "experiments"
    return installed if installed.is_dir() else installed.parent.parent


def experiments() -> dict[str, str]:
    """Names of the experiments, each with the first comment line of its file."""
    return _first_lines(config_root() / "conf")


def searches() -> dict[str, str]:
    """Names of the searches, each with the first comment line of its file."""
    return _first_lines(config_root() / "sweeps")


def _first_lines(folder: Path) -> dict[str, str]:
    lines = {}
    for path in sorted(folder.glob("*.yaml")):
        comments = [line for line in path.read_text().splitlines() if line.startswith("# ") and "@package" not in line]
        lines[path.stem] = comments[0][2:] if comments else ""
    return lines


def to_dict(config: Config) -> dict[str, Any]:
    """A plain nested dict, for JSON and for workers."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any] | DictConfig) -> Config:
    """A typed config from a nested dict.

    Args:
        values: nested keys, as :func:`to_dict` gives them or as Hydra composed them.

    Raises:
        UserError: a key is unknown, missing or of the wrong type.

    Example:
        >>> from_dict({"name": "x", "data": {"store": "s"}, "train": {"base_stepz": 1}})
        Traceback (most recent call last):
        ...
        pipeline.errors.UserError: no such key: train.base_stepz
    """
    if not isinstance(values, dict | DictConfig):
        raise UserError(f"a config is a mapping of keys, such as train and model, and this is {values!r}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), values)
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        if "not in" in str(error) and key:
            raise UserError(f"no such key: {key}") from None
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{key}: {reason}" if key and key not in reason else reason) from None


def apply(config: Config, overrides: dict[str, Any]) -> Config:
    """The config with dotted keys replaced, as a trial gets it from the search.

    Args:
        config: the experiment.
        overrides: for example ``{"train.energy_lr": 3e-4}``.

    Raises:
        UserError: a key does not exist or its value has the wrong type.
    """
    values = OmegaConf.create(to_dict(config))
    for key, value in overrides.items():
        if OmegaConf.select(values, key, default=_ABSENT) is _ABSENT:
            raise UserError(f"no such key: {key}; a search space names keys of the experiment, such as train.energy_lr")
        if OmegaConf.is_dict(OmegaConf.select(values, key)) and not isinstance(value, dict):
            raise UserError(f"{key}={value}: it is a group of keys; name one of them, as in train.energy_lr")
        OmegaConf.update(values, key, value)
    return from_dict(values)


_ABSENT = object()


def validate(config: Config) -> None:
    """Refuse what cannot run, before anything starts.

    Args:
        config: the experiment.

    Raises:
        UserError: one line that names the key and what it may be.
    """
    positive = {
        "data.resolution": config.data.resolution,
        "data.max_correlation": config.data.max_correlation,
        "data.channels": config.data.channels,
        "data.samples_per_shard": config.data.samples_per_shard,
        "model.latent_dim": config.model.latent_dim,
        "train.energy_steps": config.train.energy_steps,
        "train.warmup_energy_steps": config.train.warmup_energy_steps,
        "train.warmup_every": config.train.warmup_every,
        "train.batch_size": config.train.batch_size,
        "train.energy_lr": config.train.energy_lr,
        "train.base_lr": config.train.base_lr,
        "train.report_every": config.train.report_every,
        "train.penalty_every": config.train.penalty_every,
        "train.negatives.step_size": config.train.negatives.step_size,
        "train.negatives.num_steps": config.train.negatives.num_steps,
        "train.learning_rate_decay.every": config.train.learning_rate_decay.every,
        "train.learning_rate_decay.num_samples": config.train.learning_rate_decay.num_samples,
        "sampler.step_size": config.sampler.step_size,
        "sampler.num_steps": config.sampler.num_steps,
        "sampler.num_samples": config.sampler.num_samples,
        "sampler.decay": config.sampler.decay,
        "sampler.decay_every": config.sampler.decay_every,
        "evaluation.every": config.evaluation.every,
        "evaluation.batch_size": config.evaluation.batch_size,
        "evaluation.chain_points": config.evaluation.chain_points,
        "evaluation.grid": config.evaluation.grid,
        "evaluation.temperatures": config.evaluation.temperatures,
        "scale.num_workers": config.scale.num_workers,
        "scale.cpus_per_worker": config.scale.cpus_per_worker,
        "scale.timeout": config.scale.timeout,
        "sweep.num_trials": config.sweep.num_trials,
        "sweep.points": config.sweep.points,
        "data.writers": config.data.writers,
        "train.latent_batch_size": config.train.latent_batch_size,
        "sweep.grace_steps": config.sweep.grace_steps,
        "sweep.perturbation_steps": config.sweep.perturbation_steps,
        "sweep.max_concurrent": config.sweep.max_concurrent,
    }
    for key, value in positive.items():
        if value is not None and (not value > 0 or not math.isfinite(value)):
            raise UserError(f"{key}={value}: it has to be positive and finite")
    for key, value in {
        "train.base_steps": config.train.base_steps,
        "train.warmup_base_steps": config.train.warmup_base_steps,
        "train.log_partition_samples": config.train.log_partition_samples,
        "train.penalty": 0.0 if config.train.penalty is None else config.train.penalty,
        "train.weight_decay": config.train.weight_decay,
        "sampler.beta": config.sampler.beta,
        "sampler.friction": config.sampler.friction,
        "data.reader_workers": config.data.reader_workers,
    }.items():
        if not value >= 0 or not math.isfinite(value):
            raise UserError(f"{key}={value}: it cannot be negative, and has to be finite")
    if config.train.log_partition_samples == 1:
        raise UserError("train.log_partition_samples=1: an estimate needs 2 at least, and 0 is none")
    if config.task not in _PRIMARY:
        raise UserError(f"task={config.task}: it has to be one of {', '.join(_PRIMARY)}")
    for key, value, known in (
        ("model.networks", config.model.networks, _NETWORKS[config.task]),
        ("train.objective", config.train.objective, objectives.NAMES),
        ("train.negatives.sampler", config.train.negatives.sampler, _CHAINS),
        ("train.penalty_kind", config.train.penalty_kind, penalties.NAMES),
        ("train.precision", config.train.precision, PRECISIONS),
        ("sampler.name", config.sampler.name, samplers.NAMES),
        ("evaluation.log_partition", config.evaluation.log_partition, LOG_PARTITIONS),
        ("data.encoding", config.data.encoding, _ENCODINGS[config.task]),
        ("sweep.search", config.sweep.search, ("random", "grid", "optuna")),
        ("sweep.scheduler", config.sweep.scheduler, ("asha", "pbt", "none")),
        ("sweep.mode", config.sweep.mode, ("min", "max")),
    ):
        if value not in known:
            raise UserError(f"{key}={value}: it has to be one of {', '.join(known)}")
    unknown = set(config.evaluation.metrics) - {"fid", "kid", "is", "prc"}
    if unknown:
        raise UserError(f"evaluation.metrics={sorted(unknown)}: they have to be among fid, kid, is, prc")
    fewest = max(FEWEST_SAMPLES[name] for name in ("fid", *config.evaluation.metrics))
    if config.evaluation.num_samples < fewest:
        raise UserError(
            f"evaluation.num_samples={config.evaluation.num_samples}: evaluation.metrics need {fewest} at least"
        )
    ranks = _ranks(config)
    if config.sweep.metric not in ranks:
        more = "; evaluation.metrics adds more" if config.task == "images" else ""
        raise UserError(f"sweep.metric={config.sweep.metric}: it has to be one of {', '.join(ranks)}{more}")
    for key, value in (("train.beta1", config.train.beta1), ("train.beta2", config.train.beta2)):
        if not 0 <= value < 1:
            raise UserError(f"{key}={value}: it has to be at least 0 and below 1")
    if config.data.split_seed is not None and not 0 <= config.data.split_seed < SEEDS:
        raise UserError(f"data.split_seed={config.data.split_seed}: it has to be at least 0 and below {SEEDS}")
    if not 0 <= config.seed < SEEDS:
        raise UserError(f"seed={config.seed}: it has to be at least 0 and below {SEEDS}")
    if not math.isfinite(config.model.energy_offset):
        raise UserError(f"model.energy_offset={config.model.energy_offset}: it has to be finite")
    if config.model.energy_floor is not None and not config.model.energy_floor < math.inf:
        raise UserError(f"model.energy_floor={config.model.energy_floor}: it has to be a number, or -.inf for none")
    objective = objectives.make(config.train.objective)
    flow = config.model.networks in networks.flows.FLOWS
    if (objective.base_learns_from == "data" or objective.negatives.needs_density) and not flow:
        raise UserError(
            f"train.objective={config.train.objective}: it needs a base with a density, and model.networks="
            f"{config.model.networks} has none; use one of {', '.join(networks.flows.FLOWS)}"
        )
    if config.evaluation.log_partition == "trained" and not objective.trains_log_partition:
        raise UserError(
            f"evaluation.log_partition=trained: train.objective={config.train.objective} trains no log-partition; use "
            f"monte_carlo or annealed"
        )
    if config.evaluation.log_partition == "annealed" and config.sampler.name not in _EXACT:
        raise UserError(
            f"sampler.name={config.sampler.name}: evaluation.log_partition=annealed needs an exact kernel, one of "
            f"{', '.join(_EXACT)}"
        )
    if config.task == "points" and not objective.trains_energy:
        raise UserError(f"train.objective={config.train.objective}: it trains no energy, and task=points samples one")
    if not (config.train.train_base or objective.trains_energy):
        raise UserError(f"train.train_base=false: train.objective={config.train.objective} trains nothing but the base")
    if config.sweep.scheduler == "pbt" and config.sweep.search == "optuna":
        raise UserError("sweep.search=optuna: sweep.scheduler=pbt makes proposals of its own; use random or grid")
    if (config.ray.address or "").startswith("ray://"):
        raise UserError(
            f"ray.address={config.ray.address}: a sweep is driven from within the cluster; start this command on one "
            f"of its machines with ray.address=auto, for example with `ray job submit`"
        )
    if config.sweep.reduction_factor < 2:
        raise UserError(f"sweep.reduction_factor={config.sweep.reduction_factor}: it has to be 2 at least")
    if config.train.ema_decay is not None and not 0 < config.train.ema_decay < 1:
        raise UserError(f"train.ema_decay={config.train.ema_decay}: it has to lie between 0 and 1")
    _build(
        "model",
        lambda: _networks(
            config.model.networks,
            config.data.resolution,
            config.data.channels,
            config.model.latent_dim,
            config.model.width,
            config.model.energy,
            config.model.energy_offset,
        ),
    )
    _build("sampler.decay", lambda: StepDecay(factor=config.sampler.decay, every=config.sampler.decay_every))
    _build(
        "sampler",
        lambda: samplers.make(
            config.sampler.name,
            step_size=config.sampler.step_size,
            friction=config.sampler.friction,
            prior=StandardNormal(config.model.latent_dim),
        ),
    )
    decay = config.train.learning_rate_decay
    _build(
        "train.learning_rate_decay",
        lambda: PlateauDecay(
            torch.zeros(decay.num_samples, 1),
            factor=decay.factor,
            every=decay.every,
            lag=decay.lag,
            patience=decay.patience,
        ),
    )
    for key, size in (("batch_size", config.train.batch_size), ("latent_batch_size", config.train.latent_batch_size)):
        if size is not None and size % config.scale.num_workers:
            raise UserError(
                f"train.{key}={size} cannot be shared out evenly among scale.num_workers={config.scale.num_workers}: "
                f"make it a multiple of {config.scale.num_workers}"
            )


def headline(config: Config) -> tuple[str, str]:
    """The two scores that are followed while a sweep runs: the base's and the GEBM's.

    Example:
        >>> headline(from_dict({"name": "x", "task": "density", "data": {"store": "s", "source": {"kind": "redwine"}},
        ...     "model": {"networks": "maf"}}))
        ('nll_base', 'nll_gebm')
    """
    return f"{_PRIMARY[config.task]}_base", f"{_PRIMARY[config.task]}_gebm"


def _ranks(config: Config) -> list[str]:
    """The scores that trials can be ranked by."""
    # By the validation rows, where there are such: the test rows choose nothing.
    if config.task == "density":
        return ["nll_gebm_validation", "nll_base_validation"]
    if config.task == "points":
        return ["distance_validation_gebm", "distance_validation_base"]
    measured = dict.fromkeys(score for name in ("fid", *config.evaluation.metrics) for score in _SCORES[name])
    return [f"{score}_{model}" for score in measured for model in ("gebm", "base")]


@functools.cache  # a search asks for the same ones at each end of each range
def _networks(
    name: str,
    resolution: int | None,
    channels: int,
    latent_dim: int,
    width: int | None,
    energy: str | None,
    offset: float,
) -> object:
    # A flow looks at its masks while it is built, which the meta device cannot; and it is small.
    with torch.device("cpu" if name in networks.flows.FLOWS else "meta"):
        return networks.make(
            name,
            resolution=resolution or 0,
            channels=channels,
            latent_dim=latent_dim,
            width=width,
            energy=energy,
            offset=offset,
        )


def _build(key: str, make: Callable[[], object]) -> None:
    """What the method itself refuses, it refuses here; nothing is allocated."""
    try:
        with torch.device("meta"):
            make()
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None
