"""Checkpoints: our own (safetensors, spec in the metadata) and the authors' releases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from parnet_deploy.bundle import CHECKPOINT, Source, sha256
from parnet_deploy.errors import CheckpointError, SpecError, os_reason
from parnet_deploy.net.official import (
    Translated,
    authors_key,
    infer_spec,
    is_released_form,
    translate,
)
from parnet_deploy.net.parnet import ParNet
from parnet_deploy.spec import (
    VARIANTS,
    Activation,
    ParNetSpec,
    Preprocessing,
    decode,
    encode,
)
from parnet_deploy.spec.learned import LearnedRanges

_KEYS_SHOWN = 5

_UNSHAPED = ("stem_strides", "last_stride", "bn_eps")
"""Fields of a spec that change what is computed and no tensor's shape; the activation is the
checkpoint's own, or an option."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingFacts:
    """What a checkpoint says about itself beside its spec.

    Attributes:
        labels: class names in the order of the logits; empty where they are not known.
        preprocessing: how images were prepared in evaluation, or None.
        members: of an ensemble that was joined, where its members' weights came from.
        ranges: of activations, where it was trained to be quantised (``train --qat``), or None.
    """

    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    members: tuple[Source, ...] = ()
    ranges: LearnedRanges | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Description:
    spec: ParNetSpec
    facts: TrainingFacts = TrainingFacts()


# One entry with everything in it: safetensors writes several in any order, and so any bytes.
_METADATA = "parnet-deploy/checkpoint"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A network read from a file, and where it came from.

    Attributes:
        model: the network, in inference mode, float32.
        source: the file.
        facts: what the file says beside the network.
        new_head: the classifier is not the file's: it is for other classes, and untrained.
    """

    model: ParNet
    source: Source
    facts: TrainingFacts
    new_head: bool = False


def save_checkpoint(model: ParNet, path: Path, facts: TrainingFacts | None = None) -> None:
    """Write a network's weights as safetensors, with its spec and facts in the metadata.

    Raises:
        CheckpointError: the file cannot be written.
    """
    tensors = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    described = _Description(spec=model.spec, facts=facts or TrainingFacts())
    try:
        save_file(tensors, path, metadata={_METADATA: encode(described).decode()})
    except (OSError, SafetensorError) as exc:
        raise CheckpointError(f"cannot write {path}: {exc}") from exc


def load_checkpoint(
    path: Path,
    *,
    activation: Activation | None = None,
    ema: bool = True,
    expected: ParNetSpec | None = None,
    image_size: tuple[int, int] | None = None,
) -> Checkpoint:
    """Read a checkpoint of either kind.

    Args:
        path: ``.safetensors`` of this project, a run's folder, which stands for its last weights,
            or a file that the authors released.
        activation: of an authors' checkpoint, which does not say it; SiLU by default.
        ema: take an authors' checkpoint's exponential moving average where it has one.
        expected: the network it should be; None takes the one that it describes.
        image_size: another input size than the checkpoint's own; the weights fit any.

    Returns:
        The network in inference mode, float32.

    Raises:
        CheckpointError: it cannot be read, or does not fit; the message lists the keys that are
            missing, extra or misshapen, and the variant that it would fit; or what it was trained
            with that no shape tells.
        SpecError: the image size is not a multiple of the network's stride.
    """
    if (path / CHECKPOINT).is_file():  # a run's folder, or a model's
        path /= CHECKPOINT
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint file at {path}")
    if _is_safetensors(path):
        weights, spec, facts = _read_own(path)
        source = Source(kind="parnet-deploy", file=path.name, sha256=sha256(path))
        translated = Translated(weights=weights, keys={}, unknown=())
    else:
        state, is_ema = _read_official(path, ema=ema)
        translated = translate(state)
        facts = TrainingFacts()
        try:
            spec = infer_spec(translated, activation=activation or "silu")
        except CheckpointError as exc:
            raise CheckpointError(f"{path} is {exc}") from exc
        source = Source(kind="official", file=path.name, sha256=sha256(path), ema=is_ema)
    if activation not in (None, spec.activation):
        raise CheckpointError(f"{path} was trained with {spec.activation}, not {activation}")
    wanted = spec if expected is None or is_released_form(spec, expected) else expected
    wanted = replace(wanted, activation=spec.activation)
    if image_size is not None:
        wanted = replace(wanted, image_size=image_size)
    with torch.device("meta"):  # no time for, and no random numbers of, an initialisation
        model = ParNet(wanted)
    _check_fit(path, model, translated, spec)
    model.to_empty(device="cpu").load_state_dict(translated.weights)
    if facts.preprocessing is not None:
        facts = replace(facts, preprocessing=replace(facts.preprocessing, size=wanted.image_size))
    return Checkpoint(model=model.eval(), source=source, facts=facts)


def load_for_finetuning(
    path: Path,
    *,
    labels: Sequence[str],
    image_size: tuple[int, int] | None,
    seed: int,
    activation: Activation | None = None,
    ema: bool = True,
) -> Checkpoint:
    """Read a checkpoint of either kind as the beginning of another training.

    All weights but the classifier's are kept. So are those where the classes are the same: as many,
    and with the same names, if the checkpoint says them.

    Args:
        path: as for `load_checkpoint`.
        labels: the classes it is to tell apart.
        image_size: another input size than the checkpoint's own, or None.
        seed: seed of a new classifier; the global random state is untouched.
        activation: as for `load_checkpoint`.
        ema: as for `load_checkpoint`.

    Returns:
        The network in inference mode; `new_head` tells whether its classifier is new, and then
        its labels are empty.

    Raises:
        CheckpointError: it cannot be read, or does not fit.
        SpecError: no class, or the image size is not a multiple of the network's stride.
    """
    found = load_checkpoint(path, activation=activation, ema=ema, image_size=image_size)
    return with_classes(found, labels, seed=seed)


def with_classes(found: Checkpoint, labels: Sequence[str], *, seed: int) -> Checkpoint:
    """A checkpoint that was read, as the beginning of another training: see `load_for_finetuning`.

    Raises:
        SpecError: no class.
    """
    spec = replace(found.model.spec, classes=len(labels))
    if spec == found.model.spec and found.facts.labels in ((), tuple(labels)):
        return found
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ParNet(spec)
    kept = {
        name: value
        for name, value in found.model.state_dict().items()
        if not name.startswith("blocks.head.")
    }
    model.load_state_dict(model.state_dict() | kept)
    facts = replace(found.facts, labels=(), ranges=None)
    return replace(found, model=model.eval(), facts=facts, new_head=True)


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins with a header of that format, or bears its name."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as exc:
        raise CheckpointError(f"cannot read {path}: {os_reason(exc)}") from exc
    return path.suffix == ".safetensors" or (len(head) == 9 and head.endswith(b"{"))


def _read_own(path: Path) -> tuple[dict[str, Tensor], ParNetSpec, TrainingFacts]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in _names(file)}
        described = decode(metadata[_METADATA], _Description)
    except KeyError as exc:
        raise CheckpointError(
            f"{path} is safetensors, but not of parnet-deploy: its metadata has no {exc}"
        ) from exc
    except (SafetensorError, SpecError, OSError) as exc:
        raise CheckpointError(f"cannot read {path}: {exc}") from exc
    return weights, described.spec, described.facts


def _names(file: Any) -> list[str]:
    """What is in a safetensors file, which has keys() and cannot be iterated over itself."""
    names: list[str] = file.keys()
    return names


def _read_official(path: Path, *, ema: bool) -> tuple[Mapping[str, Tensor], bool]:
    """The state dict to take from an authors' file, and whether it is the moving average."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:  # a damaged file makes its parser raise anything
        raise CheckpointError(
            f"cannot read {path} as a PyTorch checkpoint of plain tensors; "
            f"it is damaged, no checkpoint, or holds more than tensors (which is never unpickled): "
            f"{_first_sentence(exc)}"
        ) from exc
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dict of tensors")
    averaged = ema and isinstance(content.get("state_dict_ema"), Mapping)
    state = content.get("state_dict_ema" if averaged else "state_dict", content)
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} has no 'state_dict' of tensors; it has {list(content)[:5]}")
    return {str(key): value for key, value in state.items()}, averaged


def _first_sentence(exc: Exception) -> str:
    """What an exception says, without torch's advice to load the file unsafely."""
    said = str(exc).strip() or type(exc).__name__
    return said.splitlines()[0].split(". ")[0][:200]


def _check_fit(path: Path, model: ParNet, held: Translated, described: ParNetSpec) -> None:
    """Compare what a file holds with what a network needs, in the file's own names."""
    wanted, weights = model.state_dict(), held.weights
    missing = [authors_key(name) if held.keys else name for name in wanted if name not in weights]
    extra = [*held.unknown, *(held.keys.get(n, n) for n in weights if n not in wanted)]
    misshapen = [
        f"{held.keys.get(name, name)} {list(weights[name].shape)} instead of {list(value.shape)}"
        for name, value in wanted.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if not (missing or extra or misshapen):
        _check_unshaped(path, model.spec, described)
        return
    parts = [
        f"{len(keys)} {what} ({_shown(keys)})"
        for what, keys in (("missing", missing), ("extra", extra), ("misshapen", misshapen))
        if keys
    ]
    found = "; ".join(parts)
    if replace(described, image_size=model.spec.image_size) == model.spec:
        raise CheckpointError(f"{path} is no whole checkpoint of {_describe(model.spec)}: {found}")
    raise CheckpointError(
        f"{path} does not fit {_describe(model.spec)}: {found}; it would fit {_describe(described)}"
    )


def _check_unshaped(path: Path, wanted: ParNetSpec, described: ParNetSpec) -> None:
    """Compare what changes the answers and no shape: the same weights fit either way."""
    differing = [
        f"{field} {getattr(described, field)}, not {getattr(wanted, field)}"
        for field in _UNSHAPED
        if getattr(described, field) != getattr(wanted, field)
    ]
    if differing:
        raise CheckpointError(
            f"{path} has weights that fit {_describe(wanted)}, but was trained with "
            f"{', '.join(differing)}; ask for no other network than the one that it describes"
        )


def _shown(keys: list[str]) -> str:
    more = f", and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else ""
    return ", ".join(keys[:_KEYS_SHOWN]) + more


def _describe(spec: ParNetSpec) -> str:
    known = spec.name in VARIANTS
    name = f"variant '{spec.name}'" if known else "a ParNet"
    name += f" of {spec.members} members" if spec.members > 1 else ""
    return f"{name} of widths {','.join(map(str, spec.widths))}, {spec.classes} classes"
