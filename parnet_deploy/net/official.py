"""The names and shapes of the authors' released checkpoints.

The authors' module tree (``inits``, ``streams``, ``downsamples_2``, ``combine``, ``head``) as the
blocks of a layout. Their ImageNet networks have three streams.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from parnet_deploy.errors import CheckpointError, SpecError
from parnet_deploy.spec import VARIANTS, Activation, ParNetSpec

# Path of a module in the authors' tree -> path of the same module here; N and M are numbers, which
# count from 0 there and from 1 here.
_MODULES = {
    "inits.0.0": "stem1",
    "inits.0.1": "stem2",
    "inits.1": "stem3",
    "inits.2": "stem4",
    "streams.N.M": "streamN_blockM",
    "downsamples_2.0": "merge1",
    "downsamples_2.1.2": "merge2",
    "combine.2": "merge3",
    "combine.3": "last",
}
_HALVING = ("stem1", "stem2", "stem3", "stem4", "merge1", "merge2", "last")
_LEAVES = {
    "block.rbr_dense": "dense",
    "block.rbr_1x1.1": "pointwise",  # behind the pool of a block that halves the resolution
    "block.rbr_1x1": "pointwise",
    "block.rbr_identity": "identity",
    "block.se.cvsig.conv": "squeeze",
}
_OTHERS = {
    "downsamples_2.1.0.b1": "merge2.norms.0",
    "downsamples_2.1.0.b2": "merge2.norms.1",
    "combine.0.b1": "merge3.norms.0",
    "combine.0.b2": "merge3.norms.1",
    "head.fc": "head.linear",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Translated:
    """A checkpoint under this project's names.

    Attributes:
        weights: the tensors, by their names here.
        keys: the file's own key of each.
        unknown: the file's keys that have no place here.
    """

    weights: dict[str, Tensor]
    keys: dict[str, str]
    unknown: tuple[str, ...]


def translate(state: Mapping[str, Tensor]) -> Translated:
    """Rename an authors' state dict; a leading ``module.`` is dropped.

    Raises:
        CheckpointError: two keys name the same tensor.
    """
    weights: dict[str, Tensor] = {}
    keys: dict[str, str] = {}
    unknown = []
    for key, value in state.items():
        name = _translate_key(key.removeprefix("module."))
        if name is None:
            unknown.append(key)
        elif f"blocks.{name}" in weights:
            raise CheckpointError(
                f"the checkpoint has two tensors for '{name}', the second under '{key}': "
                "with and without 'module.' in front; which of them is meant?"
            )
        else:
            weights[f"blocks.{name}"] = value
            keys[f"blocks.{name}"] = key
    return Translated(weights=weights, keys=keys, unknown=tuple(unknown))


def authors_key(name: str) -> str:
    """The key that a tensor of this project's has in an authors' file, or its name here."""
    module, _, leaf = name.removeprefix("blocks.").rpartition(".")
    for theirs, ours in _OTHERS.items():
        if module == ours:
            return f"{theirs}.{leaf}"
    block, _, part = module.partition(".")
    for theirs, ours in _MODULES.items():
        if not (match := re.fullmatch(_numbered(ours), block)):
            continue
        numbers = {k: int(v) - 1 for k, v in match.groupdict().items()}
        halves = ours in _HALVING
        for their_part, our_part in _LEAVES.items():
            fits = part == our_part or part.startswith(f"{our_part}.")
            if fits and (our_part != "pointwise" or their_part.endswith(".1") == halves):
                rest = part.removeprefix(our_part)
                return f"{_filled(theirs, numbers)}.{their_part}{rest}.{leaf}"
    return name


def _translate_key(key: str) -> str | None:
    module, _, leaf = key.rpartition(".")
    if module in _OTHERS:
        return f"{_OTHERS[module]}.{leaf}"
    for theirs, ours in _MODULES.items():
        if not (match := re.match(_numbered(theirs) + r"\.", key)):
            continue
        numbers = {k: int(v) + 1 for k, v in match.groupdict().items()}
        rest = key[match.end() :]
        for their_part, our_part in _LEAVES.items():
            if rest.startswith(f"{their_part}."):
                return f"{_filled(ours, numbers)}.{our_part}{rest.removeprefix(their_part)}"
    return None


def _numbered(path: str) -> str:
    """A pattern of a path, whose N and M are numbers."""
    return re.sub("[NM]", lambda match: rf"(?P<{match[0]}>\d+)", re.escape(path))


def _filled(path: str, numbers: Mapping[str, int]) -> str:
    return re.sub("[NM]", lambda match: str(numbers[match[0]]), path)


def infer_spec(translated: Translated, *, activation: Activation) -> ParNetSpec:
    """The network that a checkpoint's shapes describe.

    Nothing in a checkpoint says which activation it was trained with. Where the widths are those
    of a variant, its name and dropout are taken over; the released S has a first width of 92.

    Raises:
        CheckpointError: the tensors that would tell are missing, or tell of what cannot be.
    """
    weights = translated.weights

    def out(block: str) -> int:
        return int(weights[f"blocks.{block}.dense.conv.weight"].shape[0])

    def length(stream: int) -> int:
        prefix = f"blocks.stream{stream}_block"
        return len({key.split(".")[1] for key in weights if key.startswith(prefix)})

    try:
        streams = (out("stem2"), out("stem3"), out("stem4"))
        described = ParNetSpec(
            name="custom",
            stem_widths=(out("stem1"),),
            stem_strides=(2, 2),
            stream_widths=streams,
            stream_blocks=(length(1), length(2), length(3)),
            last_width=out("last"),
            activation=activation,
            squeeze="blocks.stem1.squeeze.weight" in weights,
            classes=int(weights["blocks.head.linear.weight"].shape[0]),
        )
    except KeyError as exc:
        first = ", ".join([*translated.keys.values(), *translated.unknown][:3]) or "nothing"
        raise CheckpointError(
            f"not a checkpoint of a ParNet: it has no '{authors_key(exc.args[0])}'; "
            f"it begins with {first}"
        ) from exc
    except (IndexError, SpecError) as exc:
        raise CheckpointError(
            f"not a checkpoint of a ParNet: its shapes describe what cannot be ({exc})"
        ) from exc
    named = _variant_of(described)
    if named is None:
        return described
    return replace(described, name=named.name, dropout=named.dropout)


def _variant_of(described: ParNetSpec) -> ParNetSpec | None:
    """The variant of the same blocks; one of the same activation where there is one."""
    regular = described.with_widths(_regular(described.widths))
    specs = [variant.spec for variant in VARIANTS.values()]
    for activation in (described.activation, "silu"):
        for spec in specs:
            same = replace(
                regular,
                name=spec.name,
                activation=activation,
                classes=spec.classes,
                image_size=spec.image_size,
                dropout=spec.dropout,
            )
            if same == spec:
                return spec
    return None


def is_released_form(described: ParNetSpec, expected: ParNetSpec) -> bool:
    """Whether a checkpoint is the authors' release of a variant that the paper gives otherwise."""
    if described.widths[0] != 92 or _regular(described.widths) != expected.widths:
        return False
    released = expected.with_widths(described.widths)
    return replace(described, name=released.name, dropout=released.dropout) == replace(
        released, image_size=described.image_size, activation=described.activation
    )


def _regular(widths: tuple[int, ...]) -> tuple[int, ...]:
    """The paper's widths for the authors' released ones: their S begins with 92, not 96."""
    return (96, *widths[1:]) if widths[0] == 92 else widths
