"""How the tracker calls a metric: its UI groups names by all that stands before the last slash, so each has one."""

from __future__ import annotations

__all__ = ["SKIPPED", "metric_name"]

# What a trial's report has besides: of the sampler, unless it is named here.
_GROUPS = {
    "energy_loss": "train",
    "base_loss": "train",
    "penalty": "train",
    "energy_lr": "train",
    "base_lr": "train",
    "bad_shards": "train",
    "largest_energy_loss": "train",
    "energy_data": "kale",
    "energy_base": "kale",
    "held_out_kale": "kale",
    "train_kale": "kale",
    "energy_spread": "kale",
    "energy_second_moment": "kale",
    "weights_ess": "kale",
    "floor_share": "kale",
    "final_energy_steps_taken": "kale",
    "base_steps_per_second": "rate",
    "images_per_second": "rate",
    "flops_per_second": "rate",
    "fraction_of_peak": "rate",
    "evaluation_seconds": "rate",
}
_OF_FEATURES = ("fid", "kid", "kid_std", "is", "is_std", "precision", "recall", "nearest")
_OF_SAMPLES = ("nll", "distance", "off_support")  # what needs no extractor
# What is scored: the base, the GEBM's chains, and the base's samples weighted by exp(-E), which is the GEBM at beta 1.
_MODELS = ("base", "gebm", "weighted")

SKIPPED = ("base_step", "seconds_left", "seconds_an_evaluation")  # numbers of a report that are no metrics


def metric_name(name: str, extractor: str | None) -> str:
    """How the tracker calls a metric; one that depends on a feature extractor carries its name.

    Args:
        name: as a trial reports it; one that has a group already, such as ``system/...``, keeps it.
        extractor: the feature extractor; None where there is none.

    Example:
        >>> metric_name("fid_gebm", "inception-v3-compat"), metric_name("energy_loss", "any")
        ('fid/gebm.inception-v3-compat', 'train/energy_loss')
        >>> metric_name("nll_gebm_validation", None), metric_name("acceptance_rate", None)
        ('nll/gebm_validation', 'mcmc/acceptance_rate')
        >>> metric_name("fid_weighted", "inception-v3-compat"), metric_name("held_out_kale", "any")
        ('fid/weighted.inception-v3-compat', 'kale/held_out_kale')
    """
    if "/" in name:
        return name
    score, _, model = name.rpartition("_")
    if model in _MODELS and score in _OF_FEATURES:
        return f"{score}/{model}.{extractor}"
    for score in _OF_SAMPLES:
        if name.startswith(f"{score}_"):
            return f"{score}/{name.removeprefix(f'{score}_')}"
    if name.startswith("log_partition"):
        return f"kale/{name}"
    return f"{_GROUPS.get(name, 'mcmc')}/{name}"
