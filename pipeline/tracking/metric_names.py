"""Names of metrics in the tracker, whose UI groups them by what is before the last slash."""

from __future__ import annotations

from pipeline.config import metrics
from pipeline.config.scores import CLASS_FID, ENDS, REPORT_GROUPS, STANDARD_ERROR

__all__ = ["SKIPPED", "best_metric_name", "final_metric_name", "metric_name"]

# The base, the GEBM's chains, and the base's samples weighted by exp(-E), which are the GEBM at beta 1.
_MODELS = (*ENDS, "weighted")

SKIPPED = (
    "base_step",
    "chain_step",
    "seconds_left",
    "seconds_a_step",
    "seconds_an_evaluation",
    "trial_seconds",
    "sweep_seconds",
)
"""Numbers of a report that are not metrics."""


def metric_name(name: str, extractor: str | None) -> str:
    """Return the name of a metric in the tracker; one that depends on a feature extractor ends in its name.

    Args:
        name: Name in a trial's report; one that has a group already, such as ``system/...``, keeps it.
        extractor: The feature extractor; ``None`` where there is none.

    Example:
        >>> metric_name("fid_gebm", "inception-v3-compat"), metric_name("energy_loss", "any")
        ('fid/gebm.inception-v3-compat', 'train/energy_loss')
        >>> metric_name("fid_gebm_standard_error", "inception-v3-compat")
        'fid/gebm_standard_error.inception-v3-compat'
        >>> metric_name("fid_class_3_gebm_standard_error", "inception-v3-compat")
        'fid/class_3_gebm_standard_error.inception-v3-compat'
        >>> metric_name("nll_gebm_validation", None), metric_name("acceptance_rate", None)
        ('nll/gebm_validation', 'mcmc/acceptance_rate')
        >>> metric_name("fid_weighted", "inception-v3-compat"), metric_name("held_out_kale", "any")
        ('fid/weighted.inception-v3-compat', 'kale/held_out_kale')
    """
    if "/" in name:
        return name
    stem = name.removesuffix(STANDARD_ERROR)
    score, _, model = stem.rpartition("_")
    if model in _MODELS and score.startswith(CLASS_FID):
        return f"fid/{score.removeprefix('fid_')}_{model}{name[len(stem) :]}.{extractor}"
    measured_on = metrics.measured_on(score) if model in _MODELS else None
    if measured_on is not None:
        # A metric of images depends on no features.
        end = f".{extractor}" if measured_on == "features" else ""
        return f"{score}/{model}{name[len(stem) :]}{end}"
    for score in metrics.sample_scores():
        if name.startswith(f"{score}_"):
            return f"{score}/{name.removeprefix(f'{score}_')}"
    if name.startswith("log_partition"):
        return f"kale/{name}"
    return f"{REPORT_GROUPS.get(name, 'mcmc')}/{name}"


def best_metric_name(name: str, extractor: str | None) -> str:
    """Return the name in the tracker of a number of a trial's best evaluation, as against its last one.

    Args:
        name: Name in a trial's report.
        extractor: The feature extractor; ``None`` where there is none.

    Example:
        >>> best_metric_name("fid_gebm", "inception-v3-compat")
        'best/fid_gebm.inception-v3-compat'
    """
    return f"best/{metric_name(name, extractor).replace('/', '_')}"


def final_metric_name(name: str, extractor: str | None) -> str:
    """Return the name in the tracker of a number of a finalist's second score.

    Args:
        name: Name in a trial's report.
        extractor: The feature extractor; ``None`` where there is none.

    Example:
        >>> final_metric_name("fid_gebm", "inception-v3-compat")
        'final_fid/gebm.inception-v3-compat'
    """
    return f"final_{metric_name(name, extractor)}"
