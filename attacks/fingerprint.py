"""Digests of models and tensors: whether what was computed before still holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def fingerprint(model: nn.Module) -> bytes:
    """A digest of the model's type, parameters and buffers."""
    return str(type(model)).encode() + digest_of(model.state_dict())


def digest_of(tensors: Mapping[str, Tensor] | Mapping[str, Tensor | None]) -> bytes:
    """A digest of names, shapes, types and values."""
    digest = hashlib.blake2b(digest_size=32)
    for name, tensor in tensors.items():
        if tensor is None:
            digest.update(f"{name} whole".encode())
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        # Not `contiguous`, which leaves one element of an expanded tensor as it is.
        flat = tensor.detach().cpu().reshape(-1).clone(memory_format=torch.contiguous_format)
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.digest()
