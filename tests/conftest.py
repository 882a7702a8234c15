"""Settings that every test shares: how hard hypothesis tries, and one thread for torch."""

from __future__ import annotations

import os
import signal

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
