"""``parnet-deploy triton-repo``: an engine becomes a model repository for Triton."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from parnet_deploy.bundle import open_engine_bundle
from parnet_deploy.cli.console import (
    human_bytes,
    new_table,
    print_json,
    print_table,
    progress,
    say,
    warn,
)
from parnet_deploy.cli.options import parse_numbers
from parnet_deploy.engine.placement import check_placement, parse_placement
from parnet_deploy.serve.triton import (
    ModelConfig,
    Repository,
    RepositorySettings,
    refuse_output,
    write_repository,
)

DEFAULTS = RepositorySettings()

Engine = Annotated[
    Path, typer.Argument(metavar="ENGINE", help="Engine bundle: onnxruntime or tensorrt.")
]
Output = Annotated[Path, typer.Option(help="Folder of the repository.", show_default=False)]
Name = Annotated[
    str | None,
    typer.Option(help="What clients call the model; without it, as the engine's folder."),
]
MaxBatch = Annotated[
    int | None,
    typer.Option("--max-batch", help="Images per run at most [default: what the engine takes]."),
]
Delay = Annotated[
    int, typer.Option(help="Microseconds that a request may wait to be put together with others.")
]
Preferred = Annotated[
    str | None, typer.Option(help="Batch sizes that are run at once when reached, such as 4,8.")
]
Instances = Annotated[
    int, typer.Option(help="Runs of one model that may be under way at once, on its device.")
]
Place = Annotated[
    str | None,
    typer.Option(
        help="Other devices than the engine's: stream1=cuda:0,...,fusion=cuda:0, or whole=cuda:1."
    ),
]
Model = Annotated[
    Path | None, typer.Option(help="Model bundle, where it is not where the engine says.")
]
Storage = Annotated[
    str, typer.Option(help="Address that the repository will have in a cluster, for KServe.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a repository that stands there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def command(
    engine: Engine,
    output: Output,
    name: Name = None,
    max_batch: MaxBatch = None,
    delay: Delay = DEFAULTS.delay,
    preferred: Preferred = None,
    instances: Instances = DEFAULTS.instances,
    place: Place = None,
    model: Model = None,
    storage: Storage = DEFAULTS.storage,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a model repository for Triton: the whole engine, or a split one as an ensemble.

    Of a split engine each stage is a model with instances on its own device, and Triton runs the
    streams side by side. A README, a compose file and a KServe InferenceService lie beside them.
    """
    settings = RepositorySettings(
        name=name,
        max_batch=max_batch,
        delay=delay,
        preferred=() if preferred is None else parse_numbers("--preferred")(preferred),
        instances=instances,
        placement=None if place is None else parse_placement(place),
        model=model,
        storage=storage,
    )
    refuse_output(output, engine=engine, force=force)
    bundle = open_engine_bundle(engine, check=False)  # write_repository checks every file
    if settings.placement is not None:
        stages = [stage.name for stage in bundle.manifest.stages]
        check_placement(settings.placement, stages, tuple(settings.placement.values()))
    repository, models = write_repository(bundle, output, settings, force=force, progress=progress)
    warn(repository.warnings)
    if as_json:
        print_json(repository)
    else:
        _print(output, repository, models)


def _print(output: Path, repository: Repository, models: tuple[ModelConfig, ...]) -> None:
    total = human_bytes(sum(record.bytes for record in repository.files.values()))
    say(f"{output}: {repository.engine} for Triton, {total}")
    table = new_table(None, {"model": "left", "platform": "left", "on": "left", "batch": "right"})
    for model in models:
        batch = str(model.max_batch_size or "fixed")
        table.add_row(escape(model.name), model.platform, _where(model), batch)
    print_table(table)
    say(f"next: {shlex.quote(str(output / 'README.md'))} says how to start Triton with it")


def _where(model: ModelConfig) -> str:
    group = model.instance_group
    if group is None:
        return ""
    return f"{group.count} x {'cuda:' + str(group.gpus[0]) if group.gpus else 'cpu'}"
