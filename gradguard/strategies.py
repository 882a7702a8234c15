"""Hypothesis strategies for gradients and transforms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gradguard.core import Grads, GradTransform, chain
from gradguard.serialization import TRANSFORMS
from gradguard.transforms.error_feedback import ErrorFeedback
from gradguard.transforms.momentum_correction import MomentumCorrection
from gradguard.transforms.routing import Only, Withhold
from gradguard.transforms.warm_up import WarmUp

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

_PATTERNS = ("*", "body.*", "head.*", "*.bias")  # each matches example_parameters()


def grads(*, max_tensors: int = 4, max_abs: float = 100.0) -> SearchStrategy[Grads]:
    """Gradients of one step: absent, empty, 0-d, half precision, strided and tied ones included.

    Args:
        max_tensors: At most so many parameters; at least one.
        max_abs: Bound on magnitudes; the default fits every format that ``Cast`` knows.
    """
    st = _strategies_module()
    one = st.one_of(st.none(), _tensors(max_abs))
    found: SearchStrategy[Grads] = st.lists(one, min_size=1, max_size=max_tensors)
    return found


def transforms(*names: str) -> SearchStrategy[GradTransform]:
    """Transforms with valid parameters: all exported ones and chains, or those named.

    Patterns of ``Only`` and ``Withhold`` match the names of
    :func:`gradguard.testing.example_parameters`.
    """
    st = _strategies_module()
    known = _leaves() | _wrappers()
    missing = [name for name in names or TRANSFORMS if name not in known]
    if missing:
        raise KeyError(f"no strategy makes {', '.join(missing)}; add one in gradguard.strategies")
    one: SearchStrategy[GradTransform] = st.one_of(*(known[n] for n in names or TRANSFORMS))
    if names:
        return one
    several: SearchStrategy[GradTransform] = st.lists(one, max_size=3).map(lambda ts: chain(*ts))
    return one | several


def _tensors(max_abs: float) -> SearchStrategy[Tensor]:
    from hypothesis.extra import numpy as hnp

    st = _strategies_module()

    def tensor(width: int, shape: tuple[int, ...], layout: str) -> SearchStrategy[Tensor]:
        bound = float(np.dtype(f"f{width // 8}").type(max_abs))
        free = st.floats(-bound, bound, width=width, allow_subnormal=False)
        tied = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5])
        values = hnp.arrays(f"f{width // 8}", shape, elements=st.one_of(free, tied))
        return values.map(lambda a: _laid_out(torch.from_numpy(a.copy()), layout))

    found: SearchStrategy[Tensor] = st.tuples(
        st.sampled_from([16, 32, 64]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
        st.sampled_from(["contiguous", "transposed", "channels_last", "bfloat16"]),
    ).flatmap(lambda args: tensor(*args))
    return found


def _laid_out(tensor: Tensor, layout: str) -> Tensor:
    if layout == "transposed" and tensor.ndim >= 2:
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "channels_last" and tensor.ndim == 4:
        return tensor.to(memory_format=torch.channels_last)
    return tensor.bfloat16() if layout == "bfloat16" else tensor


def _leaves() -> dict[str, SearchStrategy[GradTransform]]:
    st = _strategies_module()
    strength = st.floats(1e-3, 10.0)
    ratio = st.floats(0.01, 1.0)
    formats = st.sampled_from(["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8"])
    fields: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "Identity": ((), {}),
        "ClipByGlobalNorm": ((strength,), {}),
        "ClipByValue": ((strength,), {}),
        "KeepTopK": ((ratio,), {"scope": st.sampled_from(["tensor", "global"])}),
        "KeepRandomK": ((ratio,), {}),
        "Quantize": ((st.integers(1, 16),), {}),
        "Ternary": ((), {}),
        "Sign": ((), {}),
        "Cast": ((formats,), {}),
        "LowRank": ((st.integers(1, 4),), {}),
        "AddGaussian": ((strength,), {}),
        "AddLaplace": ((strength,), {}),
        "Withhold": ((st.sampled_from(_PATTERNS),), {}),
    }
    return {name: st.builds(TRANSFORMS[name], *a, **kw) for name, (a, kw) in fields.items()}


def _wrappers() -> dict[str, SearchStrategy[GradTransform]]:
    st = _strategies_module()
    leaves = _leaves()
    silent = st.one_of(*(s for name, s in leaves.items() if not name.startswith("Add")))
    patterns = st.sampled_from(_PATTERNS)
    routed = st.builds(Only, patterns, st.one_of(*leaves.values()))
    warm_up = st.builds(WarmUp, leaves["KeepTopK"], steps=st.integers(1, 3))
    feedback = st.one_of(
        silent, warm_up, st.builds(Only, patterns, silent), st.just(Withhold("head.*"))
    )
    sparse = st.one_of(leaves["KeepTopK"], warm_up, leaves["Sign"])
    correction = st.builds(
        MomentumCorrection,
        st.floats(0.0, 0.9),
        sparse,
        nesterov=st.booleans(),
        masking=st.booleans(),
    )
    return {
        "Only": routed,
        "ErrorFeedback": st.builds(ErrorFeedback, feedback),
        "MomentumCorrection": correction,
        "WarmUp": warm_up,
    }


def _strategies_module() -> Any:
    # Imported on use: hypothesis is no dependency of whoever only trains with gradguard.
    try:
        import hypothesis.strategies as st
    except ImportError as error:
        raise ImportError(
            "gradguard.testing's strategies need hypothesis: pip install 'gradguard[test]'"
        ) from error
    return st
