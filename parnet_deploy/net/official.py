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

# Pattern of a module's path in the authors' tree -> path of the same module here.
_MODULES = (
    (r"inits\.0\.0", "stem1"),
    (r"inits\.0\.1", "stem2"),
    (r"inits\.1", "stem3"),
    (r"inits\.2", "stem4"),
    (r"streams\.(?P<stream>\d+)\.(?P<block>\d+)", "stream{stream}_block{block}"),
    (r"downsamples_2\.0", "merge1"),
    (r"downsamples_2\.1\.2", "merge2"),
    (r"combine\.2", "merge3"),
    (r"combine\.3", "last"),
)
_LEAVES = (
    (r"block\.rbr_dense\.(conv|bn)", r"dense.\1"),
    (r"block\.rbr_1x1\.(?:1\.)?(conv|bn)", r"pointwise.\1"),
    (r"block\.rbr_identity", "identity"),
    (r"block\.se\.cvsig\.conv", "squeeze"),
)
_OTHERS = {
    "downsamples_2.1.0.b1": "merge2.norms.0",
    "downsamples_2.1.0.b2": "merge2.norms.1",
    "combine.0.b1": "merge3.norms.0",
    "combine.0.b2": "merge3.norms.1",
    "head.fc": "head.linear",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Translated:
    """A checkpoint under this project's names, and the keys that have no place here."""

    weights: dict[str, Tensor]
    unknown: tuple[str, ...]


def translate(state: Mapping[str, Tensor]) -> Translated:
    """Rename an authors' state dict; a leading ``module.`` is dropped.

    Raises:
        CheckpointError: two keys name the same tensor.
    """
    weights: dict[str, Tensor] = {}
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
    return Translated(weights=weights, unknown=tuple(unknown))


def _translate_key(key: str) -> str | None:
    module, _, leaf = key.rpartition(".")
    if module in _OTHERS:
        return f"{_OTHERS[module]}.{leaf}"
    for pattern, name in _MODULES:
        if not (match := re.match(pattern + r"\.", key)):
            continue
        numbers = {k: int(v) + 1 for k, v in match.groupdict().items()}
        rest = key[match.end() :]
        for old, new in _LEAVES:
            if re.match(old + r"\.", rest):
                return f"{name.format(**numbers)}.{re.sub('^' + old, new, rest)}"
    return None


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
        widths = (*streams, out("last"))
        named = next((v.spec for v in VARIANTS.values() if v.spec.widths == _regular(widths)), None)
        return ParNetSpec(
            name=named.name if named else "custom",
            stem_widths=(out("stem1"),),
            stem_strides=(2, 2),
            stream_widths=streams,
            stream_blocks=(length(1), length(2), length(3)),
            last_width=widths[-1],
            activation=activation,
            squeeze="blocks.stem1.squeeze.weight" in weights,
            classes=int(weights["blocks.head.linear.weight"].shape[0]),
            dropout=named.dropout if named else 0.0,
        )
    except KeyError as exc:
        first = ", ".join([*weights, *translated.unknown][:3]) or "nothing"
        raise CheckpointError(
            f"not a checkpoint of a ParNet: nothing in it could be {exc}; it begins with {first}"
        ) from exc
    except (IndexError, SpecError) as exc:
        raise CheckpointError(
            f"not a checkpoint of a ParNet: its shapes describe what cannot be ({exc})"
        ) from exc


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
