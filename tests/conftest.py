"""Settings that every test shares: how hard hypothesis tries, one thread, the order of files."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from hypothesis import HealthCheck, settings

# Several test processes may run beside each other; and sums in one order give the same floats.
torch.set_num_threads(1)

# A runner that was started in the background ignores Ctrl-C and hands that down to all that it
# starts, so that the tests of Ctrl-C would wait for a whole study.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: the first example pays for imports. "thorough" is for a change to a transform.
slow_is_fine = [HealthCheck.too_slow]
settings.register_profile(
    "fast", max_examples=25, deadline=None, suppress_health_check=slow_is_fine
)
settings.register_profile("thorough", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))

LONGEST = (
    "tests/controls/test_planted_silence.py",
    "tests/controls/test_planted_leaks.py",
    "tests/controls/test_data_processing.py",
    "tests/integrations/flower/test_simulation.py",
    "tests/integrations/flower/test_deployment.py",
    "tests/attacks/test_learned.py",
    "tests/attacks/test_template_memory.py",
    "tests/controls/test_oracle_gap.py",
)
"""Files that take longest; their order is that in which they start."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that the last process to finish has little left to do."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.nodeid.partition("::")[0], len(ranks)))
