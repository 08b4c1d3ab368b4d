"""One trained network in every form: the same images right; and faults that change the numbers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import evaluated
import numpy as np
import pytest

from parnet_deploy.bundle import BatchRange, ModelBundle, Source, open_model
from parnet_deploy.cli.main import run as main
from parnet_deploy.data import ArraySamples, Split
from parnet_deploy.engine import BuildOptions, build_engine, make_builder
from parnet_deploy.errors import DataError, ExportError, MissingDependencyError, ParnetDeployError
from parnet_deploy.evaluate import Evaluation, Options, Subject, evaluate, open_subject
from parnet_deploy.evaluate import subject as subject_module
from parnet_deploy.export import ExportOptions, export_model
from parnet_deploy.net import TorchRunner
from parnet_deploy.spec import Array, Preprocessing
from parnet_deploy.verify.opening import open_whole

CPU = BuildOptions(provider="cpu", threads=1)


def in_torch(**changes: object) -> Subject:
    """The network in training form."""
    subject = Subject(
        kind="checkpoint",
        path=Path("checkpoint.safetensors"),
        sha256="",
        runs_on="torch",
        precision="fp32",
        spec=evaluated.network().spec,
        labels=evaluated.LABELS,
        preprocessing=evaluated.PREPROCESSING,
        batch=BatchRange(min=1, opt=16, max=16),
        softmax=False,
        runner=TorchRunner(evaluated.network()),
    )
    return replace(subject, **changes)  # type: ignore[arg-type]


def split(samples: ArraySamples | evaluated.Swapped | None = None, **changes: object) -> Split:
    """What it is evaluated on; the data's own mean and deviation are other ones."""
    made = Split(
        name="trees",
        labels=evaluated.LABELS,
        samples=samples or evaluated.samples(5, seed=2),
        mean=(0.1, 0.1, 0.1),
        std=(0.9, 0.9, 0.9),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def run(
    subject: Subject, images: Split | None = None, options: Options | None = None
) -> Evaluation:
    return evaluate(subject, images or split(), "test", options)[0]


@pytest.fixture(scope="module")
def truth() -> Evaluation:
    """By the network in training form: it has something right, and something wrong."""
    found = run(in_torch())
    assert 0.3 < found.measures.top1.right / 35 < 0.9
    return found


@pytest.fixture(scope="module")
def ten(truth: Evaluation) -> Evaluation:
    found = run(in_torch(), options=Options(crops="ten"))
    assert found.measures.loss != truth.measures.loss
    return found


def export(
    final: Path, *, softmax: bool = False, in_graph: bool = False, batch: BatchRange | None = None
) -> ModelBundle:
    options = ExportOptions(
        name=final.name,
        preprocessing=replace(evaluated.PREPROCESSING, in_graph=in_graph),
        softmax=softmax,
        batch=batch or BatchRange(min=1, opt=4, max=8),
    )
    source = Source(kind="parnet-deploy")
    return export_model(evaluated.network(), source, final, options, evaluated.LABELS)


FORMS = {
    "logits": {},
    "softmax": {"softmax": True},
    "uint8": {"in_graph": True},
    "fixed batch": {"batch": BatchRange(min=3, opt=3, max=3)},
}


@pytest.fixture(scope="module", params=list(FORMS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    final = tmp_path_factory.mktemp("models") / request.param.replace(" ", "-")
    return export(final, **FORMS[request.param])


@pytest.fixture(scope="module", params=["model", "whole", "split"])
def form(
    request: pytest.FixtureRequest, model: ModelBundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    path = model.path
    if request.param != "model":
        parts = request.param == "split"
        path = tmp_path_factory.mktemp("engines") / "engine"
        build_engine(model, path, make_builder("onnxruntime", CPU, split=parts), split=parts)
    subject = open_subject(path)
    with closing(subject.runner):
        yield subject


def same(got: Evaluation, expected: Evaluation) -> None:
    """The same images, classes and places; the loss but for float32's rounding."""
    a, b = got.measures, expected.measures
    assert a.top1 == b.top1
    assert a.topk == b.topk
    assert a.confusion == b.confusion
    assert a.classes == b.classes
    assert a.loss == pytest.approx(b.loss, abs=2e-6)


def test_every_form_has_the_same_images_right(
    form: Subject, truth: Evaluation, ten: Evaluation
) -> None:
    same(run(form), truth)
    same(run(form, options=Options(crops="ten")), ten)


def test_every_form_says_what_it_is(form: Subject) -> None:
    found = run(form, options=Options(limit=3))
    assert found.kind == form.kind
    assert (found.data, found.split, found.available) == ("trees", "test", 35)
    assert found.matching == "name"
    assert found.preprocessing.mean == evaluated.PREPROCESSING.mean, "not the data's own"
    assert found.own_preprocessing
    assert found.warnings == ()
    assert len(found.sha256) == 64
    assert "onnxruntime" in found.runs_on.lower().replace(" ", "")


def test_an_engine_that_computes_in_more_than_its_precision_says_so(
    tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    builder = make_builder("onnxruntime", CPU, split=False)
    manifest = build_engine(tiny_bundle, tmp_path / "engine", builder, split=False).manifest
    plain = "onnxruntime, one engine, on cpu"
    for precision, computes, said in (
        ("fp32", "fp32", plain),
        ("fp16", "fp32", f"{plain}, computed in fp32"),
        ("bf16", "bf16", plain),
        ("fp16", "", plain),
    ):
        changed = replace(manifest, precision=precision, computes=computes)
        assert subject_module._engine_words(changed) == said


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models which ONNX Runtime's CPU provider cannot run as they stand, and one which it can."""
    room = tmp_path_factory.mktemp("lowered")
    checkpoint = evaluated.write_checkpoint(room / "checkpoint.safetensors")
    images = evaluated.write_images(room / "images")
    found = {}
    for precision, backend in (
        ("bf16", "openvino"),
        ("fp8", "tensorrt-rtx"),
        ("int8", "onnxruntime"),
    ):
        found[precision] = room / precision
        command = ["export", "--checkpoint", str(checkpoint), "--for", backend]
        command += ["--precision", precision, "--output", str(found[precision])]
        command += ["--calibrate", str(images)] * (precision != "bf16")
        assert main(command) == 0
    return found


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_model_in_what_no_cpu_computes_is_evaluated_with_its_roundings_and_says_so(
    precision: str, lowered: dict[str, Path], truth: Evaluation, tmp_path: Path
) -> None:
    subject = open_subject(lowered[precision])
    with closing(subject.runner):
        found = run(subject)
    assert found.precision == precision
    assert f"{precision} emulated: computed in float32, every rounding made" in found.runs_on
    assert found.measures.loss != pytest.approx(truth.measures.loss, abs=1e-5), "it was rounded"
    assert abs(found.measures.top1.right - truth.measures.top1.right) <= 4
    # The same numbers as the rung of `verify`.
    rung = open_whole(open_model(lowered[precision]), tmp_path)
    with closing(rung):
        image = evaluated.pixels(evaluated.samples(1, seed=2))[:1]
        np.testing.assert_array_equal(
            subject_answer(lowered[precision], image), rung.runner.run({"images": image})["logits"]
        )


def subject_answer(path: Path, image: Array) -> Array:
    subject = open_subject(path)
    with closing(subject.runner):
        return subject.runner.run({"images": image})["logits"]


def test_without_onnx_a_model_below_float32_says_what_it_takes(
    lowered: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match=r"a graph in bf16 .* with onnx, which is not"):
        open_subject(lowered["bf16"])
    subject = open_subject(lowered["int8"])  # runs as it stands
    subject.runner.close()
    assert "emulated" not in subject.runs_on


@pytest.mark.parametrize("ours", [True, False])
def test_what_is_wrong_with_a_graph_keeps_its_own_words_where_it_has_any(
    ours: bool, lowered: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ExportError("'stem1' has no kernel") if ours else ValueError("'stem1' has no kernel")

    def fails(*_: object) -> None:
        raise said

    monkeypatch.setattr("parnet_deploy.lowering.emulate", fails)
    with pytest.raises(ParnetDeployError) as caught:
        open_subject(lowered["bf16"])
    assert (caught.value is said) == ours
    assert ("as an ONNX graph: 'stem1' has no kernel" in str(caught.value)) != ours


# --- faults -------------------------------------------------------------------------------------


def test_swapped_labels_change_the_numbers(truth: Evaluation) -> None:
    first, second, *others = evaluated.LABELS
    labels = (second, first, *others)
    found = run(in_torch(), split(labels=labels)).measures
    assert found.top1.right < truth.measures.top1.right
    assert found.confusion is not None
    assert truth.measures.confusion is not None
    assert found.confusion[0] == truth.measures.confusion[1]


def test_another_order_of_the_data_changes_nothing(truth: Evaluation) -> None:
    """Class folders are sorted by name, and a network's classes may not be."""
    images = evaluated.samples(5, seed=2)
    labels = tuple(reversed(evaluated.LABELS))
    renumbered = ArraySamples(images.images, len(labels) - 1 - images.labels, "trees")
    same(run(in_torch(), split(renumbered, labels=labels)), truth)


def faulty(**changes: object) -> Preprocessing:
    return replace(evaluated.PREPROCESSING, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "preprocessing",
    [
        faulty(mean=(0.1, 0.1, 0.1), std=(0.9, 0.9, 0.9)),
        faulty(mean=(0.3, 0.4, 0.5)),
        faulty(crop_ratio=1.0),
        faulty(interpolation="nearest"),
    ],
    ids=["the data's normalisation", "means in BGR", "crop ratio", "filter"],
)
def test_wrong_preprocessing_changes_the_numbers(
    preprocessing: Preprocessing, truth: Evaluation
) -> None:
    found = run(in_torch(preprocessing=preprocessing)).measures
    assert abs(found.loss - truth.measures.loss) > 1e-3


def test_images_in_bgr_change_the_numbers(truth: Evaluation) -> None:
    found = run(in_torch(), split(evaluated.Swapped(evaluated.samples(5, seed=2)))).measures
    assert found.top1.right < truth.measures.top1.right
    assert found.confusion != truth.measures.confusion


def test_probabilities_taken_for_logits_change_the_numbers(
    truth: Evaluation, tmp_path: Path
) -> None:
    subject = open_subject(export(tmp_path / "model", softmax=True).path)
    with closing(subject.runner):
        found = run(replace(subject, softmax=False)).measures
    assert abs(found.loss - truth.measures.loss) > 1e-2


# --- labels -------------------------------------------------------------------------------------


def test_classes_matched_by_order_are_told_of(truth: Evaluation) -> None:
    found = run(in_torch(), split(labels=tuple("abcdefg")))
    assert found.matching == "order"
    assert "matched in this order" in found.warnings[0]
    assert found.measures.top1 == truth.measures.top1


def test_classes_of_another_network_are_refused() -> None:
    with pytest.raises(DataError, match="none of the network's"):
        run(in_torch(), split(labels=("ash", "beech", "cedar", "elm", "fir", "larch", "pine")))


def test_data_of_some_classes_is_evaluated_among_all(truth: Evaluation) -> None:
    images = evaluated.samples(5, seed=2)
    some = images.labels >= 4
    few = ArraySamples(images.images[some], images.labels[some] - 4, "trees")
    found = run(in_torch(), split(few, labels=evaluated.LABELS[4:])).measures
    assert found.top1.images == 15
    assert [result.images for result in found.classes] == [0, 0, 0, 0, 5, 5, 5]
    assert found.classes[4:] == truth.measures.classes[4:]
    assert found.classes[0].percent is None


def test_what_else_is_told() -> None:
    images = split(empty=("oak",))
    found = run(in_torch(preprocessing=faulty(crop_ratio=1.0)), images, Options(crops="ten"))
    assert any("no image of oak" in warning for warning in found.warnings)
    assert any("--crop-ratio" in warning for warning in found.warnings)


def test_a_bundles_warnings_are_passed_on(tiny_bundle: ModelBundle) -> None:
    subject = open_subject(tiny_bundle.path)
    with closing(subject.runner):
        labels = subject.labels
        found = run(subject, split(labels=labels), Options(limit=2))
    assert any("UNTRAINED" in warning for warning in found.warnings)


def test_a_minimum_is_reached_or_not(truth: Evaluation) -> None:
    percent = truth.measures.top1.percent
    assert truth.passed is None
    for minimum, passed in ((percent - 0.01, True), (np.ceil(percent) + 0.5, False), (0.0, True)):
        found, _ = evaluate(in_torch(), split(), "test", minimum=minimum)
        assert (found.minimum, found.passed) == (minimum, passed)
