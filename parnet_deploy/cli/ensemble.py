"""``parnet-deploy ensemble``: networks of one stream become one, whose streams they are."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from parnet_deploy.cli.console import say
from parnet_deploy.cli.output import refuse_file, replacing
from parnet_deploy.cli.packages import need
from parnet_deploy.errors import UsageError
from parnet_deploy.spec import count

SUFFIX = ".safetensors"

Members = Annotated[
    list[Path],
    typer.Argument(
        metavar="CHECKPOINT...",
        help="Two or more of the same network, trained from different seeds.",
        show_default=False,
    ),
]
Output = Annotated[Path, typer.Option(help="The ensemble's checkpoint: FILE.safetensors.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that stands there.")]


def command(members: Members, output: Output, force: Force = False) -> None:
    """Join networks of one stream, trained each by itself, into one: an ensemble.

    Its streams are its members and its logits the mean of theirs. It is exported, split, verified
    and evaluated as any other checkpoint.
    """
    if output.suffix != SUFFIX:
        raise UsageError(f"an ensemble is written as FILE{SUFFIX}, not {output}")
    refuse_file(output, force=force)
    need("ensemble")
    from parnet_deploy.net import save_checkpoint
    from parnet_deploy.net.ensemble import join_checkpoints

    model, facts = join_checkpoints(members)
    with replacing(output, force=force) as work:
        save_checkpoint(model, work, facts)
    counts = count(model.spec)
    say(
        f"{output}: {model.spec.name}, {model.spec.members} members, "
        f"{counts.parameters_fused / 1e6:.3f} M parameters fused, depth {counts.depth}"
    )
    say(f"next: parnet-deploy export --checkpoint {shlex.quote(str(output))}")
