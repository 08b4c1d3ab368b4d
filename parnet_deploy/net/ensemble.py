"""Networks of one stream, trained each by itself, as one network whose streams they are.

Paper: table 9, "Ensemble of single-stream ParNets".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch

from parnet_deploy.errors import CheckpointError, UsageError
from parnet_deploy.net.blocks import EnsembleHead, Head
from parnet_deploy.net.checkpoint import Checkpoint, TrainingFacts, load_checkpoint
from parnet_deploy.net.parnet import ParNet
from parnet_deploy.spec import VARIANTS, ParNetSpec
from parnet_deploy.spec.layout import member_block


def join_checkpoints(paths: Sequence[Path]) -> tuple[ParNet, TrainingFacts]:
    """Read members, see that they fit together, and join them.

    Args:
        paths: two or more checkpoints of the same network, trained from different seeds.

    Returns:
        The ensemble, in inference mode, and its facts: the members' own, and where they came from.

    Raises:
        UsageError: fewer than two.
        CheckpointError: one cannot be read, has several streams, differs from the first in more
            than its weights, or has the weights of another; the message names file and field.
    """
    if len(paths) < 2:
        raise UsageError(f"an ensemble has at least two members, not {len(paths)}")
    members = [load_checkpoint(path) for path in paths]
    first_path, first = paths[0], members[0]
    for path, member in zip(paths, members, strict=True):
        _check_alone(path, member.model.spec)
        _check_alike(path, member, first_path, first)
    _check_different(paths, members)
    sources = tuple(member.source for member in members)
    facts = replace(first.facts, members=sources, ranges=None)
    return join([member.model for member in members]), facts


def join(members: Sequence[ParNet]) -> ParNet:
    """Join networks of one stream and the same spec.

    Args:
        members: the networks; they are left as they are.

    Returns:
        A new network in inference mode, whose logits are the mean of the members'.
    """
    spec = ensemble_spec(members[0].spec, len(members))
    with torch.device("meta"):
        joined = ParNet(spec)
    joined = joined.to_empty(device="cpu").to(next(members[0].parameters()).dtype)
    head = joined.blocks["head"]
    if not isinstance(head, EnsembleHead):
        raise TypeError(f"an ensemble of {len(members)} has a {type(head).__name__}")
    for number, member in enumerate(members, 1):
        for name, block in member.blocks.items():
            if isinstance(block, Head):
                head.classifiers[number - 1].load_state_dict(block.linear.state_dict())
            else:
                joined.blocks[member_block(number, name)].load_state_dict(block.state_dict())
    return joined.eval()


def ensemble_spec(member: ParNetSpec, members: int) -> ParNetSpec:
    """The ensemble of several networks of one spec; it is called by its variant's name, if any.

    Raises:
        SpecError: a member has several streams.
    """
    spec = replace(member, name=f"{member.name}-ensemble-{members}", members=members)
    for variant in VARIANTS.values():
        same = replace(
            spec,
            name=variant.spec.name,
            classes=variant.spec.classes,
            image_size=variant.spec.image_size,
        )
        if same == variant.spec:
            return replace(spec, name=variant.spec.name)
    return spec


def _check_alone(path: Path, spec: ParNetSpec) -> None:
    if spec.streams > 1:
        kind = "an ensemble already" if spec.members > 1 else f"a network of {spec.streams} streams"
        raise CheckpointError(
            f"{path} is {kind}; the members of an ensemble have one stream each, "
            "such as the variant m-one-stream or any other trained with --streams 1"
        )


def _check_alike(path: Path, member: Checkpoint, first_path: Path, first: Checkpoint) -> None:
    """Refuse what differs in more than its weights; a name says nothing of a network."""
    compared = [
        (field.name, getattr(member.model.spec, field.name), getattr(first.model.spec, field.name))
        for field in fields(ParNetSpec)
        if field.name != "name"
    ]
    compared += [
        ("preprocessing", member.facts.preprocessing, first.facts.preprocessing),
        ("labels", member.facts.labels, first.facts.labels),
    ]
    for name, has, expected in compared:
        if has != expected:
            values = "" if name == "labels" else f": {has} instead of {expected}"
            raise CheckpointError(
                f"{path} has other {name} than {first_path}{values}; the members of an ensemble "
                "differ in nothing but their weights"
            )


def _check_different(paths: Sequence[Path], members: Sequence[Checkpoint]) -> None:
    for index, (path, member) in enumerate(zip(paths, members, strict=True)):
        for other_path, other in zip(paths[:index], members, strict=False):
            if member.source.sha256 == other.source.sha256 or _same_weights(member, other):
                raise CheckpointError(
                    f"{path} holds the same weights as {other_path}: an ensemble of copies is no "
                    "better than one of them; give networks trained from different seeds"
                )


def _same_weights(one: Checkpoint, other: Checkpoint) -> bool:
    weights = other.model.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in one.model.state_dict().items())
