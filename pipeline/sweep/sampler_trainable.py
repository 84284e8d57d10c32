"""Trainable of Tune for a search over the sampler alone: settings one after another in a process that stays warm.

Nothing is trained, so there is no run of Ray Train, no controller and no worker but Tune's own process, which has the
resources of a worker. Tune gives it one trial after another, and it keeps what it has loaded for the first.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from ray import tune

from pipeline import config as schema
from pipeline.config.plugins import install
from pipeline.runtime.errors import LockLost, UserError, one_line
from pipeline.runtime.redaction import redacted_errors
from pipeline.sweep.own_process import forget_compiled_graphs
from pipeline.sweep.trainable import TRIAL_NAME_KEY, report_end, report_to_tune

if TYPE_CHECKING:
    from pipeline.training.sampler_trials import SamplerTrials

__all__ = ["sampler_trainable"]


def sampler_trainable(params: dict[str, Any], settings: dict[str, Any]) -> None:
    """Try a setting of the sampler, and pass its reports to Tune.

    Args:
        params: Keys of the sampler that the search has set, and the trial's name.
        settings: The experiment as a nested dict, the resources of this process, and the owner of the folder's lock.
    """
    name, config = tune.get_context().get_trial_name(), settings["config"]
    params = {key: value for key, value in params.items() if key != TRIAL_NAME_KEY}
    pass_on = functools.partial(report_to_tune, with_checkpoint=False)
    try:
        with redacted_errors():
            trials = _loaded(json.dumps(settings, sort_keys=True))
            forget_compiled_graphs()
            prunes = config["sweep"]["scheduler"] == "asha"
            report = trials.run(params, f"{config['output']}/trials/{name}", pass_on if prunes else None)
    except (UserError, LockLost) as error:
        report_end("error", str(error))
        return
    except Exception as error:
        report_end("failure", f"{type(error).__name__}: {one_line(error)}")
        raise
    pass_on(report)


# A process has the trials of one sweep.
@functools.lru_cache(1)
def _loaded(settings: str) -> SamplerTrials:
    """Load what all settings share; where that fails, the next one tries again."""
    from pipeline.training.sampler_trials import SamplerTrials
    from pipeline.training.worker import Worker

    values = json.loads(settings)
    install(values["plugins"])
    worker = Worker.alone(values["worker"].get("GPU", 0))
    return SamplerTrials(schema.from_dict(values["config"]), values["owner"], worker)
