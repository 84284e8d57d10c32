"""Names of metrics in the tracker: each has a group, and those of features their extractor."""

from __future__ import annotations

import pytest

from pipeline.tracking.metric_names import metric_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("held_out_kale", "kale/held_out_kale"),
        ("train_kale", "kale/train_kale"),
        ("energy_spread", "kale/energy_spread"),
        ("energy_second_moment", "kale/energy_second_moment"),
        ("weights_ess", "kale/weights_ess"),
        ("floor_share", "kale/floor_share"),
        ("final_energy_steps_taken", "kale/final_energy_steps_taken"),
        ("largest_energy_loss", "train/largest_energy_loss"),
        ("fid_weighted", "fid/weighted.any-1a2b"),
        ("precision_weighted", "precision/weighted.any-1a2b"),
        ("is_std_weighted", "is_std/weighted.any-1a2b"),
        ("distance_weighted", "distance/weighted"),
        ("distance_validation_weighted", "distance/validation_weighted"),
        ("off_support_weighted", "off_support/weighted"),
        ("beta", "mcmc/beta"),
    ],
)
def test_a_metric_is_in_its_group(name, expected):
    assert metric_name(name, "any-1a2b") == expected
