"""Keys of ``python -m pipeline.sample``: those of the schema, and the class of the samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf, open_dict

from pipeline.config import compose, schema

__all__ = ["CLASS", "CONFIG_NAME", "SamplingRequest"]

CONFIG_NAME = "gebm_sampling"
CLASS = "class"
"""Key of the class; a word of Python, which no field of a dataclass can be."""

_node = OmegaConf.structured(schema.Primary)
with open_dict(_node):
    _node[CLASS] = None
ConfigStore.instance().store(name=CONFIG_NAME, node=_node)


@dataclass(frozen=True)
class SamplingRequest:
    """Config of a command that samples, and the class that it names.

    Attributes:
        config: The config.
        class_name: Name or number of a class; ``None`` for all, in the data's proportions.
    """

    config: schema.Config
    class_name: str | None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SamplingRequest:
        """Make a request from what Hydra composed.

        Args:
            values: The schema's keys, with ``class``.

        Raises:
            UserError: A key is missing or has an impossible value.
        """
        experiment = {key: value for key, value in values.items() if key != CLASS}
        class_name = values.get(CLASS)
        return cls(compose.from_dict(experiment), None if class_name is None else str(class_name))
