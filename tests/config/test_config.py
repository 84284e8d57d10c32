"""Experiments and searches compose and hold what they promise; what cannot run is refused by name."""

from __future__ import annotations

import math

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gebm import penalties, samplers
from pipeline import config as schema
from pipeline.config import metrics, precision
from pipeline.config.kernels import kernel_settings
from pipeline.config.validation import validate, validate_rules
from pipeline.runtime.errors import UserError
from pipeline.sweep.search_space import parse_space
from pipeline.training.build_model import build_model

PAPERS = ("cifar10", "lsun", "celeba", "imagenet32")
TABLES = ("redwine", "whitewine", "parkinsons", "hepmass", "miniboone")


def composed(*overrides: str) -> schema.Config:
    """What Hydra makes of these overrides, from the real files."""
    with initialize_config_dir(str(schema.config_root()), version_base="1.3"):
        values = OmegaConf.to_container(
            compose(config_name=schema.CONFIG_NAME, overrides=list(overrides)), resolve=True
        )
    return schema.from_dict({key: value for key, value in values.items() if key not in schema.HYDRA_KEYS})


@pytest.mark.parametrize("search", sorted(schema.searches()))
@pytest.mark.parametrize("experiment", sorted(schema.experiments()))
def test_every_experiment_composes_with_every_search(experiment, search):
    if search == "mcmc" and experiment in TABLES:  # no sampler has a part in a likelihood
        with pytest.raises(OmegaConfBaseException, match=r"spaces\.sampler"):
            composed(f"conf={experiment}", f"sweeps={search}")
        return
    config = composed(f"conf={experiment}", f"sweeps={search}")
    validate(config)
    assert config.name == experiment
    purpose = {"mcmc": "sampler", "comparison": "comparison"}.get(search, "training")
    kernels = ["ula", "kla"] if purpose == "sampler" else [config.sampler.name]
    keys = []
    for key, form in config.spaces[purpose].items():
        by_kernel = [f"sampler.{name}.{key.removeprefix('sampler.')}" for name in kernels if name in form]
        keys += by_kernel if set(form) <= set(samplers.NAMES) else [key]
    assert list(parse_space(config)) == keys


def test_every_experiment_and_search_says_what_it_is():
    assert set(schema.experiments()) == {"digits", "toy", *PAPERS, *TABLES}
    assert {"asha", "comparison", "grid", "mcmc", "optuna", "pbt", "random"} == set(schema.searches())
    assert all({**schema.experiments(), **schema.searches()}.values())


def test_a_word_of_the_command_line_overrides_experiment_and_search():
    config = composed("conf=lsun", "sweeps=random", "sweep.num_trials=3", "train.energy_lr=1e-5")
    assert (config.sweep.num_trials, config.train.energy_lr) == (3, 1e-5)


@pytest.mark.parametrize("value", ["auto", "true", "false"])
def test_a_choice_between_a_name_and_truth_values_takes_them_from_the_command_line(value):
    config = composed(f"sampler.cuda_graphs={value}", f"train.compile={value}")
    validate(config)
    expected = {"auto": "auto", "true": True, "false": False}[value]
    assert config.sampler.cuda_graphs == config.train.compile == expected


@pytest.mark.parametrize("experiment", PAPERS)
def test_the_papers_experiments_carry_the_papers_schedule(experiment):
    config = composed(f"conf={experiment}")
    train, sampler, decay = config.train, kernel_settings(config.sampler), config.train.learning_rate_decay
    assert (train.base_steps, train.batch_size, train.latent_batch_size) == (150_000, 128, None)
    assert (train.energy_steps, train.warmup_energy_steps) == (5, 100)
    assert (train.warmup_base_steps, train.warmup_every) == (2, 500)
    assert (train.energy_lr, train.base_lr, train.beta1, train.beta2) == (1e-4, 1e-4, 0.5, 0.999)
    penalty = penalties.make(train.penalty_kind, train.penalty, train.penalty_every)
    assert (train.objective, penalty) == ("kale_fenchel", penalties.GradientPenalty(1.0))
    assert (decay.factor, decay.every, decay.lag, decay.patience) == (0.8, 2000, 20_000, 3)
    assert (config.model.latent_dim, build_model(config).energy.floor) == (100, -10.0)
    assert (config.data.resolution, config.data.channels) == (32, 3)
    # The paper's step 1e-4 has h/2 before the gradient and sqrt(h) before the noise; here they are h and sqrt(2h).
    assert (sampler.name, 2 * sampler.step_size, sampler.num_steps) == ("ula", 1e-4, 1000)
    assert (sampler.beta, sampler.decay, sampler.decay_every) == (100.0, 0.1, 200)
    # KLA's is a time, 2 (1e-4)^(1/2), and its square decays.
    kinetic = kernel_settings(composed(f"conf={experiment}", "sampler.name=kla").sampler)
    assert (kinetic.step_size, kinetic.friction) == (2 * math.sqrt(1e-4), 100.0)
    assert (round(kinetic.decay**2, 12), kinetic.decay_every, kinetic.num_steps) == (0.1, 200, 1000)
    assert config.evaluation.extractor == "inception-v3-compat"
    assert (train.precision, sampler.precision) == ("float32", "float32")


@pytest.mark.parametrize("networks", ["sngan_convnet", "sngan_resnet"])
@pytest.mark.parametrize("experiment", PAPERS)
def test_both_sngans_build_for_the_papers_experiments(experiment, networks):
    config = composed(f"conf={experiment}", f"model.networks={networks}")
    validate(config)
    with torch.device("meta"):
        model = build_model(config)
        images = model.base(torch.zeros(2, 100))
        assert images.shape == (2, 3, 32, 32)
        assert model.energy(images).shape == (2,)


def test_a_config_survives_its_dict(small):
    for config in (small(), small(train={"ema_decay": 0.999}, sweep={"space": {"seed": {"choice": [1, 2]}}})):
        assert schema.from_dict(schema.to_dict(config)) == config


def test_apply_replaces_keys_and_nothing_else(small):
    config = small()
    changed = schema.apply(config, {"train.energy_lr": 3e-4, "train.ema_decay": 0.9, "sampler.name": "kla"})
    assert (changed.train.energy_lr, changed.train.ema_decay, changed.sampler.name) == (3e-4, 0.9, "kla")
    assert schema.apply(changed, {"train.energy_lr": 1e-4, "train.ema_decay": None, "sampler.name": "ula"}) == config
    assert config == small()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.base_stepz", 1),
        ("nothing", 1),
        ("train.energy_lr.more", 1),
        ("train.energy_lr", "fast"),
        ("data.device_resident", "auto"),
        ("train.batch_size", 1.5),
        ("train", 3),
        ("sampler.name", None),
        ("evaluation.metrics", "fid"),
    ],
)
def test_apply_refuses_unknown_keys_and_wrong_types(small, key, value):
    with pytest.raises(UserError) as refusal:
        schema.apply(small(), {key: value})
    assert key.split(".")[0] in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_group_of_keys_is_no_key(small):
    for key, value in (("train", 3), ("data.source", "digits"), ("sweep", None)):
        with pytest.raises(UserError, match=rf"^{key}={value}: it is a group of keys; name one of them"):
            schema.apply(small(), {key: value})


@pytest.mark.parametrize("values", ["a text", [1], None, {"name": "x", "data": 3}, {"train": {"base_stepz": 1}}])
def test_what_is_no_config_is_refused(values):
    with pytest.raises(UserError) as refusal:
        schema.from_dict(values)
    assert "\n" not in str(refusal.value)


BAD = [
    *((key, value) for key in ("train.energy_lr", "train.base_lr", "sampler.step_size") for value in (0.0, -1.0)),
    *((key, float(value)) for key in ("train.base_lr", "train.penalty", "sampler.beta") for value in ("nan", "inf")),
    *(
        (key, value)
        for key in (
            "data.resolution",
            "data.channels",
            "data.samples_per_shard",
            "data.num_writers",
            "data.cache_limit_gib",
            "data.timeout",
            "model.latent_dim",
            "train.energy_steps",
            "train.warmup_energy_steps",
            "train.warmup_every",
            "train.batch_size",
            "train.latent_batch_size",
            "train.report_every",
            "sampler.num_steps",
            "sampler.num_samples",
            "sampler.decay_every",
            "evaluation.every",
            "evaluation.batch_size",
            "evaluation.chain_points",
            "evaluation.grid",
            "scale.num_workers",
            "scale.min_workers",
            "checkpoints.every",
            "scale.cpus_per_worker",
            "scale.timeout",
            "sweep.num_trials",
            "sweep.grid_size",
            "sweep.grace_steps",
            "sweep.perturbation_steps",
            "sweep.max_concurrent",
            "train.learning_rate_decay.num_samples",
        )
        for value in (0, -3)
    ),
    ("data.num_workers", -1),
    ("data.max_bad_shards", -1),
    ("data.prefetch_shards", -1),
    ("data.cache", "cache"),
    ("data.cache", "s3://bucket/cache"),
    ("data.cache", ""),
    ("train.max_nonfinite_restarts", -1),
    ("checkpoints.on_failure", "retry"),
    ("data.encoding", "jpeg"),
    ("model.networks", "unet"),
    ("model.networks", "mlp"),
    ("model.width", 0),
    ("model.energy_floor", float("nan")),
    ("train.base_steps", -1),
    ("train.warmup_base_steps", -1),
    ("train.log_partition_samples", -1),
    ("train.log_partition_samples", 1),
    ("train.weight_decay", -0.1),
    ("train.beta1", 1.0),
    ("train.beta2", -0.1),
    ("train.objective", "wgan"),
    ("train.precision", "float16"),
    ("train.memory_format", "nhwc"),
    ("sampler.precision", "float16"),
    ("sampler.cuda_graphs", "always"),
    ("sampler.compile", "always"),
    ("train.compile", "always"),
    ("train.ema_decay", 1.0),
    ("train.learning_rate_decay.factor", 1.5),
    ("train.learning_rate_decay.patience", 0),
    ("train.learning_rate_decay.lag", 3),
    ("sampler.name", "nuts"),
    ("sampler.decay", 0.0),
    ("sampler.decay", 2.0),
    ("sampler.beta", -1.0),
    ("sampler.friction", -1.0),
    ("evaluation.num_samples", 1),
    ("evaluation.final_samples", 1),
    ("sweep.finalists", -1),
    ("evaluation.metrics", ["fid", "lpips"]),
    ("task", "video"),
    ("model.energy", "cnn"),
    ("train.penalty_kind", "r3"),
    ("train.penalty_every", 0),
    ("train.negatives.sampler", "imh"),
    ("train.negatives.step_size", 0.0),
    ("train.negatives.num_steps", 0),
    ("data.max_correlation", -0.5),
    ("sweep.search", "bayes"),
    ("sweep.scheduler", "median"),
    ("sweep.mode", "least"),
    ("sweep.metric", "loss"),
    ("sweep.metric", "kid_gebm"),
    ("sweep.reduction_factor", 1),
    ("seed", -1),
    ("seed", 2**32),
]


@pytest.mark.parametrize(("key", "value"), BAD, ids=[f"{key}={value}" for key, value in BAD])
def test_each_refusal_is_one_line_that_names_its_key(small, key, value):
    with pytest.raises(UserError) as refusal:
        validate(schema.apply(small(), {key: value}))
    line = str(refusal.value)
    assert "\n" not in line
    group, _, name = key.rpartition(".")
    assert line.startswith((key, group or key)) and name in line


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"data.resolution": 9}, "resolution"),
        ({"model.networks": "sngan_resnet"}, "resolution"),
        ({"sampler.name": "kla", "sampler.friction": 0.0}, "friction"),
        ({"scale.num_workers": 3}, "train.batch_size"),
        ({"train.latent_batch_size": 129, "scale.num_workers": 2}, "train.latent_batch_size"),
        ({"scale.min_workers": 2}, "scale.min_workers=2: it cannot be more than scale.num_workers=1"),
        ({"scale.min_workers": 2, "scale.num_workers": 4}, "make it a multiple of 12"),
        ({"evaluation.metrics": ["is"], "evaluation.num_samples": 5}, "evaluation.num_samples"),
        (
            {"evaluation.fid_infinity": True, "evaluation.num_samples": 149},
            "evaluation.fid_infinity=true: it needs 150",
        ),
        ({"sweep.search": "optuna", "sweep.scheduler": "pbt"}, "sweep.search=optuna"),
        ({"ray.address": "ray://head:10001"}, "ray.address=ray://head:10001"),
        ({"train.learning_rate_decay.num_samples": 1}, "train.learning_rate_decay"),
        ({"model.energy_offset": 1.0}, "has an energy of its own; set model.energy_offset=0.0"),
        ({"model.energy": "mlp"}, "model.networks=dcgan has an energy of its own; set model.energy=null"),
        ({"data.split_seed": -1}, "data.split_seed"),
        ({"data.device_resident": True, "data.num_workers": 2}, "data.num_workers=2: with data.device_resident=true"),
        (
            {"data.lanes": 6, "scale.num_workers": 4},
            "data.lanes=6 cannot be shared out evenly among scale.num_workers=4: make it a multiple of 4, such as 8, "
            "or 1",
        ),
        (
            {
                "data.device_resident": False,
                "train.batch_size": 126,
                "scale.num_workers": 3,
                "scale.min_workers": 2,
            },
            "make it a multiple of 6, such as 66, or 1",
        ),
        ({"train.objective": "ml"}, "train.objective=ml: it needs a base with a density"),
        ({"train.objective": "pcd_data"}, "train.objective=pcd_data: it needs a base with a density"),
        ({"task": "density"}, "model.networks=dcgan: it has to be one of gaussian, realnvp"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(small, overrides, named):
    with pytest.raises(UserError, match=named) as refusal:
        validate(schema.apply(small(), overrides))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"sampler.precision": "bfloat16", "sampler.name": "mala"}, "sampler.name=mala for task=images needs float32"),
        ({"sampler.precision": "bfloat16", "sampler.name": "descent"}, "only ula, kla, ddls"),
        ({"sampler.precision": "tf32", "sampler.name": "hmc"}, "sampler.name=hmc for task=images needs float32"),
        ({"evaluation.log_partition": "annealed", "sampler.name": "mala"}, "task=images has no likelihood"),
    ],
)
def test_what_does_not_go_together_is_refused(small, overrides, expected):
    with pytest.raises(UserError) as refusal:
        validate(schema.apply(small(), overrides))
    assert expected in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["ula", "kla", "mala", "hmc", "dot", "descent"])
def test_no_kernel_that_needs_float32_gets_less_by_default(small, name):
    dtype = precision.sampling_dtype(schema.apply(small(), {"sampler.name": name}), torch.device("cpu"))
    assert dtype in ((torch.float32, torch.bfloat16) if name in ("ula", "kla") else (torch.float32,))
    for requested in ("float32", "tf32", "bfloat16"):
        config = schema.apply(
            small(), {"sampler.name": name, "sampler.precision": requested, "train.precision": requested}
        )
        assert precision.sampling_precision(config, torch.device("cpu")) == requested
        assert precision.training_precision(config, torch.device("cpu")) == requested
    assert precision.training_precision(small(), torch.device("cpu")) == "float32"


def test_rows_are_always_held():
    for experiment in ("redwine", "toy"):
        validate(composed(f"conf={experiment}", "data.device_resident=true"))
        with pytest.raises(UserError, match=r"^data\.device_resident=false: .* leave it out$"):
            validate(composed(f"conf={experiment}", "data.device_resident=false"))


BEST = {"fid": "min", "kid": "min", "fid_infinity": "min"} | dict.fromkeys(
    ("is", "precision", "recall", "density", "coverage"), "max"
)
RANKED = {f"{score}_{end}": mode for score, mode in BEST.items() for end in ("base", "gebm")}


@pytest.mark.parametrize("name", RANKED)
def test_the_best_score_is_on_its_own_side(small, name):
    of_all = {"evaluation.metrics": list(metrics.BUILTIN), "evaluation.fid_infinity": True}
    for mode in ("min", "max"):
        values = schema.apply(small(), {**of_all, "sweep.metric": name, "sweep.mode": mode})
        if mode == RANKED[name]:
            validate_rules(values)
            continue
        side = "lower" if mode == "max" else "higher"
        with pytest.raises(UserError, match=f"^sweep.mode={mode}: {name} is better the {side} it is; use sweep.mode="):
            validate_rules(values)


@pytest.mark.parametrize(
    ("experiment", "score"), [("redwine", "nll_gebm_validation"), ("toy", "distance_validation_base")]
)
def test_of_a_likelihood_or_a_distance_less_is_better(experiment, score):
    values = schema.apply(composed(f"conf={experiment}"), {"sweep.metric": score})
    validate_rules(values)
    with pytest.raises(UserError, match=f"^sweep.mode=max: {score} is better the lower it is; use sweep.mode=min$"):
        validate_rules(schema.apply(values, {"sweep.mode": "max"}))


def test_what_can_run_is_not_refused(small):
    for overrides in (
        {"train.base_steps": 0},
        {"train.penalty": 0.0, "train.log_partition_samples": 0, "train.warmup_base_steps": 0},
        {"sampler.beta": 0.0, "sampler.friction": 0.0},
        {"data.device_resident": True, "data.num_workers": 0},
        {"data.device_resident": False, "data.num_workers": 2},
        {"data.num_workers": 2},
        {"data.lanes": 6, "scale.num_workers": 2},
        {"data.lanes": 1, "data.device_resident": False, "train.batch_size": 126, "scale.num_workers": 3},
        {"train.objective": "wasserstein", "model.energy_floor": float("-inf")},
        {"train.batch_size": 126, "scale.num_workers": 3, "train.latent_batch_size": 252},
        {"sweep.metric": "precision_gebm", "sweep.mode": "max", "evaluation.metrics": ["prc"]},
        *({"sampler.name": name} for name in ("kla", "mala", "hmc", "rwm", "imh", "dot", "descent")),
    ):
        validate(schema.apply(small(), overrides))
