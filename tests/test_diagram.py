"""The picture: well-formed, the same every time, everything in its place and readable."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib as mpl
import pytest
from conftest import tiny_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageFont

from parnet_deploy.diagram import Picture, PictureStage, draw
from parnet_deploy.diagram.text import TIMES, shorten, text_width
from parnet_deploy.spec import ParNetSpec, StemMode, cuts, layout, stages, variant

SVG = "{http://www.w3.org/2000/svg}"


def picture(spec: ParNetSpec, stem: StemMode | None, **changes: object) -> Picture:
    """A spec's picture: split with that stem, or whole where it is None."""
    if stem is None:
        names = tuple(block.name for block in layout(spec))
        drawn: tuple[PictureStage, ...] = (
            PictureStage(name="whole", blocks=names, notes=("cpu",)),
        )
        labels = {}
    else:
        split = stages(spec, stem)
        notes = ("cuda:0", "34 kernels")
        drawn = tuple(PictureStage(name=s.name, blocks=s.blocks, notes=notes) for s in split)
        labels = {cut.tensor: "1023.9 KiB" for cut in cuts(split)}
    found = Picture(
        spec=spec,
        title=f"parnet-{spec.name}",
        subtitle="a line about it",
        stages=drawn,
        cut_labels=labels,
    )
    return replace(found, **changes)  # type: ignore[arg-type]


@st.composite
def pictures(draws: st.DrawFn) -> Picture:
    """Pictures of networks of every shape."""
    streams = draws(st.integers(1, 4))
    members = draws(st.integers(1, 5)) if streams == 1 else 1
    stem_blocks = draws(st.integers(0, 2))
    spec = tiny_spec(
        members=members,
        stem_widths=(8,) * stem_blocks,
        stem_strides=(draws(st.sampled_from([1, 2])),) * (stem_blocks + 1),
        stream_widths=tuple(4 << index for index in range(streams)),
        stream_blocks=tuple(draws(st.integers(1, 12)) for _ in range(streams)),
        image_size=(draws(st.sampled_from([128, 1024])), 512),
        classes=draws(st.sampled_from([2, 21843])),
        last=draws(st.sampled_from(["downsample", "pointwise"])),
        last_stride=1,
        last_width=3200,
    )
    return picture(spec, draws(st.sampled_from(["replicate", None, *["share"] * (members == 1)])))


@dataclass(frozen=True)
class Rect:
    """A rectangle of the drawing."""

    left: float
    top: float
    right: float
    bottom: float

    def holds(self, other: Rect) -> bool:
        return (
            self.left <= other.left
            and self.top <= other.top
            and other.right <= self.right
            and other.bottom <= self.bottom
        )

    def meets(self, other: Rect) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


SIZES = {"title": 22.0, "subtitle": 13.0, "note": 12.0, "stage": 13.0}


def rect_of(element: ET.Element) -> Rect:
    """A rect element, or a text with the width it has at most."""
    if element.tag == f"{SVG}rect":
        left, top = float(element.get("x", 0)), float(element.get("y", 0))
        return Rect(
            left, top, left + float(element.attrib["width"]), top + float(element.attrib["height"])
        )
    size, width = 0.0, 0.0
    for piece in (element, *element):
        kinds = piece.get("class", "").split()
        piece_size = max((SIZES.get(kind, 11.0) for kind in kinds), default=11.0)
        size, width = max(size, piece_size), width + text_width(piece.text or "", piece_size)
    x, y = float(element.attrib["x"]), float(element.attrib["y"])
    left = {"start": x, "middle": x - width / 2, "end": x - width}[
        element.get("text-anchor", "start")
    ]
    return Rect(left, y - 0.8 * size, left + width, y + 0.25 * size)


def corners_of(path: ET.Element) -> list[tuple[float, float]]:
    """The corners of a way or a region: its ends, and the control points of its curves."""
    steps = re.findall(r"([MLQ])([-\d. ]+)", path.attrib["d"])
    corners = []
    for index, (step, numbers) in enumerate(steps):
        values = [float(number) for number in numbers.split()]
        is_end = index in (0, len(steps) - 1) and "Z" not in path.attrib["d"]
        if step == "Q" or is_end:
            corners.append((values[0], values[1]))
    return corners


def blocks_of(root: ET.Element) -> dict[str, list[Rect]]:
    """Every block's rectangles, by the name in its tooltip."""
    found: dict[str, list[Rect]] = {}
    for group in root.iter(f"{SVG}g"):
        if group.get("class") == "block":
            name = (group.findtext(f"{SVG}title") or "").split(":")[0]
            found.setdefault(name, []).append(rect_of(group.find(f"{SVG}rect")))  # type: ignore[arg-type]
    return found


@given(pictures())
@settings(max_examples=40)
def test_everything_stands_in_its_place(drawn: Picture) -> None:
    root = ET.fromstring(draw(drawn))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    page = Rect(0, 0, width, height)
    blocks = blocks_of(root)
    assert set(blocks) == {"the input"} | {block.name for block in layout(drawn.spec)}
    boxes = [box for rects in blocks.values() for box in rects]
    assert len(boxes) == 1 + sum(len(stage.blocks) for stage in drawn.stages)

    texts = list(root.iter(f"{SVG}text"))
    assert all(page.holds(rect_of(element)) for element in (*texts, *root.iter(f"{SVG}rect")))
    for group in root.iter(f"{SVG}g"):  # blocks and labels of cuts: their texts fit
        frame = rect_of(group.find(f"{SVG}rect"))  # type: ignore[arg-type]
        inside = [rect_of(text) for text in group.iter(f"{SVG}text")]
        assert inside
        assert all(frame.holds(text) for text in inside), [t.text for t in group.iter()]
        assert not any(one.meets(other) for one, other in itertools.combinations(inside, 2))
    pills = [rect_of(e) for e in root.iter(f"{SVG}rect") if e.get("class") == "pill"]
    assert not any(a.meets(b) for a, b in itertools.combinations([*boxes, *pills], 2))
    free = [rect_of(text) for text in root.findall(f"{SVG}text")]
    assert not any(a.meets(b) for a, b in itertools.combinations([*free, *pills], 2))
    assert not any(text.meets(box) for text in free for box in boxes)


@given(pictures())
@settings(max_examples=40)
def test_regions_hold_their_own_blocks_and_no_others(drawn: Picture) -> None:
    root = ET.fromstring(draw(drawn))
    regions = {
        path.attrib["data-stage"]: corners_of(path)
        for path in root.iter(f"{SVG}path")
        if "data-stage" in path.attrib
    }
    assert list(regions) == [stage.name for stage in drawn.stages]
    blocks = blocks_of(root)
    for stage in drawn.stages:
        inside = [
            name
            for name, boxes in blocks.items()
            for box in boxes
            if contains(regions[stage.name], ((box.left + box.right) / 2, box.top + 1))
        ]
        assert sorted(inside) == sorted(stage.blocks)


@given(pictures())
@settings(max_examples=40)
def test_regions_keep_apart_and_hold_the_ways_inside_their_stages(drawn: Picture) -> None:
    root = ET.fromstring(draw(drawn))
    paths = list(root.iter(f"{SVG}path"))
    regions = [corners_of(path) for path in paths if "data-stage" in path.attrib]
    columns, rows = middles(regions, 0), middles(regions, 1)
    owners = [
        [[n for n, region in enumerate(regions) if contains(region, (x, y))] for x in columns]
        for y in rows
    ]
    assert all(len(owner) <= 1 for line in owners for owner in line)
    for lines in (owners, list(zip(*owners, strict=True))):
        for line in lines:  # neighbours are the same region, or one of them is none
            assert all(a == b or not a or not b for a, b in itertools.pairwise(line))

    image = rect_of(next(g for g in root.iter(f"{SVG}g") if g.get("class") == "block")[1])
    inner = [corners_of(path) for path in paths if path.get("class") == "way"]
    for way in inner:
        from_image = way[0][0] == image.right
        if not from_image and way[-1][0] < max(x for region in regions for x, _ in region):
            assert any(all(contains(region, point) for point in way) for region in regions)


def middles(regions: list[list[tuple[float, float]]], axis: int) -> list[float]:
    """Between every two neighbouring coordinates of corners: one point for each cell."""
    values = sorted({corner[axis] for region in regions for corner in region})
    return [(low + high) / 2 for low, high in itertools.pairwise(values)]


def contains(corners: list[tuple[float, float]], point: tuple[float, float]) -> bool:
    """Whether a polygon contains a point: a ray to the right meets its edges an odd time."""
    x, y = point
    meets = 0
    for (x1, y1), (x2, y2) in itertools.pairwise([*corners, corners[0]]):
        if (y1 > y) != (y2 > y):
            meets += x < x1 + (y - y1) * (x2 - x1) / (y2 - y1)
    return meets % 2 == 1


@given(pictures())
@settings(max_examples=40)
def test_ways_lead_from_block_to_block_and_cross_none(drawn: Picture) -> None:
    root = ET.fromstring(draw(drawn))
    boxes = [box for rects in blocks_of(root).values() for box in rects]
    ways = [
        path
        for path in root.iter(f"{SVG}path")
        if path.get("class") in ("way", "cut") and path.get("marker-end")
    ]
    free_texts = [rect_of(text) for text in root.findall(f"{SVG}text")]
    blocks = {block.name: block for block in layout(drawn.spec)}
    reads = sum(len(blocks[name].inputs) for stage in drawn.stages for name in stage.blocks)
    assert len(ways) == reads + 1  # and the one from the head
    for way in ways:
        corners = corners_of(way)
        assert any(touches(box, corners[0]) for box in boxes)
        is_output = corners[-1][0] > max(box.right for box in boxes)
        assert is_output or any(touches(box, corners[-1]) for box in boxes)
        for (x1, y1), (x2, y2) in itertools.pairwise(corners):
            assert x1 == x2 or y1 == y2
            left, right, top, bottom = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
            inner = Rect(left + 0.1, top - 0.1, right - 0.1, bottom + 0.1)
            if x1 == x2:
                inner = Rect(left - 0.1, top + 0.1, right + 0.1, bottom - 0.1)
            assert not any(inner.meets(box) for box in (*boxes, *free_texts))


def touches(box: Rect, point: tuple[float, float]) -> bool:
    """Whether a point lies on a rectangle's edge."""
    x, y = point
    beside = box.top <= y <= box.bottom and x in (box.left, box.right)
    return beside or (box.left <= x <= box.right and y in (box.top, box.bottom))


@pytest.mark.parametrize("stem", ["replicate", "share"])
@pytest.mark.parametrize("streams", [1, 2, 3, 4])
def test_every_cut_is_drawn_with_its_bytes(streams: int, stem: StemMode) -> None:
    spec = variant("l").spec.with_streams(streams)
    expected = [cut.tensor for cut in cuts(stages(spec, stem))]
    labels = {name: f"{index + 1}.5 MiB" for index, name in enumerate(expected)}
    root = ET.fromstring(draw(picture(spec, stem, cut_labels=labels)))
    marks = [group for group in root.iter(f"{SVG}g") if group.get("class") == "cut-mark"]
    shown = {g.findtext(f"{SVG}title"): g.findtext(f"{SVG}text") for g in marks}
    assert shown == labels
    lines = [p for p in root.iter(f"{SVG}path") if p.get("class") == "cut" and p.get("marker-end")]
    assert len(lines) == len(expected) > 0


def test_a_whole_network_has_no_cuts_and_names_its_streams() -> None:
    text = draw(picture(variant("l").spec, None))
    assert "cut-mark" not in text
    assert all(f">stream{number}<" in text for number in (1, 2, 3))


def test_an_ensembles_members_lie_below_each_other_and_join_at_the_head() -> None:
    spec = tiny_spec(stream_widths=(8,), stream_blocks=(2,), members=3)
    root = ET.fromstring(draw(picture(spec, "replicate")))
    blocks = blocks_of(root)
    rows = [blocks[f"stream{member}_last"][0].top for member in (1, 2, 3)]
    assert rows == sorted(set(rows))
    (head,) = blocks["head"]
    ends = [
        corners_of(path)[-1]
        for path in root.iter(f"{SVG}path")
        if path.get("class") == "cut" and path.get("marker-end")
    ]
    assert ends == [(head.left, (head.top + head.bottom) / 2)] * 3


@pytest.mark.parametrize("name", ["s", "xl", "cifar-s", "digits"])
def test_the_last_depth_is_the_networks(name: str) -> None:
    root = ET.fromstring(draw(picture(variant(name).spec, "replicate")))
    numbers = [t.text for t in root.findall(f"{SVG}text") if (t.text or "").isdigit()]
    assert numbers == [str(depth) for depth in range(1, 13)]


def test_same_picture_same_bytes() -> None:
    assert draw(picture(variant("m").spec, "share")) == draw(picture(variant("m").spec, "share"))


def test_texts_of_others_cannot_break_the_document() -> None:
    drawn = picture(
        tiny_spec(), "replicate", title='a <b> & "c"', badge="<UNTRAINED>", output="x<y"
    )
    root = ET.fromstring(draw(drawn))
    texts = [text.text for text in root.findall(f"{SVG}text")]
    assert {'a <b> & "c"', "<UNTRAINED>", "x<y"} <= set(texts)


def test_a_long_title_is_shortened_beside_its_badge() -> None:
    drawn = picture(tiny_spec(), None, title="W" * 300, badge="UNTRAINED WEIGHTS")
    root = ET.fromstring(draw(drawn))
    title = next(t for t in root.findall(f"{SVG}text") if t.get("class") == "title")
    badge = next(r for r in root.iter(f"{SVG}rect") if r.get("class") == "badge")
    assert (title.text or "").endswith("…")
    assert not rect_of(title).meets(rect_of(badge))


@pytest.mark.parametrize("face", ["DejaVuSans.ttf", "DejaVuSans-Bold.ttf"])
def test_no_text_is_wider_than_said(face: str) -> None:
    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / face
    font = ImageFont.truetype(path, 1000)
    printable = [chr(code) for code in range(32, 127)] + [TIMES, "·", "…"]
    for text in (*printable, f"1024 {TIMES} 1024", "stream1  ·  cuda:0  ·  34 kernels"):
        assert font.getlength(text) <= text_width(text, 1000), text


def test_texts_are_not_much_narrower_than_said() -> None:
    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
    font = ImageFont.truetype(path, 1000)
    for text in ("1023.9 KiB", "stream1_block12", "UNTRAINED WEIGHTS"):
        assert text_width(text, 1000) < 1.05 * font.getlength(text), text


def test_shorten_keeps_what_fits() -> None:
    assert shorten("short", 10, 1000) == "short"
    cut = shorten("a rather long line of text", 10, 60)
    assert cut.endswith("…")
    assert text_width(cut, 10) <= 60
