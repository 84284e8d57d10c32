"""The laws that are checked on a GPU, on the CPU: what breaks here would break there too."""

from __future__ import annotations

import pytest
import torch

from tools import gpu_check

# These compile for a minute each; test_compiled.py has what they check, in small.
COMPILING = {"check_listed_training", "check_compiled_training", "check_compiled_chains", "measure_compiled"}
LAWS = [law for law in gpu_check.LAWS if law.check.__name__ not in COMPILING]


@pytest.mark.parametrize("law", LAWS, ids=[law.check.__name__ for law in LAWS])
def test_a_law_of_a_gpu_holds_on_the_cpu(law):
    outcome = gpu_check.try_law(law, torch.device("cpu"))
    assert outcome.holds, outcome.measured
    assert outcome.statement in gpu_check.page([outcome], "software")


def test_a_law_that_is_broken_is_an_outcome_and_no_error():
    def check(device: torch.device) -> str:
        return gpu_check.require(device.type != "cpu", "off by 1.0")

    outcome = gpu_check.try_law(gpu_check.Law("it holds", check), torch.device("cpu"))
    assert not outcome.holds and outcome.measured == "off by 1.0"
    assert "| it holds | **no** |" in gpu_check.page([outcome], "software")


def test_the_laws_that_are_left_out_here_are_there():
    assert {law.check.__name__ for law in gpu_check.LAWS} >= COMPILING
