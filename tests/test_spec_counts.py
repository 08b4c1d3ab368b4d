"""Counts against the paper, against the modules, and against torch's own counter of operations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from strategies import specs
from torch.utils.flop_counter import FlopCounterMode

from parnet_deploy.net import BlockGraph, ParNet, fuse
from parnet_deploy.net.deploy import DeployFusion
from parnet_deploy.spec import VARIANTS, ParNetSpec, count, depth, layout, variant

# name, widths, parameters in training and fused form (M), GFLOP fused at 224x224
FACTS = [
    ("s", (96, 192, 384, 1280), "20.984", "19.177", "9.67"),
    ("m", (128, 256, 512, 2048), "38.953", "35.577", "17.16"),
    ("l", (160, 320, 640, 2560), "60.180", "54.915", "26.65"),
    ("xl", (200, 400, 800, 3200), "93.176", "84.963", "41.43"),
]


@pytest.mark.parametrize(("name", "widths", "training", "fused", "gflop"), FACTS)
def test_imagenet_counts_to_the_last_digit(
    name: str, widths: tuple[int, ...], training: str, fused: str, gflop: str
) -> None:
    spec = variant(name).spec
    counts = count(spec)
    assert spec.widths == widths
    assert counts.depth == 12
    assert f"{counts.parameters_training / 1e6:.3f}" == training
    assert f"{counts.parameters_fused / 1e6:.3f}" == fused
    assert f"{counts.flop_fused / 1e9:.2f}" == gflop


def test_released_s_counts() -> None:
    counts = count(variant("s").spec.with_widths((92, 192, 384, 1280)))
    assert f"{counts.parameters_training / 1e6:.3f}" == "20.931"
    assert f"{counts.parameters_fused / 1e6:.3f}" == "19.129"


TOLERANCES = {
    "m-relu-no-sse": 0.2,  # the paper's has the squeezes of the stem: see below
    "ensemble-2": 0.5,  # 72 M and 108 M: whole numbers
    "ensemble-3": 0.5,
}


@pytest.mark.parametrize("name", VARIANTS)
def test_counts_round_to_the_papers(name: str) -> None:
    known = VARIANTS[name]
    counts = count(known.spec)
    if known.paper_parameters is not None:
        # The paper's own figures were rounded from counts that differ by up to 0.04 M from these.
        near = TOLERANCES.get(name, 0.05)
        assert counts.parameters_fused / 1e6 == pytest.approx(known.paper_parameters, abs=near)
    if known.paper_gflop is not None:
        assert counts.flop_fused / 1e9 == pytest.approx(known.paper_gflop, abs=0.08)


def test_the_papers_count_without_squeezes_is_ours_and_those_of_the_stem() -> None:
    """32.4 M in table 7: what docs/networks.md says of it."""
    spec = variant("m-relu-no-sse").spec
    stem = [block for block in layout(spec) if block.name.startswith("stem")]
    squeezes = sum(block.in_channels * block.out_channels for block in stem)
    assert f"{count(spec).parameters_fused / 1e6:.1f}" == "32.2"
    assert f"{(count(spec).parameters_fused + squeezes) / 1e6:.1f}" == "32.4"


@pytest.mark.parametrize("name", ["m-one-stream", "m-two-streams", "m-four-streams"])
def test_widths_of_other_numbers_of_streams(name: str) -> None:
    """The rule of docs/networks.md gives them, and the budget is met."""
    spec = variant(name).spec
    assert f"{count(spec).parameters_fused / 1e6:.1f}" == "36.0"
    plain = variant("m").spec.with_streams(spec.streams)
    ratios = [width // plain.widths[0] for width in plain.widths]
    firsts = range(8, 2 * plain.widths[0], 8)
    scaled = [plain.with_widths(tuple(first * ratio for ratio in ratios)) for first in firsts]
    nearest = min(scaled, key=distance)
    lasts = range(8, 2 * nearest.last_width, 8)
    tuned = [nearest.with_widths((*nearest.stream_widths, last)) for last in lasts]
    assert min(tuned, key=distance).widths == spec.widths


def distance(spec: ParNetSpec) -> float:
    """How far a network is from table 8's budget."""
    return abs(count(spec).parameters_fused - 36.0e6)


@pytest.mark.parametrize(("name", "members"), [("ensemble-2", 2), ("ensemble-3", 3)])
def test_an_ensemble_weighs_as_much_as_its_members(name: str, members: int) -> None:
    ensemble, alone = count(variant(name).spec), count(variant("m-one-stream").spec)
    assert ensemble.depth == alone.depth == 12
    assert ensemble.parameters_training == members * alone.parameters_training
    # The members' biases of the classifier become one.
    assert ensemble.parameters_fused == members * alone.parameters_fused - (members - 1) * 1000
    assert f"{ensemble.parameters_fused / 1e6:.0f}" == f"{36 * members}"


@pytest.mark.parametrize(
    ("name", "published"), [("cifar-s", 1.3), ("cifar-m", 15.5), ("cifar-l", 35.0)]
)
def test_cifar_variants_have_the_published_sizes_and_depth(name: str, published: float) -> None:
    spec = variant(name).spec
    counts = count(spec)
    assert counts.depth == 12
    assert f"{counts.parameters_fused / 1e6:.1f}" == f"{published:.1f}"
    first, second, third = spec.stream_widths
    assert (second / first, third / first) == (2, 4)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variants_modules_hold_as_many_parameters(name: str) -> None:
    spec = VARIANTS[name].spec
    with torch.device("meta"):
        model = ParNet(spec)
    assert parameters(model) == count(spec).parameters_training


@given(specs())
def test_counts_equal_the_modules(spec: ParNetSpec) -> None:
    model = ParNet(spec).eval()
    counts = count(spec)
    assert parameters(model) == counts.parameters_training
    if spec.squeeze:
        fused = fuse(model)
        assert parameters(fused) - zeros_of_ungrouped_squeezes(fused) == counts.parameters_fused
        assert flop(fused, spec) - 2 * zeros_of_ungrouped_squeezes(fused) == counts.flop_fused
    else:  # the skip's normalisation folds into the convolution, too
        fused = fuse(model)
        skips = sum(2 * b.out_channels for b in fused.layout if b.kind == "skip")
        assert parameters(fused) + skips == counts.parameters_fused
        assert flop(fused, spec) == counts.flop_fused


@pytest.mark.parametrize("streams", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["s", "cifar-s"])
def test_number_of_streams_keeps_the_depth(name: str, streams: int) -> None:
    spec = variant(name).spec
    changed = spec.with_streams(streams)
    assert changed.streams == streams
    assert depth(changed) == 12
    assert changed.image_size == spec.image_size


def parameters(model: BlockGraph) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def zeros_of_ungrouped_squeezes(fused: BlockGraph) -> int:
    """A fusion's grouped squeeze is stored as a dense matrix, half of which is structural zeros."""
    fusions = [module for module in fused.modules() if isinstance(module, DeployFusion)]
    return sum(fusion.squeeze.weight.numel() // 2 for fusion in fusions if fusion.squeeze)


def flop(model: BlockGraph, spec: ParNetSpec) -> int:
    """torch's count of operations in convolutions and matrix products, for one image."""
    model = model.to("meta")
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, *spec.image_size, device="meta"))
    return int(counter.get_total_flops())
