"""The schema of every key, and how an experiment is composed.

``conf/<experiment>.yaml`` says what to run and ``sweeps/<search>.yaml`` how to search; both are Hydra config groups
over the dataclasses below, so an unknown key or a wrong type is refused by name. :mod:`pipeline.config.validation` adds
what a type cannot say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

__all__ = [
    "CONFIG_NAME",
    "HYDRA_KEYS",
    "Checkpointing",
    "Config",
    "Data",
    "Evaluation",
    "FinalPhase",
    "LearningRateDecay",
    "Model",
    "Negatives",
    "Primary",
    "RayCluster",
    "Sampler",
    "Scale",
    "Source",
    "Sweep",
    "Tracking",
    "Train",
]

CONFIG_NAME = "gebm"
HYDRA_KEYS = ("defaults", "hydra")  # what Hydra wants of a primary config besides the schema


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
    # Images at the end of the store that training never sees; the energy's last phase stops by them, and KALE on them
    # is logged. Rows have validation rows for that.
    held_out: int = 0
    split_seed: int | None = None  # of a table's parts; by default the seed, and a trained model keeps its own
    dequantise: bool = False  # add to each column of rows uniform noise of its own resolution
    max_correlation: float | None = None  # of two columns that correlate more strongly, one is dropped
    samples_per_shard: int = 8192
    num_writers: int | None = None  # processes that write a store; by default one a core
    # A folder on each machine's own disk where shards are kept once they are read, for a store that is on no disk; all
    # trials of a machine share it, and later sweeps find it filled. By default there is none.
    cache: str | None = None
    cache_limit_gib: float = 64.0  # GiB of shards in it at most; those that were not used for longest make room
    # Shards that are fetched before they are wanted; 0 fetches each when it is. By default as many as a window of the
    # order has (128 MiB decoded, one at least) for a store behind a network, and none for others.
    prefetch_shards: int | None = None
    # Seconds that one request of a store may take, such as a shard, with all tries; then its storage counts as hung.
    # Keep it below scale.timeout: else the worker counts as hung first, and no line names the storage.
    timeout: float = 300.0
    # Shards that may turn out damaged or gone while a model is trained; samples of others take their places.
    max_bad_shards: int = 0
    # Whether each training worker keeps the store of images on its device, decoded; batches are the same. By default
    # where it takes at most a quarter of a GPU's free memory, or on the CPU no more than a reader would come to keep.
    device_resident: bool | None = None
    # Loader processes a training worker, for a store that is not held; 0 reads in the worker itself. By default one for
    # a GPU, so that batches are read ahead, and none on the CPU, where it would take a core from training.
    num_workers: int | None = None
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
class FinalPhase:
    """The energy trained on alone, on the base as it ended, for train.final_energy_steps at most."""

    energy_lr: float | None = None  # by default the energy's own, without the schedule's factor
    penalty: float | None = None  # weight of the penalty; by default train.penalty
    check_every: int = 25  # energy steps between two looks at held-out data
    patience: int = 3  # looks without a better held-out KALE that end it, with the best kept; 0 takes all steps
    before_evaluations: bool = False  # also before each evaluation on the way, and training resumes from there


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
    schedule: str = "constant"  # of both learning rates; linear or cosine, down to zero at the last base step
    beta1: float = 0.5
    beta2: float = 0.999
    # Bounds what one batch can do to the energy: clip (to a norm of 1), arbel (the authors' transform), none.
    gradient_guard: str = "clip"
    weight_decay: float = 0.0  # L2 of the energy's weights
    objective: str = (
        "kale_fenchel"  # kale_dv, gan, hinge, wasserstein; cd, pcd; of flows ml, ml_kale, cd_data, pcd_data
    )
    negatives: Negatives = field(default_factory=Negatives)
    train_base: bool = True  # false: the energy alone learns, for example on the base of a checkpoint=...
    penalty: float | None = None  # weight of the penalty; by default 1, and 10 of wgan_gp
    penalty_kind: str = "gradient"  # at interpolates; wgan_gp, r1, r2, l2, none
    penalty_every: int = 1  # energy steps; above one the penalty is lazy, and as much heavier when it comes
    final_energy_steps: int = 0  # energy steps after the last base step, on the base as it ended; see final_phase
    final_phase: FinalPhase = field(default_factory=FinalPhase)
    log_partition_samples: int = 1024  # base samples that initialise the log-partition; 0 starts it at zero
    ema_decay: float | None = None  # exponential moving average of the base's weights, a step
    precision: str = "auto"  # float32, bfloat16; auto takes bfloat16 for images on a GPU that has it
    memory_format: str = "auto"  # of weights and images: channels_last, contiguous; auto is the first, for images
    report_every: int = 50  # base steps between two progress reports
    # Times that a trial whose loss is no longer finite goes on from its last checkpoint, at half its learning rates.
    max_nonfinite_restarts: int = 0
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
    # Of the networks: float32, bfloat16; auto takes bfloat16 for images where the hardware has it, with ula and kla.
    precision: str = "auto"


@dataclass
class Evaluation:
    """What is measured, and how often."""

    every: int = 5000  # base steps between two evaluations; the last step is always evaluated
    num_samples: int = 10_000  # images a FID
    # Of the latents that chains start from and of their noise; by default the seed. sweeps=mcmc has another, so that a
    # sampler is not chosen by the latents that it is scored on later.
    seed: int | None = None
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
class Checkpointing:
    """What a trial that was interrupted goes on from."""

    every: int | None = None  # base steps between two checkpoints; there is one at each evaluation in any case
    on_failure: str = "stop"  # when one cannot be written: stop, or continue without it


@dataclass
class Scale:
    """What a trial runs on."""

    num_workers: int = 1
    # Elastic: a trial runs on as many workers as there is room for, from this number to num_workers, and what it learns
    # is the same; by default always on num_workers.
    min_workers: int | None = None
    use_gpu: bool | None = None  # by default, whether the cluster has GPUs
    cpus_per_worker: int = 1
    timeout: float = 1800.0  # seconds without a sign of life after which a worker counts as hung
    max_restarts: int = 3  # times that a trial whose workers died or hung goes on from its last checkpoint


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
    register: bool = True  # the best trial's model goes into the registry, under the experiment's name
    flush_timeout: float = 60.0  # seconds that a finished sweep waits for a tracker that does not answer


@dataclass
class Sweep:
    """How to search. ``sweeps/*.yaml`` fills this in."""

    search: str = "random"  # random, grid, optuna
    scheduler: str = "none"  # asha, pbt, none
    num_trials: int = 1
    grid_size: int = 3  # values a continuous range becomes in a grid
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
    checkpoints: Checkpointing = field(default_factory=Checkpointing)
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
    log: str | None = None  # a file that gets a line of JSON for each event, or - for standard output, without others


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
    # Hydra neither moves us to a folder of its own nor writes one: the results' folder is ours.
    hydra: Any = field(default_factory=lambda: {"run": {"dir": "."}, "output_subdir": None})


ConfigStore.instance().store(name=CONFIG_NAME, node=Primary)
