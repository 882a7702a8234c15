"""The server's counterpart of a guarded site: from gradguard's bytes back to a WEIGHT_DIFF."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.dxo_filter import DXOFilter
from nvflare.apis.filter import ContentBlockedException
from nvflare.apis.fl_constant import FilterKey, FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.model import ModelLearnableKey
from nvflare.app_common.app_constant import AppConstants
from torch import Tensor

from gradguard.finite import is_finite
from gradguard.integrations.nvflare.dxo_arrays import WIRE_KEY, arrays_like, tensors_of
from gradguard.integrations.nvflare.site_settings import named_model
from gradguard.wire import decode

OVERHEAD = 2**20
"""Bytes beyond a model's own that a decoded message may take."""


class DecodingFilter(DXOFilter):  # type: ignore[misc]
    """Turn what a site's ``GuardFilter(wire=true)`` has sent into a ``WEIGHT_DIFF`` of arrays.

    For ``task_result_filters`` of the server, in its ``privacy.json`` or in the job. All results
    that are not gradguard's bytes pass as they are.

    Guarantees:

    - a message that is damaged, hostile, not finite or of another model is blocked, and with it
      this one result: NVFlare hands the controller a ``TASK_RESULT_FILTER_ERROR`` in its place;
    - a message has the model's names, shapes and dtypes, half precision as float32, so that none
      decides in which dtype all are summed;
    - nothing much larger than the model, in at least four bytes a number, is allocated for a
      message.

    Not guaranteed: that the job goes on without that site, which the controller decides
    (``FedAvg``: while ``min_clients`` are left, or with ``ignore_result_error``); that a
    well-formed update is honest.

    Args:
        model: ``"module:factory"`` of the model, if the job's controller keeps none in
            ``GLOBAL_MODEL``, as NVFlare's own do. Only in the server's own file, or in a job that
            may bring code.

    >>> DecodingFilter()
    DecodingFilter(model=None)
    """

    def __init__(self, model: str | None = None) -> None:
        super().__init__(supported_data_kinds=None, data_kinds_to_filter=None)
        if not (model is None or isinstance(model, str)):
            raise ValueError(f"model must be 'module:factory', got {model!r}")
        self.model = model

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """The result, decoded where it is encoded.

        Raises:
            ContentBlockedException: The message cannot be used.
        """
        if shareable.get_return_code() != ReturnCode.OK:
            return shareable
        try:
            dxo = from_shareable(shareable)
        except ValueError:
            return shareable  # no DXO, so not of a GuardFilter
        if dxo.data_kind != DataKind.APP_DEFINED or WIRE_KEY not in _keys(dxo.data):
            return shareable
        try:
            decoded = self.process_dxo(dxo, shareable, fl_ctx)
        except Exception as error:
            raise ContentBlockedException(f"gradguard cannot use this message: {error}") from error
        return decoded.update_shareable(shareable)

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO:
        """The decoded DXO.

        Raises:
            WireError: The bytes are damaged or hostile.
            ValueError: They are no update of the model.
        """
        if fl_ctx.get_prop(FLContextKey.FILTER_DIRECTION) == FilterKey.OUT:
            raise ValueError("put DecodingFilter into the server's task_result_filters")
        payload = dxo.data[WIRE_KEY]
        if len(dxo.data) != 1 or not isinstance(payload, bytes | bytearray | memoryview):
            raise ValueError(f"expected {WIRE_KEY!r} alone, with bytes")
        arrays = self._reference(fl_ctx)
        model = tensors_of(arrays)
        # Changes of half-precision entries have four bytes.
        most = sum(max(t.element_size(), 4) * t.numel() for t in model.values())
        update = _fitted(decode(payload, max_bytes=most + OVERHEAD), model)
        decoded = DXO(DataKind.WEIGHT_DIFF, data=arrays_like(update, arrays), meta=dxo.meta)
        decoded.add_filter_history(type(self).__name__)
        return decoded

    def _reference(self, fl_ctx: FLContext) -> Mapping[str, Any]:
        if self.model is not None:
            return {
                name: t.numpy()
                for name, t in named_model(self.model, self, fl_ctx).state_dict().items()
            }
        learnable = fl_ctx.get_prop(AppConstants.GLOBAL_MODEL)
        weights = learnable.get(ModelLearnableKey.WEIGHTS) if isinstance(learnable, dict) else None
        if not isinstance(weights, Mapping) or not weights:
            raise ValueError(
                "the controller keeps no global model, so that no message can be checked; give "
                "DecodingFilter a model"
            )
        return weights

    def __repr__(self) -> str:
        return f"DecodingFilter(model={self.model!r})"


def _keys(data: object) -> Mapping[str, Any]:
    return data if isinstance(data, Mapping) else {}


def _fitted(update: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if odd := sorted(set(update) ^ set(model)):
        where = "not in the message" if odd[0] in model else "not in the model"
        raise ValueError(f"{odd[0]!r} is {where}")
    return {name: _fitted_entry(name, update[name], of) for name, of in model.items()}


def _fitted_entry(name: str, change: Tensor, of: Tensor) -> Tensor:
    """A change in the dtype of the model, since aggregators sum in that of the first that comes."""
    floats = of.is_floating_point()
    # What the server has averaged is a float here, and may be whole at the site: counters, indices.
    fits = change.dtype != torch.bool if floats else not change.is_floating_point()
    if change.shape != of.shape or not fits:
        raise ValueError(
            f"{name!r} is {change.dtype} of shape {tuple(change.shape)}; expected a change of "
            f"{of.dtype} of shape {tuple(of.shape)}"
        )
    change = change.to(torch.promote_types(of.dtype, torch.float32) if floats else of.dtype)
    if floats and not is_finite(change):  # after the cast, which may overflow
        raise ValueError(f"{name!r} contains NaN or infinity")
    return change
