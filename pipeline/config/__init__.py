"""Config of an experiment: its schema, composition, validation and command line.

``conf/<experiment>.yaml`` says what to run and ``sweeps/<search>.yaml`` how to search; both are Hydra config groups
over the dataclasses of :mod:`pipeline.config.schema`, so an unknown key or a wrong type is refused by name.
:mod:`pipeline.config.validation` checks what a type cannot express.
"""

from __future__ import annotations

from pipeline.config.compose import (
    apply,
    config_root,
    experiments,
    from_dict,
    from_saved,
    monitored_metrics,
    searches,
    to_dict,
)
from pipeline.config.schema import (
    CONFIG_NAME,
    HYDRA_KEYS,
    Checkpointing,
    Config,
    Data,
    Evaluation,
    FinalPhase,
    LearningRateDecay,
    Model,
    Negatives,
    Primary,
    RayCluster,
    Sampler,
    Scale,
    Source,
    Sweep,
    Tracking,
    Train,
)

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
    "apply",
    "config_root",
    "experiments",
    "from_dict",
    "from_saved",
    "monitored_metrics",
    "searches",
    "to_dict",
]
