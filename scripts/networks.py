"""Write the tables of docs/networks.md: every network of the paper, counted here.

Run it after a change of a variant or of how something is counted; a test fails until then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from parnet_deploy.spec import VARIANTS, ParNetSpec, count

DOCUMENT = Path(__file__).parents[1] / "docs" / "networks.md"
BEGIN, END = "<!-- written by scripts/networks.py -->", "<!-- end of what it writes -->"

IMAGENET, CIFAR = "imagefolder:IMAGENET", "{}:CIFAR"
HEADS = (
    "the paper's row",
    "here",
    "depth",
    "M params, training",
    "M params, fused",
    "GFLOP, fused",
    "paper: M params",
    "paper: GFLOP",
    "paper: top-1 (top-5), %",
    "command",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of one of the paper's tables.

    Attributes:
        label: what the table calls it.
        variant: what it is called here.
        size: side of the images in pixels, if not the variant's own.
        parameters: the table's millions of parameters, as it writes them.
        gflop: the table's GFLOP, as it writes them.
        accuracy: the table's accuracy, as it writes it.
        commands: what trains it, or evaluates it.
    """

    label: str
    variant: str
    size: int | None = None
    parameters: str = "-"
    gflop: str = "-"
    accuracy: str
    commands: tuple[str, ...]

    @property
    def spec(self) -> ParNetSpec:
        """The network."""
        spec = VARIANTS[self.variant].spec
        return spec if self.size is None else replace(spec, image_size=(self.size, self.size))

    def cells(self) -> tuple[str, ...]:
        """The row in words and figures."""
        counts = count(self.spec)
        size = f" `--image-size {self.size}`" if self.size else ""
        return (
            self.label,
            f"`{self.variant}`{size}",
            str(counts.depth),
            f"{counts.parameters_training / 1e6:.3f}",
            f"{counts.parameters_fused / 1e6:.3f}",
            f"{counts.flop_fused / 1e9:.2f}",
            self.parameters,
            self.gflop,
            self.accuracy,
            "<br>".join(f"`{command}`" for command in self.commands),
        )


def train(variant: str, *options: str, data: str = IMAGENET, recipe: str = "imagenet-120") -> str:
    """The command that trains a variant; the authors' scripts erase more from L's and XL's."""
    large = ("--erasing 0.4",) if variant.partition("-")[0] in ("l", "xl") else ()
    words = (f"--variant {variant}", f"--data {data}", f"--recipe {recipe}", *large, *options)
    return " ".join(("parnet-deploy train", *words))


def imagenet(
    label: str, variant: str, accuracy: str, *options: str, size: int | None = None, **figures: str
) -> Row:
    """A network trained on ImageNet for 120 epochs."""
    at = (f"--image-size {size}",) if size else ()
    command = train(variant, *options, *at)
    return Row(
        label=label, variant=variant, accuracy=accuracy, size=size, commands=(command,), **figures
    )


def cifar(label: str, variant: str, parameters: str, name: str, accuracy: str) -> Row:
    """A network trained on CIFAR-10 or CIFAR-100."""
    data = CIFAR.format(name)
    output = f"--output runs/{variant}-{name}"
    return Row(
        label=f"{label}, {name.upper().replace('CIFAR', 'CIFAR-')}",
        variant=variant,
        parameters=parameters,
        accuracy=accuracy,
        commands=(train(variant, output, data=data, recipe="cifar-400"),),
    )


def ensemble(label: str, members: int, accuracy: str, parameters: str) -> Row:
    """Members trained each from a seed of its own, and joined."""
    folders = [f"runs/member{seed}" for seed in range(members)]
    commands = [
        train("m-one-stream", f"--seed {seed} --output {folder}")
        for seed, folder in enumerate(folders)
    ]
    files = " ".join(f"{folder}/checkpoint.safetensors" for folder in folders)
    joined = f"ensemble-{members}"
    commands.append(f"parnet-deploy ensemble {files} --output {joined}.safetensors")
    commands.append(f"parnet-deploy evaluate {joined}.safetensors --data {IMAGENET}")
    return Row(
        label=label,
        variant=joined,
        accuracy=accuracy,
        parameters=parameters,
        commands=tuple(commands),
    )


LONGER = train("xl", "--output runs/xl-200", recipe="imagenet-200")
FINER = (
    "parnet-deploy train --finetune runs/xl-200/checkpoint.safetensors --image-size 320 "
    f"--data {IMAGENET} --recipe imagenet-200 --epochs 16 --warmup-epochs 0 --batch-size 512 "
    "--learning-rate 0.001 --crop-scale 0.5,1 --erasing 0.6 --output runs/xl-320"
)
CENTRE = f"parnet-deploy evaluate runs/xl-320/checkpoint.safetensors --data {IMAGENET}"

TABLES: dict[str, tuple[Row, ...]] = {
    "Tables 1 and 2: scaled in width": (
        imagenet("ParNet-S", "s", "75.19 (92.29)", parameters="19.2", gflop="9.7"),
        imagenet("ParNet-M", "m", "76.60 (93.02)", parameters="35.6", gflop="17.2"),
        imagenet("ParNet-L", "l", "77.66 (93.6)", parameters="54.9", gflop="26.7"),
        imagenet("ParNet-XL", "xl", "78.55 (94.13)", parameters="85.0", gflop="41.5"),
    ),
    "Table 5: boosting XL, each row on top of the one before": (
        imagenet("ParNet-XL", "xl", "78.55 (94.13)"),
        Row(label="+ Longer training", variant="xl", accuracy="78.97 (94.51)", commands=(LONGER,)),
        Row(
            label="+ Train & Test Res. 320",
            variant="xl",
            size=320,
            accuracy="80.32 (94.95)",
            commands=(FINER, CENTRE),
        ),
        Row(
            label="+ 10-crop testing",
            variant="xl",
            size=320,
            accuracy="80.72 (95.38)",
            commands=(f"{CENTRE} --ten-crop",),
        ),
    ),
    "Table 6: CIFAR (accuracy is 100 - error)": (
        cifar("ParNet 1.3 M", "cifar-s", "1.3", "cifar10", "95.0"),
        cifar("ParNet 1.3 M", "cifar-s", "1.3", "cifar100", "75.38"),
        cifar("ParNet 15.5 M", "cifar-m", "15.5", "cifar10", "96.10"),
        cifar("ParNet 15.5 M", "cifar-m", "15.5", "cifar100", "79.98"),
        cifar("ParNet 35 M", "cifar-l", "35", "cifar10", "96.12"),
        cifar("ParNet 35 M", "cifar-l", "35", "cifar100", "81.35"),
    ),
    "Table 7: what each choice adds to M": (
        imagenet(
            *("Baseline", "m-relu-no-sse", "75.02 (92.15)", "--rand-augment 0"), parameters="32.4"
        ),
        imagenet("+ Data Augmentation", "m-relu-no-sse", "75.12 (92.00)", parameters="32.4"),
        imagenet("+ SSE", "m-relu", "76.55 (93.01)", parameters="35.6"),
        imagenet("+ SiLU", "m", "76.60 (93.07)", parameters="35.6"),
    ),
    "Table 8: one stream against three": (
        imagenet("ParNet-M-OneStream", "m-one-stream", "75.83", parameters="36.0"),
        imagenet("ParNet-M", "m", "76.6", parameters="35.9"),
    ),
    "Table 9: ensembles of single streams against ParNets": (
        imagenet("ParNet-M", "m", "76.60", parameters="35.9"),
        imagenet("Single Stream", "m-one-stream", "75.83", parameters="36"),
        imagenet("ParNet-L", "l", "77.66", parameters="55"),
        ensemble("Ensemble (2 Single Streams)", 2, "77.20", "72"),
        imagenet("ParNet-XL", "xl", "78.55", parameters="85.3"),
        ensemble("Ensemble (3 Single Streams)", 3, "77.68", "108"),
    ),
    "Table 10: number of streams, for a fixed number of parameters": tuple(
        imagenet(f"{label}, Res. {size or 224}", variant, accuracy, size=size)
        for size, accuracies in (
            (None, ("75.83", "76.1", "76.75", "76.34")),
            (320, ("76.91", "77.12", "77.56", "77.46")),
        )
        for label, variant, accuracy in zip(
            ("1 branch", "2 branches", "3 branches", "4 branches"),
            ("m-one-stream", "m-two-streams", "m", "m-four-streams"),
            accuracies,
            strict=True,
        )
    ),
    "Table 11: depth": tuple(
        imagenet(f"Depth {depth}, size {size.upper()}", variant, accuracy)
        for depth, accuracies in (
            (9, ("73.9", "75.1", "76.1")),
            (12, ("76.6", "77.7", "78.6")),
            (15, ("77.0", "78.4", "79.4")),
        )
        for size, accuracy in zip(("m", "l", "xl"), accuracies, strict=True)
        for variant in (size if depth == 12 else f"{size}-depth{depth}",)
    ),
}


def tables() -> str:
    """All tables, in Markdown."""
    lines: list[str] = []
    for title, rows in TABLES.items():
        lines += ["", f"### {title}", ""]
        lines += _markdown([HEADS, tuple("---" for _ in HEADS), *(row.cells() for row in rows)])
    return "\n".join([BEGIN, *lines, "", END])


def _markdown(rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in rows]


def filled(document: str) -> str:
    """A document with the tables between its marks."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + tables() + after


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
