"""Schema of every config key: its type, its default, its meaning and the values that it takes.

Hydra and OmegaConf refuse an unknown key or a wrong type by these dataclasses. Bounds and choices are declared with
their fields (:mod:`pipeline.config.fields`), and :mod:`pipeline.config.validation` checks them, together with what keys
need of one another. This module imports neither torch nor :mod:`gebm`, so that ``--help`` answers at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from pipeline.config.fields import bounded, choice, documented, key

__all__ = [
    "AUTO",
    "CONFIG_NAME",
    "HYDRA_KEYS",
    "Checkpointing",
    "Config",
    "Data",
    "Evaluation",
    "FinalPhase",
    "KineticKernel",
    "LangevinKernel",
    "LearningRateDecay",
    "Model",
    "Negatives",
    "Primary",
    "RayCluster",
    "Sampler",
    "Scale",
    "Source",
    "StepKernel",
    "Sweep",
    "Tracking",
    "Train",
]

AUTO = "auto"
"""Value of a key that others decide."""

CONFIG_NAME = "gebm"
# What Hydra needs of a primary config in addition to the schema.
HYDRA_KEYS = ("defaults", "hydra")

_REPLAYS = ("auto", "true", "false")
_PRECISIONS = ("auto", "float32", "tf32", "bfloat16")
# Kernels that need neither a prior nor a friction.
_NEGATIVE_SAMPLERS = ("ula", "mala", "hmc", "rwm")
# Seeds that torch, NumPy and Optuna all take, with room for what is added to them.
_NUM_SEEDS = 2**31


@dataclass
class Source:
    """Where the data of a store come from, as their publishers distribute them."""

    kind: str = key(
        MISSING,
        "Format: digits, lsun, cifar10, celeba, imagenet32, redwine, toy, ... as published, or images, webdataset, "
        "parquet that others wrote, or one that a plugin registers.",
    )
    url: str | None = key(
        None,
        "Any fsspec URL or path; not needed where the data come with a package. Of webdataset and parquet also "
        "shard-{000..123}.tar, shard-*.tar, or a list, [a.tar,b.tar], which a plugin's source with a label_field gets "
        "as one.",
        outside=True,
    )
    split: str | None = key(None, "Split by its publisher's name (default: everything there is).")
    label_field: str | None = key(
        "auto",
        "Field of the labels of webdataset and parquet: a member such as cls, a key of a sample's json, or a column; "
        "null for no labels. auto takes cls or a json's label, cls or class; of parquet the column label, or the only "
        "one that is declared a class. A source of a plugin may have it as well.",
    )
    published_counts: bool = key(
        True,
        "Whether the source has to have as many samples as its publisher states; false takes it as it is, such as one "
        "batch of ten. Images in folders have no such number.",
    )


@dataclass
class Data:
    """The store, of images or of a table's rows."""

    store: str = key(MISSING, "A name under GEBM_STORES, a path, or any fsspec URL.", outside=True)
    resolution: int | None = bounded(32, "Height and width of images in pixels; null where the data are rows.", gt=0)
    channels: int = bounded(
        3, "Channels of an image; columns of a row, without those that max_correlation drops.", gt=0
    )
    encoding: str = key(
        "blocks", "blocks (arrays, fast to read), images (one encoded image a sample) or rows (of a table)."
    )
    resize_filter: str = choice(
        "lanczos",
        "Filter that images are resized with, antialiased.",
        names=("lanczos", "bicubic", "bilinear", "box"),
    )
    held_out: int = bounded(
        0,
        "Images at the end of the store that training never sees: the energy's final phase stops by them, and KALE on "
        "them is logged. Rows have validation rows for that.",
        ge=0,
    )
    split_seed: int | None = bounded(
        None, "Seed of a table's splits (default: the seed); a trained model keeps its own.", ge=0, lt=_NUM_SEEDS
    )
    dequantise: bool = key(False, "Whether to add to each column of rows uniform noise of its own resolution.")
    max_correlation: float | None = bounded(
        None, "Of two columns that correlate more strongly than this, one is dropped.", gt=0
    )
    samples_per_shard: int | None = bounded(
        None, "Samples in a shard of a new store; by default 8,192, or as many images as have 256 MiB of pixels.", gt=0
    )
    num_writers: int | None = bounded(None, "Processes that write a store (default: one a core).", gt=0)
    max_broken: float | None = bounded(
        None,
        "Share of a source's images that may be broken in a new store. Default: 0.01, and ten images in any case "
        "unless they are more than half.",
        ge=0,
        lt=1,
    )
    cache: str | None = key(
        None,
        "A folder on each machine's own disk where shards stay once they are read, for a store that is on no disk. "
        "All trials of a machine share it, and later sweeps find it filled (default: no cache).",
        outside=True,
    )
    cache_limit_gib: float = bounded(64.0, "Size limit of the cache in GiB; the least recently used shards go.", gt=0)
    prefetch_shards: int | None = bounded(
        None,
        "Shards that are fetched ahead; 0 fetches each when it is needed. Default: for a store behind a network as "
        "many as a shuffle window has (128 MiB decoded, one at least), and 0 for others.",
        ge=0,
    )
    timeout: float = bounded(
        300.0,
        "Seconds that one request of a store may take with all retries; then its storage counts as hung. Keep it below "
        "scale.timeout: else the worker counts as hung first, and no message names the storage.",
        gt=0,
    )
    max_bad_shards: int = bounded(
        0, "Shards that may turn out damaged or missing in training; samples of others replace theirs.", ge=0
    )
    device_resident: bool | None = key(
        None,
        "Whether each training worker keeps the store of images on its device, decoded; its batches are those of one "
        "lane. Default: where it takes at most a quarter of a GPU's free memory, or on the CPU no more than a reader "
        "would keep.",
    )
    lanes: int = bounded(
        64,
        "Parts that the order of a store that is not device-resident is cut into, each with shards of its own: a batch "
        "has as many samples from each, and a training worker or loader process reads only its own. At most this many: "
        "a divisor of it and of train.batch_size, no more than the store has shards, nor than 4 GiB hold shards. "
        "Batches depend on it, and a run keeps the lanes it began with; 1 has every worker read all shards.",
        gt=0,
        lt=2**16,
    )
    num_workers: int | None = bounded(
        None,
        "Loader processes of a training worker, for a store that is not device-resident; 0 reads in the worker itself. "
        "Default: one for a GPU, so that batches are read ahead, and 0 on the CPU, where it would take a core from "
        "training.",
        ge=0,
    )
    source: Source = field(default_factory=Source)


@dataclass
class Model:
    """Base and energy."""

    networks: str = choice(
        MISSING,
        "Family of networks: for images dcgan, sngan_convnet, sngan_resnet, as the authors' code has these two, "
        "sngan_convnet_arbel, sngan_resnet_arbel, with the classes of a store's labels dcgan_conditional, "
        "sngan_resnet_conditional, and imported for weights of published layouts; for rows gaussian, realnvp, maf, "
        "nsf, mlp.",
        names="gebm.networks:NAMES",
    )
    base: str | None = key(
        None,
        "Weights of a trained generator to start from, safetensors or a torch file: a path or any fsspec URL.",
        outside=True,
    )
    energy: str | None = key(
        None,
        "Energy network (default: the family's own); mlp puts a plain network on a flow. With model.base, the weights "
        "of the discriminator, or none; on imported networks also a family of images, whose energy is taken.",
    )
    energy_offset: float = bounded(
        0.0, "Constant of a flow's energy in nats: minus the log-partition, which training does not know."
    )
    latent_dim: int = bounded(100, "Latent dimension.", gt=0)
    width: int | None = key(None, "Channels of the narrowest layer (default: as in the paper).")
    energy_floor: float | None = bounded(
        None,
        "Least energy (default: -10, and none, -.inf, for an energy relative to a flow).",
        lt=math.inf,
        finite=False,
    )
    settings: dict[str, Any] = field(
        default_factory=dict,
        metadata=documented("Settings that the networks have of their own, each a key, as in model.settings.depth=4."),
    )


@dataclass
class LearningRateDecay:
    """Learning rates that fall when the relative MMD test says that the base has stopped improving."""

    factor: float = key(0.8, "Factor on both learning rates.")
    every: int = bounded(2000, "Base steps between two tests.", gt=0)
    lag: int = key(20000, "Base steps between the two bases that are compared.")
    patience: int = key(3, "Failures in a row before the rates fall.")
    num_samples: int = bounded(2000, "Images a test.", gt=0)
    significance: float = bounded(0.05, "Level of the test: a larger p-value is a failure.", gt=0, lt=1)
    unconditional_every: int | None = bounded(
        None,
        "Base steps between decays without a test, but at those with one (default: none; the authors' code has 5,000).",
        gt=0,
    )


@dataclass
class Negatives:
    """The chains of contrastive divergence, in an energy step."""

    sampler: str = choice("ula", "Kernel.", names=_NEGATIVE_SAMPLERS)
    step_size: float = bounded(1e-2, "Step size h of the kernel.", gt=0)
    num_steps: int = bounded(10, "MCMC steps an energy step.", gt=0)


@dataclass
class FinalPhase:
    """The energy trained alone on the final base, for at most train.final_energy_steps."""

    energy_lr: float | None = bounded(
        None, "Learning rate (default: the energy's own, without the schedule's factor).", gt=0
    )
    penalty: float | None = bounded(None, "Weight of the penalty (default: train.penalty).", ge=0)
    check_every: int = bounded(25, "Energy steps between two evaluations on held-out data.", gt=0)
    patience: int = bounded(
        3, "Evaluations without a better held-out KALE that end it, with the best kept; 0 takes all steps.", ge=0
    )
    before_evaluations: bool = key(
        False, "Whether it also precedes each intermediate evaluation; training resumes from before it."
    )


@dataclass
class Train:
    """The alternation of energy steps and base steps (Algorithm 1)."""

    base_steps: int = bounded(150_000, "Base steps of the whole training.", ge=0)
    energy_steps: int = bounded(5, "Energy steps a base step.", gt=0)
    warmup_energy_steps: int = bounded(100, "Energy steps a base step during a warm-up.", gt=0)
    warmup_base_steps: int = bounded(2, "Number of first base steps that are warm-ups.", ge=0)
    warmup_every: int = bounded(500, "Base steps between later warm-ups.", gt=0)
    batch_size: int = bounded(128, "Images a step, over all workers together.", gt=0)
    latent_batch_size: int | None = bounded(
        None, "Latents a step, over all workers together (default: batch_size).", gt=0
    )
    energy_lr: float = bounded(1e-4, "Learning rate of the energy.", gt=0)
    base_lr: float = bounded(1e-4, "Learning rate of the base.", gt=0)
    schedule: str = key(
        "constant", "Schedule of both learning rates: constant; linear or cosine, down to zero at the last base step."
    )
    beta1: float = bounded(0.5, "Adam's decay of the first moment.", ge=0, lt=1)
    beta2: float = bounded(0.999, "Adam's decay of the second moment.", ge=0, lt=1)
    gradient_guard: str = choice(
        "clip",
        "Bound on what one batch can do to the energy: clip (to a norm of 1), arbel (the authors' transform), none.",
        names="gebm.training.gradient_guard:NAMES",
    )
    weight_decay: float = bounded(0.0, "L2 of the energy's weights.", ge=0)
    objective: str = choice(
        "kale_fenchel",
        "Objective; ml, ml_kale, cd_data and pcd_data need a flow as base.",
        names="gebm.objectives:NAMES",
    )
    objective_settings: dict[str, Any] = field(
        default_factory=dict, metadata=documented("Settings that the objective has of its own, each a key.")
    )
    negatives: Negatives = field(default_factory=Negatives)
    train_base: bool = key(
        True, "Whether the base is trained; false trains the energy alone, for example on the base of a checkpoint=..."
    )
    penalty: float | None = bounded(None, "Weight of the penalty (default: 1, and 10 for wgan_gp).", ge=0)
    penalty_kind: str = choice(
        "gradient", "Penalty of the energy; gradient is taken at interpolates.", names="gebm.objectives.penalties:NAMES"
    )
    penalty_settings: dict[str, Any] = field(
        default_factory=dict,
        metadata=documented(
            "Settings that the penalty has of its own, each a key, as in train.penalty_settings.target=1."
        ),
    )
    penalty_every: int = bounded(
        1, "Energy steps between two penalties; above 1 the penalty is lazy, and weighs as much more.", gt=0
    )
    final_energy_steps: int = bounded(
        0, "Energy steps after the last base step, on the final base; see final_phase.", ge=0
    )
    final_phase: FinalPhase = field(default_factory=FinalPhase)
    log_partition_samples: int = bounded(
        1024, "Base samples that initialize the log-partition; 0 starts it at zero.", ge=0
    )
    ema_decay: float | None = bounded(
        None, "Decay of the exponential moving average of the base's weights, a step (default: no average).", gt=0, lt=1
    )
    precision: str = choice(
        "auto",
        "Precision of the networks, float32 being IEEE's on a GPU as well; auto is bfloat16 for images on a GPU that "
        "has it.",
        names=_PRECISIONS,
    )
    cuda_graphs: bool | str = choice(
        "auto",
        "Whether energy steps and base steps are recorded once and replayed as CUDA graphs, if a check finds them "
        "equal to plain steps; auto: on a GPU, where that is faster. A note of the report says which way it was.",
        names=_REPLAYS,
    )
    compile: bool | str = choice(
        "auto",
        "Whether energy steps and base steps are compiled, if the same check finds them equal to plain steps; auto: on "
        "a GPU, where that is faster. On a CPU, true only: each kind of step takes a minute or more to compile, and a "
        "C++ compiler.",
        names=_REPLAYS,
    )
    memory_format: str = choice(
        "auto",
        "Memory format of weights and images; auto is channels_last for images.",
        names=("auto", "channels_last", "contiguous"),
    )
    report_every: int = bounded(
        50, "Base steps between two progress reports, or a multiple of it if they take less than a second.", gt=0
    )
    max_nonfinite_restarts: int = bounded(
        0,
        "Times that a trial whose loss is no longer finite restarts from its last checkpoint, at half its learning "
        "rates.",
        ge=0,
    )
    learning_rate_decay: LearningRateDecay = field(default_factory=LearningRateDecay)


@dataclass
class StepKernel:
    """Settings of a kernel that has a step size alone."""

    step_size: float | None = bounded(None, "Step size h (default: as far in one step as ULA).", gt=0)


@dataclass
class LangevinKernel(StepKernel):
    """Settings of a kernel whose step size can decay."""

    decay: float | None = bounded(None, "Factor on the step size every decay_every steps.", gt=0)
    decay_every: int | None = bounded(None, "MCMC steps between two decays of the step size.", gt=0)


@dataclass
class KineticKernel(LangevinKernel):
    """Settings of the kinetic sampler, whose step size is a time."""

    friction: float | None = bounded(None, "Friction, per unit of time.", ge=0)


@dataclass
class Sampler:
    """MCMC in latent space. A setting of one kernel, such as kla.step_size, is used where it is set for no other."""

    name: str = choice("ula", "Kernel; its settings are those of sampler.<name>.", names="gebm.samplers:NAMES")
    step_size: float | None = bounded(
        None, "Step size h, of whichever kernel (default: the kernel's own, such as ula.step_size, or else 1e-4).", gt=0
    )
    num_steps: int = bounded(1000, "MCMC steps of a chain.", gt=0)
    beta: float = bounded(1.0, "Inverse temperature; 1 is the model itself.", ge=0)
    friction: float | None = bounded(
        None, "Friction of the kinetic sampler (default: kla.friction, or else 0.1).", ge=0
    )
    decay: float | None = bounded(
        None, "Factor on the step size every decay_every steps (default: the kernel's own, or else none, 1).", gt=0
    )
    decay_every: int | None = bounded(
        None, "MCMC steps between two decays of the step size (default: the kernel's own, or else 200).", gt=0
    )
    num_samples: int = bounded(64, "Samples that `python -m pipeline.sample` draws.", gt=0)
    precision: str = choice(
        "auto",
        "Precision of the networks, float32 being IEEE's on a GPU as well; auto is bfloat16 for images where the "
        "hardware has it, with ula, kla and ddls.",
        names=_PRECISIONS,
    )
    cuda_graphs: bool | str = choice(
        "auto",
        "Whether blocks of MCMC steps are recorded once and replayed as CUDA graphs, if a check finds them equal to "
        "plain steps; auto: on a GPU, where that is faster. A line of the evaluation says which way it was.",
        names=_REPLAYS,
    )
    compile: bool | str = choice(
        "auto",
        "Whether MCMC steps are compiled, if the same check finds them equal to plain steps; auto: on a GPU, where "
        "that is faster. On a CPU, true only: it takes a minute or more, and a C++ compiler.",
        names=_REPLAYS,
    )
    warm_up_steps: int = bounded(
        0,
        "MCMC steps of a few chains before the others start, by which mala, hmc and rwm find their step size and "
        "masses; what they found is among the scores. 0 takes both as they are set.",
        ge=0,
    )
    settings: dict[str, Any] = field(
        default_factory=dict,
        metadata=documented(
            "Settings that a kernel has of its own, each a key, as in sampler.settings.num_leapfrog_steps=20; those of "
            "other kernels than the chosen one are not used."
        ),
    )
    ula: LangevinKernel = field(default_factory=LangevinKernel)
    kla: KineticKernel = field(default_factory=KineticKernel)
    mala: StepKernel = field(default_factory=StepKernel)
    hmc: StepKernel = field(default_factory=StepKernel)
    rwm: StepKernel = field(default_factory=StepKernel)
    dot: StepKernel = field(default_factory=StepKernel)
    descent: LangevinKernel = field(default_factory=LangevinKernel)


@dataclass
class Evaluation:
    """What is measured, and how often."""

    every: int = bounded(5000, "Base steps between two evaluations; the last step is always evaluated.", gt=0)
    num_samples: int = key(10_000, "Samples a score.")
    final_samples: int | None = bounded(
        None,
        "Samples of the score that decides between a sweep's finalists, and that is reported (default: num_samples). "
        "Papers report FID of 50,000.",
        gt=0,
    )
    seed: int | None = bounded(
        None,
        "Seed of the latents that chains start from and of their noise (default: the seed). sweeps=mcmc has another, "
        "so that a sampler is not chosen by the latents that it is scored on later.",
        ge=0,
    )
    batch_size: int = bounded(500, "Chains that run at once on a worker.", gt=0)
    chain_points: int = bounded(5, "Points along the chain where FID is measured.", gt=0)
    extractor: str = key(
        "inception-v3-compat",
        "Feature extractor of FID and the other metrics of images: classifier, inception-v3-compat, vgg16, or one that "
        "a plugin registers.",
    )
    weights: str | None = key(
        None, "File of the extractor's weights; a classifier's may be another store's.", outside=True
    )
    resize: bool = key(
        False,
        "Whether images=... of another size or number of channels than the store's are cropped, resized and converted "
        "as the store's own were, by its filter; they are refused otherwise.",
    )
    metrics: list[str] = field(
        default_factory=lambda: ["fid"],
        metadata=documented(
            "Metrics of images: fid, kid, is, prc (precision and recall), dc (density and coverage), and those that "
            "plugins register."
        ),
    )
    fid_infinity: bool = key(
        False,
        "Whether to extrapolate the FID of images to infinitely many samples, next to it (Chong and Forsyth, 2020).",
    )
    per_class: bool = key(
        False,
        "Whether each class of conditional networks has an FID of its own, fid_class_<number>, at the chains' ends; "
        "against the images of that class among the 10,000 at most whose features are saved.",
    )
    grid: int = bounded(
        64, "Images in a sample grid; of conditional networks about this number, with one class in a row.", gt=0
    )
    log_partition: str = choice(
        "auto",
        "Estimator of a density's log-partition: auto (the true one where it is known, else monte_carlo), monte_carlo, "
        "trained (the c of kale_fenchel) or annealed (importance sampling with the sampler's name and step size).",
        names=("auto", "monte_carlo", "trained", "annealed"),
    )
    temperatures: int = bounded(100, "Number of temperatures of the annealed estimator.", gt=0)


@dataclass
class Checkpointing:
    """Checkpoints, from which an interrupted trial resumes."""

    every: int | None = bounded(
        None, "Base steps between two checkpoints, in addition to one at each evaluation (default: none).", gt=0
    )
    on_failure: str = choice(
        "stop", "When one cannot be written: stop, or continue without it.", names=("stop", "continue")
    )


@dataclass
class Scale:
    """Resources of a trial."""

    num_workers: int = bounded(
        1,
        "Workers of a trial. In a search over the sampler alone a trial has one, and as many more run side by side.",
        gt=0,
    )
    min_workers: int | None = bounded(
        None,
        "Elastic training: a trial runs on all workers that there is room for, from this number to num_workers, and "
        "what it learns is the same (default: always num_workers).",
        gt=0,
    )
    use_gpu: bool | None = key(None, "Whether workers have a GPU each (default: whether the cluster has GPUs).")
    gpus_per_worker: int | float | str | None = key(
        None,
        "GPUs of a worker that uses them (default: 1). A fraction such as 0.25 runs four trials on a GPU, of one "
        "worker each, and bounds the memory of each by its share; auto runs on whole GPUs, and the first trial that is "
        "evaluated reports which fraction would fit, or why there is none.",
    )
    cpus_per_worker: int = bounded(1, "CPU cores of a worker.", gt=0)
    timeout: float = bounded(1800.0, "Seconds without a heartbeat after which a worker counts as hung.", gt=0)
    max_restarts: int = bounded(
        3, "Times that a trial whose workers died or hung restarts from its last checkpoint.", ge=0
    )


@dataclass
class RayCluster:
    """The Ray cluster that runs it."""

    address: str | None = key(
        None,
        'An existing cluster ("auto", "host:6379"); default: that of RAY_ADDRESS, or one on this machine alone.',
        outside=True,
    )


@dataclass
class Tracking:
    """MLflow."""

    uri: str | None = key(None, "Any MLflow server (default: a SQLite file next to the results).", outside=True)
    experiment: str | None = key(None, "MLflow experiment (default: the name of the experiment file).")
    register: bool = key(True, "Whether the best trial's model is registered, under the experiment's name.")
    flush_timeout: float = bounded(
        60.0, "Seconds that a finished sweep waits for a tracker that does not answer.", ge=0
    )


@dataclass
class Sweep:
    """How to search. ``sweeps/*.yaml`` fills this in."""

    search: str = choice("random", "Search algorithm.", names=("random", "grid", "optuna"))
    scheduler: str = choice("none", "Scheduler of the trials.", names=("asha", "pbt", "none"))
    num_trials: int = bounded(1, "Number of trials; of a grid, all its points are trials.", gt=0)
    max_trials: int = bounded(10_000, "Number of trials above which a sweep is refused.", gt=0)
    grid_size: int = bounded(3, "Values that a continuous range becomes in a grid.", gt=0)
    space: dict[str, Any] = field(
        default_factory=dict,
        metadata=documented(
            "Search space: key to {log_uniform: [a, b]} and the like, perhaps with a condition, when: {key: value}."
        ),
    )
    finalists: int = bounded(
        4,
        "Trials that are scored again at the end, at most: those within two standard errors of the best one, on other "
        "latents and evaluation.final_samples; 0 for none. What they score then decides which is the best.",
        ge=0,
    )
    metric: str = key(AUTO, "Score that trials are ranked by; auto is the task's own, such as fid_gebm.")
    mode: str = choice(
        AUTO,
        "Whether the best score is the least or the largest; auto is what sweep.metric needs.",
        names=(AUTO, "min", "max"),
    )
    grace_steps: int | None = bounded(
        None,
        "Base steps before a trial may be pruned, or MCMC steps in a search over the sampler alone (default: a quarter "
        "of the longest).",
        gt=0,
    )
    reduction_factor: int = bounded(3, "One in n of the trials that reach a rung continues.", ge=2)
    perturbation_steps: int | None = bounded(None, "Base steps between two exploits (default: a tenth).", gt=0)
    max_concurrent: int | None = bounded(
        None, "Trials that run at the same time (default: the number that the cluster has room for).", gt=0
    )


@dataclass
class Config:
    """Whole config of a run."""

    name: str = key(MISSING, "Name of the experiment.")
    task: str = choice(
        "images",
        "images (scored by FID), density (rows, by likelihood), points (rows, by their samples), or one that a plugin "
        "registers.",
        names="pipeline.config.tasks:NAMES",
    )
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    train: Train = field(default_factory=Train)
    sampler: Sampler = field(default_factory=Sampler)
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpoints: Checkpointing = field(default_factory=Checkpointing)
    scale: Scale = field(default_factory=Scale)
    ray: RayCluster = field(default_factory=RayCluster)
    tracking: Tracking = field(default_factory=Tracking)
    sweep: Sweep = field(default_factory=Sweep)
    spaces: dict[str, dict[str, Any]] = field(
        default_factory=dict,
        metadata=documented("Search spaces that the experiment offers, by purpose; a file in sweeps/ picks one."),
    )
    plugins: list[str] = field(
        default_factory=list,
        metadata=documented(
            "Your own code: files and modules that register networks, samplers, metrics and other parts. GEBM_PLUGINS "
            "and installed packages add to them.",
            outside=True,
        ),
    )
    seed: int = bounded(0, "Seed of everything that is random.", ge=0, lt=_NUM_SEEDS)
    checkpoint: str | None = key(
        None, "A trained model to start from: the folder of a checkpoint or of a trial.", outside=True
    )
    images: str | None = key(
        None,
        "Images that `python -m pipeline.evaluate` scores without a model: a folder, zip or tar file of images, an npz "
        "or npy file, or a store; a path, a store's name or any fsspec URL.",
        outside=True,
    )
    against: str | None = key(None, "The store that images=... are compared with.", outside=True)
    output: str | None = key(None, "A folder or fsspec URL (default: results/<name>-<time>).", outside=True)
    resume: str | None = key(None, "The folder of an interrupted run.", outside=True)
    log: str | None = key(
        None,
        "A file that gets one line of JSON for each event; - is standard output, which then shows nothing else.",
        outside=True,
    )


@dataclass
class Primary(Config):
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
    # Hydra neither changes to a folder of its own nor writes one: the results' folder is ours.
    hydra: Any = field(default_factory=lambda: {"run": {"dir": "."}, "output_subdir": None})


ConfigStore.instance().store(name=CONFIG_NAME, node=Primary)
