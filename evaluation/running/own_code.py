"""What no version number stands for: the code of a user's own transforms and models.

A result that is taken for that of other code would be a wrong statement about what leaks. So
code is recognised in three ways, by its source, by what its objects hold and by what it does to a
few images, and what cannot be recognised is never taken from a store.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import pickle
import uuid
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from gradguard import Defense
from gradguard.evaluation.running.bench import Bench
from gradguard.evaluation.running.memo import GradientMemo, MemoisedClient

PROBED = 8
"""Images in the probe; the same whatever is attacked, so that a study can grow."""

ROUNDS = 3
"""Messages in the probe: a transform may do in later rounds what it does not in the first."""

HELD_BYTES = 2**27
"""Gradients that the rounds of a probe share; those of a larger model are computed again."""

IN_THE_WEIGHTS = ("_parameters", "_modules", "_non_persistent_buffers_set")
"""What a layer holds that its model's state and other layers say already.

The last is a set of names, which has another order in every process.
"""


def digest(*parts: bytes) -> str:
    """A hash of parts that keeps them apart.

    >>> digest(b"ab", b"c") == digest(b"a", b"bc"), len(digest(b""))
    (False, 40)
    """
    hashed = hashlib.blake2b(digest_size=20)
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little"))
        hashed.update(part)
    return hashed.hexdigest()


def content(value: object) -> str:
    """A hash of an object's content, and of the modules of every class and function in it.

    Guarantees:

    - equal content gives an equal hash in every process, as far as pickle does;
    - another ``update``, another number in a field, at whatever depth, gives another one; so does
      another helper or constant in the module of such a class;
    - what cannot be pickled, or has no source, gets a hash that no other call gives.

    Not guaranteed: that a change in a module that such a module imports is noticed.
    """
    collected = _Collector(io.BytesIO())
    try:
        collected.dump(value)  # hashed, never loaded
        sources = [source(code) for code in collected.code]
    except Exception:  # whatever the user's own __reduce__ raises
        return _unknown()
    return digest(collected.file.getvalue(), *sources)


def source(code: Any) -> bytes:
    """The text of the module of a function, or of those of a class and its bases.

    The whole of it: the helpers and constants that they use may matter in a later round alone.

    Raises:
        OSError, TypeError: There is none, as for what was typed into an interpreter.
    """
    links = inspect.getmro(code) if isinstance(code, type) else (code,)
    modules = {inspect.getmodule(link): None for link in links if not _versioned(link)}
    # A link without a module has None here, of which there is no source either.
    return "\n".join(inspect.getsource(cast(ModuleType, module)) for module in modules).encode()


def model_code(model: nn.Module) -> str:
    """A hash of all layers that are not torch's: their source, and what they hold beside weights.

    Guarantees:

    - another value of an attribute, which may act in evaluation mode alone, gives another hash;
    - layers without source, or with what cannot be pickled, get a hash that no other call gives.
    """
    layers = [layer for layer in model.modules() if not _versioned(type(layer))]
    kinds = {type(layer): None for layer in layers}
    try:
        sources = [source(kind) for kind in kinds]
    except (OSError, TypeError):
        return _unknown()
    held = [
        {name: value for name, value in vars(layer).items() if name not in IN_THE_WEIGHTS}
        for layer in layers
    ]
    names = (type(layer).__qualname__ for layer in layers)
    parts = (part.encode() for pair in zip(names, map(content, held), strict=True) for part in pair)
    return digest(*sources, *parts)


def evaluated(bench: Bench, repeat: int) -> str:
    """A hash of what the fresh model of ``repeat`` answers to a few images in evaluation mode."""
    model = bench.fresh_model(repeat).eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return digest(*raw(model(bench.data.images[:PROBED])))
    except Exception:  # as in a probe
        return _unknown()


def probe(bench: Bench, defense: Defense, repeat: int) -> str:
    """A hash of a client's first messages of a few images, at the fresh model of ``repeat``.

    Two factories with the same weights may make models with other activations, and a transform may
    call what has changed: neither is in any source that :func:`content` sees.
    """
    inputs, labels = bench.data.images[:PROBED], bench.data.labels[:PROBED]
    client = defense.client(
        bench.fresh_model(repeat),
        loss=bench.study.training.criterion,
        seed=0,
        training=bench.study.client,
    )
    try:
        memoised = MemoisedClient(client, GradientMemo(HELD_BYTES))
        messages = list(memoised.rounds(inputs, labels, ROUNDS))
    except Exception:  # a model or a transform that cannot do with these images may raise anything
        return _unknown()
    sent = (entry for message in messages for entry in message.items())
    return digest(*(part for name, tensor in sent for part in (name.encode(), *raw(tensor))))


def raw(tensor: Tensor) -> tuple[bytes, bytes]:
    """Shape and type of a tensor, and its bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return f"{tuple(tensor.shape)}{tensor.dtype}".encode(), flat.view(torch.uint8).numpy().tobytes()


class _Collector(pickle.Pickler):
    """A pickler that keeps every class and function that it meets."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=4)
        self.file, self.code = file, dict[Any, None]()

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            # torch pickles addresses in memory with it.
            return tuple, (raw(value),)
        if (isinstance(value, type) or inspect.isroutine(value)) and not _versioned(value):
            self.code[value] = None
        return NotImplemented


def _versioned(code: Any) -> bool:
    """Whether it belongs to what a unit's hash names by its version, or to Python."""
    package = (getattr(code, "__module__", None) or "builtins").partition(".")[0]
    return package in {"builtins", "typing", "abc", "copyreg", "gradguard", "torch", "numpy"}


def _unknown() -> str:
    return f"unknown: {uuid.uuid4().hex}"
