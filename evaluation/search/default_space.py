"""What is searched where a study file does not say: a space that tells the kinds apart."""

from __future__ import annotations

import tomllib
from typing import Any

TEXT = """
[[defense]]
name = "DP-SGD z = {noise_multiplier}, clip {max_grad_norm}"
dp.noise_multiplier = { low = 0.25, high = 8.0, log = true }
dp.max_grad_norm = { low = 0.1, high = 4.0, log = true }

[[defense]]
name = "top-k {ratio}"
transform = [{ KeepTopK = { ratio = { low = 1e-4, high = 0.1, log = true }, scope = "global" } }]

[[defense]]
name = "top-k {ratio} + error feedback"
[[defense.transform]]
ErrorFeedback.transform.KeepTopK = { ratio = { low = 1e-4, high = 0.1, log = true } }

[[defense]]
name = "{bits}-bit QSGD"
transform = [{ Quantize = { bits = { low = 2, high = 8 } } }]

[[defense]]
name = "noise {stddev}"
transform = [{ AddGaussian = { stddev = { low = 1e-3, high = 1.0, log = true } } }]

[[defense]]
name = "DP-SGD z = {noise_multiplier}, clip {max_grad_norm}, top-k {ratio}"
dp.noise_multiplier = { low = 0.25, high = 8.0, log = true }
dp.max_grad_norm = { low = 0.1, high = 4.0, log = true }
transform = [{ KeepTopK = { ratio = { low = 0.01, high = 0.5, log = true }, scope = "global" } }]
"""


def default_search() -> dict[str, Any]:
    """The ``[search]`` section of a study that has none, as plain data."""
    return tomllib.loads(TEXT)
