"""The picture as SVG 1.1: the same bytes for the same picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape, quoteattr

from parnet_deploy.diagram.grid import MARGIN, TOP, Box, Grid, Link, Node, Point, arrange
from parnet_deploy.diagram.picture import Picture, PictureStage
from parnet_deploy.diagram.routes import label_point, outline, route
from parnet_deploy.diagram.style import css, tint_of
from parnet_deploy.diagram.text import TIMES, shorten, text_width
from parnet_deploy.spec import BlockSpec, ParNetSpec

KIND_NAMES = {
    "skip": "RepVGG-SSE block, with skip",
    "plain": "block without skip (/2: halves the resolution)",
    "fusion": "Fusion block: joins two streams",
    "pointwise": "1x1 convolution",
    "head": "global average pool, linear",
}

_SMALL, _NOTE, _STAGE, _SUBTITLE, _TITLE = 11.0, 12.0, 13.0, 13.0, 22.0
_STRIP = 5.0
_BOX_PAD = 7.0
_STAGE_PAD = 12.0
_OUTPUT_GAP = 34.0
_LEGEND_TOP = 24.0
_LEGEND_LINE = 24.0
_LEGEND_GAP = 16.0
_SWATCH = 14.0


def draw(picture: Picture) -> str:
    """Draw a picture.

    Returns:
        An SVG document.
    """
    grid = arrange(picture)
    after_head = _OUTPUT_GAP + text_width(picture.output, _NOTE) + 8
    width = grid.right + max(after_head, 12) + MARGIN
    legend, legend_height = _legend(picture, grid, width)
    height = grid.bottom + _LEGEND_TOP + legend_height + 20
    body = (
        *_heading(picture, width),
        *_depth_axis(grid),
        *(_region(stage, grid) for stage in picture.stages),
        *(_way(grid, link) for link in _plain_first(grid.links)),
        *_output(picture, grid),
        *_boxes(picture, grid),
        *_stage_names(picture, grid),
        *_cut_labels(picture, grid),
        *legend,
    )
    title = f"{picture.title}. {picture.subtitle}"
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<svg xmlns="http://www.w3.org/2000/svg" class="parnet" role="img" '
        f'viewBox="0 0 {_n(width)} {_n(height)}" width="{_n(width)}" height="{_n(height)}" '
        f"aria-label={quoteattr(title)}>\n"
        f"<title>{escape(title)}</title>\n<style>{css()}</style>\n"
        f"<defs>{_arrow_head('way')}{_arrow_head('cut')}</defs>\n"
        f'<rect class="ground" width="{_n(width)}" height="{_n(height)}" rx="10"/>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _n(value: float) -> str:
    """A number as short as it can be written."""
    return f"{value:.1f}".removesuffix(".0")


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    where = "" if anchor == "start" else f' text-anchor="{anchor}"'
    of_kind = f' class="{kind}"' if kind else ""
    return f'<text x="{_n(x)}" y="{_n(y)}"{of_kind}{where}>{escape(text)}</text>'


def _arrow_head(kind: str) -> str:
    return (
        f'<marker id="parnet-{kind}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="9" '
        f'markerHeight="9" markerUnits="userSpaceOnUse" orient="auto">'
        f'<path class="{kind}-head" d="M0 0.8L10 5L0 9.2z"/></marker>'
    )


def _heading(picture: Picture, width: float) -> Iterator[str]:
    room = width - 2 * MARGIN
    badge_width = text_width(picture.badge, _SMALL) + 24 if picture.badge else 0
    yield _text(MARGIN, 46, shorten(picture.title, _TITLE, room - badge_width - 12), "title")
    yield _text(MARGIN, 70, shorten(picture.subtitle, _SUBTITLE, room), "subtitle muted")
    if picture.badge:
        x = width - MARGIN - badge_width
        yield (
            f'<rect class="badge" x="{_n(x)}" y="27" width="{_n(badge_width)}" height="24" '
            'rx="12"/>'
        )
        yield _text(x + badge_width / 2, 43, picture.badge, "badge-text", "middle")


def _depth_axis(grid: Grid) -> Iterator[str]:
    y = TOP - 20
    yield _text(grid.image.middle[0], y, "depth", "muted", "middle")
    for depth, x in enumerate(grid.columns, 1):
        yield _text(x, y, str(depth), "muted", "middle")
        yield f'<path class="tick" d="M{_n(x)} {_n(y + 5)}v5"/>'


def _region(stage: PictureStage, grid: Grid) -> str:
    corners = outline(grid.regions[stage.name])
    return (
        f'<path class="region tint-{tint_of(stage.name)}" data-stage={quoteattr(stage.name)} '
        f'd="{_rounded(corners, 10, closed=True)}"/>'
    )


def _stage_names(picture: Picture, grid: Grid) -> Iterator[str]:
    """Each at the start of its region, or at its end where something else stands at the start."""
    for stage in picture.stages:
        span = grid.regions[stage.name][0]
        top = [name for name in stage.blocks if grid.boxes[stage.name, name].row == span.row]
        firsts = [name for name in stage.blocks if name.endswith("_block1")]
        captions = firsts if len(firsts) > 1 else []
        way_from_above = grid.blocks[top[0]].kind == "fusion"
        yield from (_caption(grid.boxes[stage.name, name], name) for name in captions)
        if captions or way_from_above:
            last = top[-1] if captions else top[0]
            room = span.right - grid.boxes[stage.name, last].right
            yield _stage_name(stage, span.right - _STAGE_PAD, span.top, room, "end")
        else:
            yield _stage_name(stage, span.left + _STAGE_PAD, span.top, span.right - span.left)


def _caption(box: Box, first_block: str) -> str:
    """The name of a stream, where it is not a stage's."""
    return _text(box.x, box.y - 8, first_block.removesuffix("_block1"), "note muted")


def _stage_name(
    stage: PictureStage, x: float, top: float, room: float, anchor: str = "start"
) -> str:
    room -= 2 * _STAGE_PAD + text_width(stage.name, _STAGE)
    notes = ""
    for note in stage.notes:
        longer = f"{notes}  ·  {note}"
        if text_width(longer, _NOTE) > room:
            break
        notes = longer
    where = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return (
        f'<text x="{_n(x)}" y="{_n(top + 20)}"{where} xml:space="preserve">'
        f'<tspan class="stage">{escape(stage.name)}</tspan>'
        f'<tspan class="note muted">{escape(notes)}</tspan></text>'
    )


def _plain_first(links: Sequence[Link]) -> list[Link]:
    return sorted(links, key=lambda link: link.is_cut)


def _way(grid: Grid, link: Link) -> str:
    kind = "cut" if link.is_cut else "way"
    return _path(route(grid, link), kind)


def _path(corners: Sequence[Point], kind: str) -> str:
    return f'<path class="{kind}" d="{_rounded(corners, 8)}" marker-end="url(#parnet-{kind})"/>'


def _output(picture: Picture, grid: Grid) -> Iterator[str]:
    box = next(box for (_, name), box in grid.boxes.items() if name == "head")
    y = box.middle[1]
    end = box.right + _OUTPUT_GAP
    yield _path(((box.right, y), (end, y)), "way")
    yield _text(end + 6, y + 4, picture.output, "note name")


def _boxes(picture: Picture, grid: Grid) -> Iterator[str]:
    times: dict[str, int] = {}
    for _, name in grid.boxes:
        times[name] = times.get(name, 0) + 1
    spec = picture.spec
    height, width = spec.image_size
    yield _box(
        grid.image, "image", "images", ("3 ch", f"{height} {TIMES} {width}"), tip="the input"
    )
    for node, box in grid.boxes.items():
        block = grid.blocks[node[1]]
        yield _box(
            box,
            block.kind,
            _short_name(node),
            _shape(spec, block),
            tip=_tip(spec, block),
            mark="/2" if block.stride == 2 else "",
            repeated=times[node[1]] > 1,
        )


def _box(
    box: Box,
    kind: str,
    name: str,
    lines: tuple[str, str],
    *,
    tip: str,
    mark: str = "",
    repeated: bool = False,
) -> str:
    x, y, right = box.x, box.y, box.right
    edge, strip = ("box repeated", f"{kind} faded") if repeated else ("box", kind)
    marked = _text(right - _BOX_PAD, y + 21, mark, "muted", "end") if mark else ""
    return (
        f'<g class="block"><title>{escape(tip)}</title>'
        f'<rect class="{edge}" x="{_n(x)}" y="{_n(y)}" width="{_n(box.width)}" '
        f'height="{_n(box.height)}" rx="5"/>'
        f'<path class="{strip}" d="M{_n(x)} {_n(y + _STRIP)}q0 -{_n(_STRIP)} {_n(_STRIP)} '
        f'-{_n(_STRIP)}H{_n(right - _STRIP)}q{_n(_STRIP)} 0 {_n(_STRIP)} {_n(_STRIP)}z"/>'
        f"{_text(x + _BOX_PAD, y + 21, name, 'name')}{marked}"
        f"{_text(x + _BOX_PAD, y + 36, lines[0], 'muted')}"
        f"{_text(x + _BOX_PAD, y + 50, lines[1], 'muted')}</g>"
    )


def _short_name(node: Node) -> str:
    """A stream's blocks are numbered: their row tells the stream."""
    return node[1].split("_")[-1]


def _shape(spec: ParNetSpec, block: BlockSpec) -> tuple[str, str]:
    if block.kind == "head":
        return str(block.out_channels), "classes"
    height, width = (size // block.scale for size in spec.image_size)
    return f"{block.out_channels} ch", f"{height} {TIMES} {width}"


def _tip(spec: ParNetSpec, block: BlockSpec) -> str:
    channels = " + ".join([str(block.in_channels)] * len(block.inputs))
    shape = " ".join(_shape(spec, block))
    return f"{block.name}: {KIND_NAMES[block.kind]}; {channels} channels in, {shape} out"


def _cut_labels(picture: Picture, grid: Grid) -> Iterator[str]:
    for link in grid.links:
        label = picture.cut_labels.get(link.value)
        if not link.is_cut or label is None:
            continue
        x, y = label_point(route(grid, link))
        width = text_width(label, _SMALL) + 14
        yield (
            f'<g class="cut-mark"><title>{escape(link.value)}</title>'
            f'<rect class="pill" x="{_n(x - width / 2)}" y="{_n(y - 10)}" width="{_n(width)}" '
            f'height="20" rx="10"/>{_text(x, y + 4, label, "cut-label", "middle")}</g>'
        )


def _legend(picture: Picture, grid: Grid, width: float) -> tuple[list[str], float]:
    """What the colours mean: its elements and its height."""
    kinds = {grid.blocks[name].kind for _, name in grid.boxes}
    names: dict[str, str] = {kind: name for kind, name in KIND_NAMES.items() if kind in kinds}
    if len(grid.boxes) > len(grid.blocks):
        names["repeated"] = "computed in every stage that needs it"
    if any(link.is_cut for link in grid.links):
        names["cut"] = "cut: crosses between stages, bytes an image"
    entry_width = max(_SWATCH + 8 + text_width(name, _NOTE) for name in names.values())
    in_line = max(1, int((width - 2 * MARGIN + _LEGEND_GAP) // (entry_width + _LEGEND_GAP)))
    lines = -(-len(names) // in_line)
    in_line = -(-len(names) // lines)
    parts = []
    for index, (kind, name) in enumerate(names.items()):
        x = MARGIN + index % in_line * (entry_width + _LEGEND_GAP)
        y = grid.bottom + _LEGEND_TOP + index // in_line * _LEGEND_LINE
        parts += [_swatch(kind, x, y), _text(x + _SWATCH + 8, y + 12, name, "note muted")]
    return parts, lines * _LEGEND_LINE


def _swatch(kind: str, x: float, y: float) -> str:
    if kind == "cut":
        return f'<path class="cut" d="M{_n(x)} {_n(y + 8)}h{_n(_SWATCH)}"/>'
    of_kind = "box repeated" if kind == "repeated" else kind
    return (
        f'<rect class="{of_kind}" x="{_n(x)}" y="{_n(y + 1)}" width="{_n(_SWATCH)}" '
        f'height="{_n(_SWATCH)}" rx="3"/>'
    )


def _rounded(corners: Sequence[Point], radius: float, *, closed: bool = False) -> str:
    """A path through corners, which are rounded."""
    points = list(corners)
    turns = range(len(points)) if closed else range(1, len(points) - 1)
    steps = []
    if not closed:
        steps.append(f"M{_n(points[0][0])} {_n(points[0][1])}")
    for index in turns:
        before, corner = points[index - 1], points[index]
        after = points[(index + 1) % len(points)]
        start, end = _towards(corner, before, radius), _towards(corner, after, radius)
        steps.append(
            f"{'L' if steps else 'M'}{_n(start[0])} {_n(start[1])}"
            f"Q{_n(corner[0])} {_n(corner[1])} {_n(end[0])} {_n(end[1])}"
        )
    steps.append("Z" if closed else f"L{_n(points[-1][0])} {_n(points[-1][1])}")
    return "".join(steps)


def _towards(corner: Point, other: Point, radius: float) -> Point:
    """The point so far from a corner on the way to the next, or half way where that is nearer."""
    (x, y), (to_x, to_y) = corner, other
    length = abs(to_x - x) + abs(to_y - y)
    part = min(radius, length / 2) / length if length else 0.0
    return x + (to_x - x) * part, y + (to_y - y) * part
