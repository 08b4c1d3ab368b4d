"""Which network a command is about: a variant or a spec in a file, and the options that change it.

What `export` and `train` share.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from parnet_deploy.cli.options import parse_numbers, parse_size
from parnet_deploy.errors import SpecError, UsageError, os_reason
from parnet_deploy.spec import Activation, ParNetSpec, decode
from parnet_deploy.spec import variant as find_variant

Streams = Annotated[int | None, typer.Option(help="Number of streams, 1 to 4.")]
Depth = Annotated[
    int | None,
    typer.Option(help="Length of the longest path: every stream gets or loses as many blocks."),
]
Widths = Annotated[
    str | None, typer.Option(help="C1,...,Cn,Clast: a width per stream, then the last block's.")
]
Blocks = Annotated[str | None, typer.Option(help="Blocks in each stream, such as 4,5,5.")]
ActivationName = Annotated[
    Activation | None,
    typer.Option(help="Non-linearity; an authors' checkpoint does not say it [default: silu]."),
]
HasSqueeze = Annotated[
    bool | None, typer.Option("--squeeze/--no-squeeze", help="Skip-Squeeze-Excitation.")
]
Classes = Annotated[int | None, typer.Option(help="Number of classes.")]
ImageSize = Annotated[str | None, typer.Option(help="Input size in pixels: 224 or HxW.")]


def find_spec(name: str) -> ParNetSpec:
    """A variant's spec, or one that a JSON file describes: every field of it, as data.

    Raises:
        UsageError: there is no such variant, or the file cannot be read.
        SpecError: the file does not describe a network that can be built.
    """
    if not name.endswith(".json"):
        return find_variant(name).spec
    try:
        return decode(Path(name).read_bytes(), ParNetSpec)
    except OSError as exc:
        raise UsageError(f"cannot read the spec in {name}: {os_reason(exc)}") from exc
    except SpecError as exc:
        raise SpecError(
            f"{name}: {exc}; 'parnet-deploy variants --json' shows what a spec looks like"
        ) from exc


def change_spec(
    spec: ParNetSpec,
    *,
    streams: int | None = None,
    depth: int | None = None,
    widths: str | None = None,
    blocks: str | None = None,
    activation: Activation | None = None,
    squeeze: bool | None = None,
    classes: int | None = None,
    image_size: str | None = None,
) -> ParNetSpec:
    """A spec with what was given on the command line, as it was written; None was not given.

    Raises:
        UsageError: a text that is no number, size or list; or a depth and numbers of blocks.
        SpecError: the network so described cannot be built.
    """
    if depth is not None and blocks is not None:
        raise UsageError("--depth and --blocks both say how many blocks there are; give one")
    changed = spec
    if streams is not None:
        changed = changed.with_streams(streams)
    if widths is not None:
        changed = changed.with_widths(parse_numbers("--widths")(widths))
    if depth is not None:
        changed = changed.with_depth(depth)
    fields: dict[str, Any] = {
        "stream_blocks": None if blocks is None else parse_numbers("--blocks")(blocks),
        "activation": activation,
        "squeeze": squeeze,
        "classes": classes,
        "image_size": None if image_size is None else parse_size(image_size),
    }
    return replace(changed, **given(**fields))


def given(**options: object) -> dict[str, Any]:
    """The options that were given on the command line."""
    return {name: value for name, value in options.items() if value is not None}
