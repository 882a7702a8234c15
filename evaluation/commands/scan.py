"""``gradguard scan``: which labels one update gives away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from gradguard import Defense, LocalTraining
from gradguard.evaluation.commands.evaluate import INTERRUPTED
from gradguard.evaluation.data import Data, load_npz
from gradguard.evaluation.decisions.matching import match
from gradguard.evaluation.decisions.scan import (
    LEAKS,
    NO_DEFENSE,
    NOT_MEASURED,
    NOT_SHOWN,
    UNCLEAR,
    scan,
)
from gradguard.evaluation.decisions.scan_table import print_scan
from gradguard.evaluation.decisions.updates import MAX_BYTES, read_update
from gradguard.evaluation.errors import UnusableInputError, one_line, unknown
from gradguard.evaluation.models import build_model, find_factory
from gradguard.evaluation.progress import Bar
from gradguard.evaluation.specs import check_composition
from gradguard.evaluation.study import Study
from gradguard.evaluation.views.table import make_console

# Of what is not known neither 0, which a script would take for safe, nor 2: the input is in order.
EXIT_CODES = {NOT_SHOWN: 0, LEAKS: 1, UNCLEAR: 3, NOT_MEASURED: 3}


def command(
    update: Annotated[
        Path, typer.Argument(metavar="UPDATE", help="One message: .safetensors, .pt, .npz, wire.")
    ],
    model: Annotated[
        str, typer.Option(metavar="MODULE:FACTORY", help="A function that makes the model.")
    ],
    batch_size: Annotated[int, typer.Option(help="Examples behind the update.")],
    weights: Annotated[
        Path | None, typer.Option(help="The model's state before the round; .safetensors or .pt.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Auxiliary .npz: uint8 images, integer labels.")
    ] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes, without --data.")] = None,
    input_shape: Annotated[
        str | None, typer.Option(metavar="C,H,W", help="Shape of one input, without --data.")
    ] = None,
    defense: Annotated[
        str | None, typer.Option(metavar="STUDY.toml:NAME", help="What the client runs.")
    ] = None,
    composition: Annotated[
        str | None, typer.Option(help="iid, skewed, single, dirichlet:A. Default: a mixture.")
    ] = None,
    local_steps: Annotated[
        int, typer.Option(help="SGD steps on the whole batch behind a change of the model.")
    ] = 1,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of the local steps; without it UPDATE is a gradient.")
    ] = None,
    after_minus_before: Annotated[
        bool, typer.Option(help="UPDATE is that, in place of before minus after.")
    ] = False,
    trials: Annotated[
        int, typer.Option(help="Simulated updates behind every rate; 20 or more.")
    ] = 200,
    seed: Annotated[int, typer.Option(help="Decides every draw.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, with all attackers.")
    ] = False,
    max_bytes: Annotated[int, typer.Option(help="Refuse files of more, unpacked.")] = MAX_BYTES,
) -> None:
    """Tell which labels one update gives away, to whom, and how far to believe it.

    With --data, updates are simulated and success rates counted; without, labels are read but
    no rate is known. Exit code 0: not shown to leak, which is no proof. 1: labels are read
    clearly above a blind guess. 3: unclear, or no rate could be measured. To watch a training
    loop, see gradguard.evaluation.Monitor.
    """
    try:
        net, loaded, shape, count = prepared(
            model, weights, data=data, classes=classes, shape=input_shape, max_bytes=max_bytes
        )
        chosen = NO_DEFENSE if defense is None else named_defense(defense)
        if composition is not None:
            check_composition(composition)
        message = read_update(update, max_bytes=max_bytes)
        if after_minus_before:
            message = {n: -p if p.is_floating_point() else p for n, p in message.items()}
        with Bar(make_console(stderr=True)) as bar:
            found = scan(
                message,
                model=net,
                batch_size=batch_size,
                data=loaded,
                num_classes=count,
                input_shape=shape,
                defense=chosen,
                training=_training(local_steps, learning_rate),
                composition=composition,
                calibration=max(1, trials // 2),
                trials=trials,
                seed=seed,
                progress=bar,
            )
    except KeyboardInterrupt:
        typer.echo("gradguard: interrupted; nothing was found out", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2, allow_nan=False))
    else:
        print_scan(found, make_console(), simulated_as=chosen.name)
    raise typer.Exit(EXIT_CODES[found.verdict])


def prepared(
    factory: str,
    weights: Path | None,
    *,
    data: Path | None,
    classes: int | None,
    shape: str | None,
    max_bytes: int,
) -> tuple[nn.Module, Data | None, tuple[int, ...], int]:
    """The model as it was before the round, the auxiliary data, an input's shape, the classes.

    Raises:
        UnusableInputError: Something is missing, contradicts another thing or cannot be read.
    """
    if data is not None and shape is not None:
        raise UnusableInputError("--data has the shape of its images; leave out --input-shape")
    if data is None and (classes is None or shape is None):
        raise UnusableInputError(
            "the inputs are not known: give --data FILE.npz, or --classes C with --input-shape "
            "1,28,28"
        )
    found = find_factory(None, factory)
    loaded = None if data is None else load_npz(data, classes=classes)
    inputs = loaded.input_shape if loaded is not None else _shape(str(shape))
    count = loaded.num_classes if loaded is not None else classes
    assert count is not None
    if not 2 <= count <= 10**6:
        raise UnusableInputError(f"--classes must be from 2 to 1,000,000, got {count}")
    model = build_model(found, input_shape=inputs, num_classes=count, seed=0)
    if weights is not None:
        load_weights(model, weights, max_bytes=max_bytes)
    return model, loaded, inputs, count


def load_weights(model: nn.Module, path: Path, *, max_bytes: int) -> None:
    """Put a file's state into the model, all of it.

    Raises:
        UnusableInputError: A name or shape is another, one is missing, or a value is not finite.
    """
    state = read_update(path, max_bytes=max_bytes)
    try:
        matched = match(state, model)
        if matched.withheld:
            raise UnusableInputError(f"{matched.withheld[0]!r} is missing; save the whole state")
        named = {name.removeprefix(matched.prefix): value for name, value in state.items()}
        model.load_state_dict(named)
    except (UnusableInputError, RuntimeError) as error:
        raise UnusableInputError(f"{path}: {one_line(error)}") from error


def named_defense(spec: str) -> Defense:
    """The defence in ``"STUDY.toml:NAME"``.

    Raises:
        UnusableInputError: There is no such file, or no such defence in it.
    """
    path, colon, name = spec.partition(".toml:")
    if not colon or not name:
        raise UnusableInputError(f"--defense must be STUDY.toml:NAME, got {spec!r}")
    study = Study.from_toml(Path(f"{path}.toml"))
    named = {one.name: one for one in study.defenses}
    if name not in named:
        raise unknown("defence", name, named)
    return named[name]


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    size = 1
    for length in shape:
        size *= length if 1 <= length <= 10**8 else 10**9
    if not shape or size > 10**8:
        raise UnusableInputError(
            f"--input-shape must be whole numbers with commas, such as 1,28,28, got {text!r}"
        )
    return shape


def _training(steps: int, rate: float | None) -> LocalTraining | None:
    if steps != 1 and rate is None:
        raise UnusableInputError("--local-steps needs --learning-rate")
    if rate is None:
        return None
    try:
        return LocalTraining(epochs=steps, learning_rate=rate)
    except ValueError as error:
        raise UnusableInputError(f"--local-steps, --learning-rate: {one_line(error)}") from error
