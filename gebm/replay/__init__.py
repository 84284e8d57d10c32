"""Steps that are recorded once and replayed, as CUDA graphs or compiled, once they are seen to compute the same.

- :mod:`gebm.replay.replays`: which steps are replayed, and how that is decided.
- :mod:`gebm.replay.recording`: a step as a pure function of static tensors, and its recording.
- :mod:`gebm.replay.tape`: the random numbers of a recorded step, which each replay draws anew.
- :mod:`gebm.replay.watch`: what must not happen in a step that is recorded, such as a wait for the device.
- :mod:`gebm.replay.compiled`: a recorded step with its backward passes as one graph, compiled.
- :mod:`gebm.replay.agreement`: the comparison with the plain step, within what rounding changes of it, which
  :mod:`gebm.replay.roundings` measures.
"""

from __future__ import annotations

from gebm.replay.recording import Step
from gebm.replay.replays import MODES, Replays

__all__ = ["MODES", "Replays", "Step"]
