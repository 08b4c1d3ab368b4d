"""The first block at which two rungs part company."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from parnet_deploy.spec import IMAGES, Array, BlockSpec
from parnet_deploy.verify.compare import differences, find_problem, relative
from parnet_deploy.verify.problems import listed
from parnet_deploy.verify.result import BlockError

Place = tuple[str | None, str]


@dataclass(slots=True)
class _Found:
    """What is known of one block so far."""

    error: float = 0.0
    scale: float = 0.0
    problem: str | None = None


class BlockErrors:
    """Gathers blocks' errors, batch by batch; the values themselves are not kept."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._found: dict[Place, _Found] = {}

    def add(self, expected: Mapping[Place, Array], actual: Mapping[Place, Array]) -> None:
        """Compare every value that both sides show."""
        for place, value in actual.items():
            reference = _counterpart(expected, place)
            if reference is None:
                continue
            found = self._found.setdefault(place, _Found())
            measured = differences(reference, value)
            if measured is None:
                found.problem = found.problem or find_problem(reference, value)
            else:
                found.error = max(found.error, measured[0])
                found.scale = max(found.scale, measured[1])

    def result(self, blocks: Iterable[BlockSpec]) -> tuple[BlockError, ...]:
        """All blocks seen: stage by stage, in the order in which they are computed."""
        order = {block.name: index for index, block in enumerate(blocks)}
        stages = list(dict.fromkeys(stage for stage, _ in self._found))
        places = sorted(self._found, key=lambda p: (stages.index(p[0]), order.get(p[1], -1)))
        return tuple(_block_error(place, self._found[place]) for place in places)


def first_parting(
    errors: tuple[BlockError, ...], blocks: Iterable[BlockSpec], limit: float
) -> str | None:
    """Where values first differ by more than `limit`, in words.

    A block is to blame where it differs although the nearest values before it that can be seen do
    not. Where blocks between those and it cannot be seen, any of them may be.

    Args:
        errors: blocks' errors, in the order of `BlockErrors.result`.
        blocks: the network's layout.
        limit: greatest relative error that passes.

    Returns:
        A phrase that begins with the block's name, or None where no value differs.
    """
    known = {block.name: block for block in blocks}
    bad = [error for error in errors if parts(error, limit)]
    if not bad:
        return None
    places = {(error.stage, error.block) for error in errors}
    wrong = {(error.stage, error.block) for error in bad}
    causes = [
        (error, hidden)
        for error in bad
        for seen, hidden in [_look_back((error.stage, error.block), known, places)]
        if not any(place in wrong for place in seen)
    ]
    # Every chain of causes has a beginning, so there is one; a cycle is no network.
    error, hidden = causes[0]
    phrase = _name(error, known)
    if hidden:
        phrase += f", or a block before it that cannot be seen ({', '.join(hidden)})"
    phrase += f": {_figure(error, limit)}"
    if len(causes) > 1:
        phrase += f"; independently of it at {listed(_name(e, known) for e, _ in causes[1:])}"
    return phrase


def parts(error: BlockError, limit: float) -> bool:
    """Whether a block's values differ by more than `limit`, or cannot be compared."""
    return error.max_rel is None or not error.max_rel <= limit


def worst(errors: tuple[BlockError, ...]) -> BlockError | None:
    """The block that differs most."""
    return max(errors, key=lambda e: float("inf") if e.max_rel is None else e.max_rel, default=None)


def _counterpart(values: Mapping[Place, Array], place: Place) -> Array | None:
    """The reference's value for a block, in the same stage or, where it has none, in any."""
    for key in (place, (None, place[1])):
        if key in values:
            return values[key]
    return next((value for (_, block), value in values.items() if block == place[1]), None)


def _block_error(place: Place, found: _Found) -> BlockError:
    stage, block = place
    if found.problem is not None:
        return BlockError(
            stage=stage, block=block, max_abs=None, max_rel=None, problem=found.problem
        )
    return BlockError(
        stage=stage, block=block, max_abs=found.error, max_rel=relative(found.error, found.scale)
    )


def _look_back(
    place: Place, blocks: Mapping[str, BlockSpec], places: set[Place]
) -> tuple[set[Place], list[str]]:
    """The nearest values before a block that can be seen, and the blocks between that cannot."""
    stage, block = place
    seen: set[Place] = set()
    hidden: list[str] = []
    queue = list(blocks[block].inputs)
    while queue:
        name = queue.pop(0)
        if name == IMAGES:
            continue
        if (stage, name) in places:
            seen.add((stage, name))
        elif others := {other for other in places if other[1] == name}:
            seen |= others
        elif name not in hidden:
            hidden.append(name)
            queue += blocks[name].inputs
    return seen, hidden[::-1]


def _name(error: BlockError, blocks: Mapping[str, BlockSpec]) -> str:
    where = f" in stage {error.stage}" if error.stage else ""
    return f"{error.block} ({blocks[error.block].kind} block{where})"


def _figure(error: BlockError, limit: float) -> str:
    if error.max_rel is None:
        return f"its output {error.problem}"
    return f"its output differs by {error.max_rel:.1e}, and {limit:.1e} is allowed"
