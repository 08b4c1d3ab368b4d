"""Whether a model bundle's graphs compute in what was asked for, and are quantised as it says.

That numbers agree does not show it: a network sold as float16 that computes in float32 agrees
best of all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from parnet_deploy.bundle import ModelManifest
from parnet_deploy.spec import IMAGES, PREPROCESSED, Array
from parnet_deploy.spec.learned import quantisable_tensors
from parnet_deploy.spec.precision import arithmetic
from parnet_deploy.spec.quantisation import Quantisation, base_of
from parnet_deploy.verify.asked import asked_types
from parnet_deploy.verify.folded import kernels_of
from parnet_deploy.verify.graph_facts import GraphFacts
from parnet_deploy.verify.kernels import apart, kernel_problems, least
from parnet_deploy.verify.problems import Problem, check_of, counted
from parnet_deploy.verify.result import BlockTypes, CheckResult
from parnet_deploy.verify.tolerances import RungName
from parnet_deploy.verify.written import WrittenQuantiser

READABLE = "graphs can be read"
TYPES = "each layer's type is what was asked for"
QUANTISERS = "activations are quantised as the manifest says"
ZERO_POINTS = "zero points are 0 where a type is symmetric"
KERNELS = "quantised kernels are the checkpoint's"
CONSTANTS = "constants that are not quantised are the checkpoint's"
ALIKE = "the stages are quantised as the whole graph"


def check_model(manifest: ModelManifest, facts: Sequence[GraphFacts]) -> tuple[CheckResult, ...]:
    """Hold the graphs against the manifest, the checkpoint and each other.

    Args:
        manifest: what the bundle says of itself.
        facts: what its graphs say (`graph_facts.look_into`).
    """
    asked = asked_types(manifest.spec, manifest.precision, manifest.quantisation)
    whole, *stages = facts
    results = [
        check_of("onnx-whole", TYPES, type_problems([whole], asked), _layers(whole.types)),
        check_of("onnx-stages", TYPES, _in_order(stages, asked), _layers(_joined(stages))),
    ]
    quantisation = manifest.quantisation
    parts: tuple[tuple[RungName, list[GraphFacts]], ...] = (
        ("onnx-whole", [whole]),
        ("onnx-stages", stages),
    )
    results += [_constants_of(rung, graphs, manifest) for rung, graphs in parts]
    if quantisation is None:
        return tuple(results)
    count = len(quantisation.tensors)
    layers = sum(asked[name] == manifest.precision for name in asked)
    channels = "each output channel" if quantisation.per_channel else "each kernel"
    for rung, graphs in parts:
        wrong = [*_without_quantiser(manifest, quantisation)]
        wrong += _quantiser_problems(graphs, quantisation)
        results.append(check_of(rung, QUANTISERS, wrong, f"{count} tensors, scale by scale"))
        found = _zero_point_problems(graphs, quantisation)
        results.append(check_of(rung, ZERO_POINTS, found, _zero_points(quantisation)))
        found = _kernel_problems(graphs, quantisation)
        good = f"{layers} kernels, a scale for {channels}: max|w| / limit, within half a step"
        results.append(check_of(rung, KERNELS, found, good))
    found = _unlike(whole, stages)
    results.append(check_of("onnx-stages", ALIKE, found, "types, scales and kernels are the same"))
    return tuple(results)


def block_types(
    manifest: ModelManifest,
    facts: Sequence[GraphFacts],
    engines: Mapping[RungName, Mapping[str, str]],
) -> tuple[BlockTypes, ...]:
    """What every layer was to compute in, and what it does, rung by rung.

    Args:
        manifest: of the model.
        facts: what its graphs say.
        engines: what engines compute in, by block, for each that tells.
    """
    asked = asked_types(manifest.spec, manifest.precision, manifest.quantisation)
    whole, *stages = facts
    built: dict[RungName, Mapping[str, str]] = {
        "onnx-whole": whole.types,
        "onnx-stages": _joined(stages),
        **engines,
    }
    return tuple(
        BlockTypes(
            block=name,
            asked=want,
            built={rung: types[name] for rung, types in built.items() if name in types},
        )
        for name, want in asked.items()
    )


def type_problems(graphs: Iterable[GraphFacts], asked: Mapping[str, str]) -> Iterator[Problem]:
    """Layers that compute in something else than was asked for, or that are not there."""
    for graph in graphs:
        for name in graph.blocks:
            found, want = graph.types.get(name), asked[name]
            if found is None:
                lacks = f"{graph.file} has no layer"
                yield Problem(name=name, one=f"{lacks} {{names}}", several=f"{lacks}s {{names}}")
            elif found != want:
                rest = f"in {found} in {{files}}, and {want} was asked for"
                yield Problem.of(name, ("computes", "compute"), rest, graph.file)


def _in_order(stages: Iterable[GraphFacts], asked: Mapping[str, str]) -> list[Problem]:
    """The same of stages, block by block as in the whole graph, whose words are then theirs."""
    blocks = list(asked)
    return sorted(type_problems(stages, asked), key=lambda problem: blocks.index(problem.name))


def _constants_of(
    rung: RungName, graphs: Sequence[GraphFacts], manifest: ModelManifest
) -> CheckResult:
    """Whether all constants but quantised kernels are the checkpoint's."""
    quantisation = manifest.quantisation
    problems = [problem for graph in graphs for problem in graph.constants]
    base = base_of(manifest.precision, quantisation)
    good = f"of {sum(graph.counted for graph in graphs)} operators, within a rounding to {base}"
    if quantisation is not None and quantisation.bias_corrected:
        if quantisation.shifts:
            greatest = max(quantisation.shifts.values())
            good += f"; biases were corrected, by {greatest:.2g} at most"
        elif not problems:
            detail = (
                "biases were corrected, and the manifest does not say by how much: export it again"
            )
            return CheckResult(rung=rung, name=CONSTANTS, verdict="not verified", detail=detail)
    return check_of(rung, CONSTANTS, problems, good)


def _kernel_problems(graphs: Iterable[GraphFacts], quantisation: Quantisation) -> Iterator[Problem]:
    for graph in graphs:
        if graph.written is None:
            continue
        folded = kernels_of(graph.folded)
        for block, kernel in graph.written.kernels.items():
            for words in kernel_problems({block: kernel}, folded, quantisation):
                yield Problem(name=block, one=f"{graph.file}: {words}")


def _without_quantiser(manifest: ModelManifest, quantisation: Quantisation) -> Iterator[Problem]:
    """Tensors of layers that are not kept, for which the manifest itself has no quantiser.

    A graph without them would be as the manifest says.
    """
    first = PREPROCESSED if manifest.preprocessing.in_graph else IMAGES
    for name in quantisable_tensors(manifest.spec, quantisation.scheme, quantisation.kept):
        tensor = first if name == IMAGES else name
        if tensor not in quantisation.tensors:
            lacks = "the manifest has no quantiser of {names}"
            yield Problem(
                name=f"'{tensor}'",
                one=f"{lacks}, which a layer that is not kept reads or gives",
                several=f"{lacks}, which layers that are not kept read or give",
            )


def _quantiser_problems(
    graphs: Iterable[GraphFacts], quantisation: Quantisation
) -> Iterator[Problem]:
    """Activations that are quantised otherwise than the manifest says, or not, or too."""
    for graph in graphs:
        if graph.written is None:
            continue
        needed = {name for name in quantisation.tensors if _is_in(name, graph)}
        found = {one.tensor for one in graph.written.quantisers}
        for name in sorted(needed - found):
            rest = "not quantised in {files}, and the manifest says otherwise"
            yield Problem.of(f"'{name}'", ("is", "are"), rest, graph.file)
        for name in sorted(found - needed):
            rest = "quantised in {files}, and the manifest says nothing of that"
            yield Problem.of(f"'{name}'", ("is", "are"), rest, graph.file)
        for one in graph.written.quantisers:
            if one.tensor in needed and (problem := _scale_problem(one, quantisation)):
                words = f"'{one.tensor}' {problem} in {graph.file} ({one.node})"
                yield Problem(name=f"'{one.tensor}'", one=words)


def _is_in(tensor: str, graph: GraphFacts) -> bool:
    """Whether a tensor is made or read by a graph."""
    if tensor in (IMAGES, PREPROCESSED):
        return IMAGES in graph.reads
    return tensor in graph.reads or tensor.partition(".")[0] in graph.blocks


def _scale_problem(one: WrittenQuantiser, quantisation: Quantisation) -> str | None:
    wanted = quantisation.tensors[one.tensor]
    numbers = arithmetic(quantisation.scheme.base)
    rounded = float(np.asarray(wanted.scale).astype(np.dtype(numbers.dtype)))
    should = max(rounded, least(quantisation.scheme.base))
    if one.scale.size != 1:
        return f"has {one.scale.size} scales"
    scale = float(one.scale.reshape(()))
    if not abs(scale - should) <= 2 * numbers.roundoff * should:
        got, right = apart(scale, wanted.scale)
        return f"has the scale {got} instead of {right}"
    if one.zero_point is None:
        return None if wanted.zero_point == 0 else f"has no zero point, not {wanted.zero_point}"
    if one.zero_point.dtype != np.dtype(wanted.dtype):
        return f"is {one.zero_point.dtype.name} instead of {wanted.dtype}"
    zero = one.zero_point.astype(np.float64).reshape(-1)
    if not (zero == wanted.zero_point).all():
        return f"has the zero point {zero[0]:g} instead of {wanted.zero_point}"
    return None


def _zero_point_problems(
    graphs: Iterable[GraphFacts], quantisation: Quantisation
) -> Iterator[Problem]:
    """Zero points other than 0 of weights, and of activations where they have none."""
    for graph in graphs:
        if graph.written is None:
            continue
        for block, kernel in graph.written.kernels.items():
            if kernel.zero_point.astype(np.float64).any():
                yield Problem(
                    name=block,
                    one="the kernel of {names} has a zero point other than 0 in {files}",
                    several="the kernels of {names} have a zero point other than 0 in {files}",
                    file=graph.file,
                )
        if quantisation.scheme.activation == "uint8":
            continue
        for one in graph.written.quantisers:
            if one.zero_point is not None and one.zero_point.astype(np.float64).any():
                words = f"has a zero point other than 0 in {graph.file} ({one.node})"
                yield Problem(name=f"'{one.tensor}'", one=f"'{one.tensor}' {words}")


def _zero_points(quantisation: Quantisation) -> str:
    if quantisation.scheme.activation == "uint8":
        return "all kernels'; activations are uint8 and have one each"
    return "all kernels' and all activations'"


def _unlike(whole: GraphFacts, stages: Iterable[GraphFacts]) -> Iterator[Problem]:
    """What a stage has otherwise than the whole graph."""
    if whole.written is None:
        return
    scales = {one.tensor: one for one in whole.written.quantisers}
    for stage in stages:
        if stage.written is None:
            continue
        for name, kind in stage.types.items():
            if kind != whole.types.get(name):
                rest = f"in {kind} in {{files}} and {whole.types.get(name)} in the whole graph"
                yield Problem.of(name, ("computes", "compute"), rest, stage.file)
        for one in stage.written.quantisers:
            like = scales.get(one.tensor)
            if like is None or not _same(
                (one.scale, one.zero_point), (like.scale, like.zero_point)
            ):
                rest = "quantised otherwise in {files} than in the whole graph"
                yield Problem.of(f"'{one.tensor}'", ("is", "are"), rest, stage.file)
        for name, kernel in stage.written.kernels.items():
            made = whole.written.kernels.get(name)
            if made is None or not _same((kernel.values, kernel.scale), (made.values, made.scale)):
                yield Problem(
                    name=name,
                    one="the kernel of {names} is another one in {files} than in the whole graph",
                    several="the kernels of {names} are others in {files} than in the whole graph",
                    file=stage.file,
                )


def _same(ours: Sequence[Array | None], theirs: Sequence[Array | None]) -> bool:
    """Whether arrays are the same, bit for bit; what is not there is like anything."""
    return all(
        one is None
        or other is None
        or (one.shape == other.shape and one.tobytes() == other.tobytes())
        for one, other in zip(ours, theirs, strict=True)
    )


def _joined(stages: Iterable[GraphFacts]) -> dict[str, str]:
    """The stages' types; a block that is in several of them in several ways has all of those."""
    found: dict[str, dict[str, None]] = {}
    for stage in stages:
        for name, kind in stage.types.items():
            found.setdefault(name, {})[kind] = None
    return {name: " and ".join(kinds) for name, kinds in found.items()}


def _layers(types: Mapping[str, str]) -> str:
    return counted(types, " layer")
