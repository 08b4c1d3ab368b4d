"""NcnnRunner: answers, batches, threads, and files that are not what they should be."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parnet_deploy.bundle import BatchRange, ModelBundle
from parnet_deploy.engine.base import WHOLE, BuildOptions, BuildStage
from parnet_deploy.engine.ncnn.builder import NcnnBuilder
from parnet_deploy.errors import EngineError, MissingDependencyError, RunnerError, TargetError
from parnet_deploy.runtime import OnnxRuntimeRunner, Runner
from parnet_deploy.runtime import ncnn as module
from parnet_deploy.runtime.ncnn import NcnnRunner, check_ncnn_target, load_ncnn, ncnn_target
from parnet_deploy.runtime.ncnn_param import NcnnLayer, param_text, read_param
from parnet_deploy.runtime.timeline import TimesCompute
from parnet_deploy.spec import Array

TOLERANCE = 1e-4  # of verify, for float32; relative to the greatest absolute value


def build(bundle: ModelBundle, folder: Path) -> BuildStage:
    """The whole network's files in `folder`; returns what was built."""
    manifest = bundle.manifest
    stage = BuildStage(
        name=WHOLE,
        graph=bundle.file("model.onnx"),
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        batch=BatchRange(),
        device="cpu",
    )
    NcnnBuilder(BuildOptions(threads=1)).build(stage, folder)
    return stage


@pytest.fixture(scope="module")
def built(tiny_bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network's ``.param``, its ``.bin`` beside it. Read only."""
    folder = tmp_path_factory.mktemp("ncnn")
    build(tiny_bundle, folder)
    return folder / "whole.param"


def whole(bundle: ModelBundle, path: Path, **options: Any) -> NcnnRunner:
    manifest = bundle.manifest
    options = {"inputs": manifest.inputs, "outputs": manifest.outputs, "threads": 1, **options}
    return NcnnRunner(path, **options)


@pytest.fixture
def images(rng: np.random.Generator) -> Array:
    return rng.standard_normal((1, 3, 64, 64)).astype(np.float32)


def test_it_answers_as_onnx_runtime(tiny_bundle: ModelBundle, built: Path, images: Array) -> None:
    manifest = tiny_bundle.manifest
    graph = tiny_bundle.file("model.onnx")
    with OnnxRuntimeRunner(graph, inputs=manifest.inputs, outputs=manifest.outputs) as reference:
        expected = reference.run({"images": images})["logits"]
    with whole(tiny_bundle, built) as runner:
        assert isinstance(runner, Runner)
        logits = runner.run({"images": images})["logits"]
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE * np.abs(expected).max(), rtol=0)


def test_images_in_any_memory_order_give_the_same_answer(
    tiny_bundle: ModelBundle, built: Path, images: Array
) -> None:
    scattered = np.asfortranarray(images)
    assert not scattered.flags.c_contiguous
    with whole(tiny_bundle, built) as runner:
        expected = runner.run({"images": images})["logits"]
        np.testing.assert_array_equal(runner.run({"images": scattered})["logits"], expected)


def test_the_arrays_given_back_belong_to_the_caller(
    tiny_bundle: ModelBundle, built: Path, images: Array
) -> None:
    asked = images.copy()
    with whole(tiny_bundle, built) as runner:
        first = runner.run({"images": images})["logits"]
        kept = first.copy()
        other = runner.run({"images": -images})["logits"]
    np.testing.assert_array_equal(first, kept)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(images, asked)  # layers that work in place had a copy
    first += 1  # it may be written to, the network being gone


def test_eight_threads_each_get_their_own_answers(
    tiny_bundle: ModelBundle, built: Path, rng: np.random.Generator
) -> None:
    inputs = rng.standard_normal((64, 1, 3, 64, 64)).astype(np.float32)
    with whole(tiny_bundle, built) as runner, ThreadPoolExecutor(8) as callers:
        expected = [runner.run({"images": x})["logits"] for x in inputs]
        results = list(callers.map(lambda x: runner.run({"images": x})["logits"], inputs))
    for one, other in zip(results, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("threads", [0, 2, 3])
def test_threads_do_not_change_the_answer_by_more_than_rounding(
    tiny_bundle: ModelBundle, built: Path, images: Array, threads: int
) -> None:
    with whole(tiny_bundle, built) as one, whole(tiny_bundle, built, threads=threads) as several:
        expected = one.run({"images": images})["logits"]
        logits = several.run({"images": images})["logits"]
        assert several._net.opt.num_threads == (threads or module.usable_cores())
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_every_number_is_a_float32(tiny_bundle: ModelBundle, built: Path) -> None:
    with whole(tiny_bundle, built) as runner:
        options = runner._net.opt
        for name in dir(options):
            if name.startswith(("use_fp16", "use_bf16", "use_vulkan")):
                assert getattr(options, name) is False, name
        assert options.use_winograd_convolution
        assert options.use_packing_layout
        assert options.lightmode


def test_a_batch_is_a_loop_over_its_images(
    tiny_bundle_dynamic: ModelBundle, tmp_path: Path, rng: np.random.Generator
) -> None:
    build(tiny_bundle_dynamic, tmp_path)
    images = rng.standard_normal((4, 3, 64, 64)).astype(np.float32)
    with whole(tiny_bundle_dynamic, tmp_path / "whole.param") as runner:
        together = runner.run({"images": images})["logits"]
        alone = [runner.run({"images": images[i : i + 1]})["logits"] for i in range(4)]
        with pytest.raises(RunnerError, match="at least one"):
            runner.run({"images": images[:0]})
    assert together.shape == (4, 7)
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_inputs_of_different_batches_are_refused(
    tiny_bundle_dynamic: ModelBundle, tmp_path: Path
) -> None:
    fusion = next(s for s in tiny_bundle_dynamic.manifest.stages if s.name == "fusion")
    assert len(fusion.inputs) > 1
    stage = BuildStage(
        name="fusion",
        graph=tiny_bundle_dynamic.file(fusion.file),
        inputs=fusion.inputs,
        outputs=fusion.outputs,
        batch=BatchRange(),
        device="cpu",
    )
    NcnnBuilder(BuildOptions(threads=1)).build(stage, tmp_path)
    feeds = {
        spec.name: np.zeros(spec.concrete(1 + number), np.float32)
        for number, spec in enumerate(fusion.inputs)
    }
    path = tmp_path / "fusion.param"
    with (
        NcnnRunner(path, inputs=fusion.inputs, outputs=fusion.outputs, threads=1) as runner,
        pytest.raises(RunnerError, match="the same images"),
    ):
        runner.run(feeds)


def test_computing_alone_is_a_part_of_a_run(
    tiny_bundle: ModelBundle, built: Path, images: Array
) -> None:
    with whole(tiny_bundle, built) as runner:
        assert isinstance(runner, TimesCompute)
        assert 0 < runner.time_compute({"images": images}) < 60
        with pytest.raises(RunnerError, match="is expected"):
            runner.time_compute({"images": images[:, :, :32]})
    with pytest.raises(RunnerError, match="closed"):
        runner.time_compute({"images": images})


@pytest.mark.parametrize(
    "change",
    [
        lambda x: {},
        lambda x: {"images": x, "more": x},
        lambda x: {"images": x.astype(np.float64)},
        lambda x: {"images": x[:, :, :32]},
        lambda x: {"images": x[0]},
        lambda x: {"images": np.concatenate([x, x])},
    ],
    ids=["missing", "extra", "double", "smaller", "no batch", "another batch"],
)
def test_wrong_feeds_are_refused(
    tiny_bundle: ModelBundle,
    built: Path,
    images: Array,
    change: Callable[[Array], dict[str, Array]],
) -> None:
    with whole(tiny_bundle, built) as runner:
        with pytest.raises(RunnerError, match=r"is expected|the inputs are"):
            runner.run(change(images))
        assert runner.run({"images": images})["logits"].shape == (1, 7)


def test_a_closed_runner_says_so(tiny_bundle: ModelBundle, built: Path, images: Array) -> None:
    runner = whole(tiny_bundle, built)
    runner.close()
    runner.close()
    with pytest.raises(RunnerError, match="closed; open it again"):
        runner.run({"images": images})


def test_a_runner_may_be_closed_while_others_run_it(
    tiny_bundle: ModelBundle, built: Path, images: Array
) -> None:
    def keep_running(runner: NcnnRunner) -> list[Array]:
        answers: list[Array] = []
        with pytest.raises(RunnerError, match="closed"):
            answers.extend(runner.run({"images": images})["logits"] for _ in count())
        return answers

    with whole(tiny_bundle, built) as runner:
        expected = runner.run({"images": images})["logits"]
    with ThreadPoolExecutor(4) as callers:
        for _ in range(5):
            runner = whole(tiny_bundle, built)
            running = [callers.submit(keep_running, runner) for _ in range(4)]
            runner.run({"images": images})
            runner.close()
            for answers in running:
                for answer in answers.result():
                    np.testing.assert_array_equal(answer, expected)


def copied(built: Path, folder: Path) -> Path:
    for path in (built, built.with_suffix(".bin")):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder / built.name


def cut(name: str, keep: int) -> Callable[[Path], None]:
    def change(param: Path) -> None:
        path = param.with_suffix(name)
        path.write_bytes(path.read_bytes()[:keep])

    return change


def replaced(old: str, new: str) -> Callable[[Path], None]:
    def change(param: Path) -> None:
        text = param.read_text()
        assert old in text
        param.write_text(text.replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.unlink(), r"whole\.param cannot be read: No such file"),
        (lambda p: p.with_suffix(".bin").unlink(), r"whole\.bin cannot be read: No such file"),
        (cut(".bin", -4), r"whole\.bin has \d+ bytes, and its layers need \d+"),
        (cut(".bin", 0), r"whole\.bin has 0 bytes"),
        (cut(".param", -1), "damaged"),
        (cut(".param", -20), "damaged"),
        (cut(".param", 100), "damaged"),
        (cut(".param", 0), "begins with ''"),
        (lambda p: p.write_bytes(b"\xff\xfe\x00"), "is no text"),
        (replaced("7767517", "7767518"), "begins with '7767518'"),
        (replaced("\nSwish", "\nSwitch"), "'Switch' is not a layer"),
        (replaced("images/0 images/1", "images/0 images/0"), "'images/0' is made twice"),
        (replaced("1 1 images/1", "1 1 images/0"), "'images/0' is read before it is made, or"),
        (replaced(" 0=8 ", " 0=16 "), r"layers need \d+"),
        (replaced(" 0=8 ", " 0=eight "), "damaged"),
        (replaced(" 0=64 1=64 2=3", " 0=32 1=32 2=3"), r"it reads .*32, 32"),
        (replaced(" 6=", " 66="), "lacks parameter 6"),
        (replaced("Input images", "Input imagery"), None),
    ],
)
def test_damaged_files_are_refused_before_ncnn_sees_them(
    tiny_bundle: ModelBundle,
    built: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    change: Callable[[Path], None],
    message: str | None,
) -> None:
    path = copied(built, tmp_path)
    change(path)
    if message is None:  # a layer's own name means nothing
        whole(tiny_bundle, path).close()
    else:
        with pytest.raises(EngineError, match=message) as caught:
            whole(tiny_bundle, path)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_outputs_that_are_not_there_are_named(tiny_bundle: ModelBundle, built: Path) -> None:
    (logits,) = tiny_bundle.manifest.outputs
    lie = (replace(logits, name="probabilities"),)
    with pytest.raises(EngineError, match=r"does not give \['probabilities'\]"):
        whole(tiny_bundle, built, outputs=lie)


def test_an_output_of_another_shape_is_noticed(
    tiny_bundle: ModelBundle, built: Path, images: Array
) -> None:
    (logits,) = tiny_bundle.manifest.outputs
    lie = (replace(logits, shape=(1, 8)),)
    with (
        whole(tiny_bundle, built, outputs=lie) as runner,
        pytest.raises(RunnerError, match=r"float32\[7\] for one image, not float32\[8\]"),
    ):
        runner.run({"images": images})


class Net:
    """ncnn's, as far as a runner needs it, and with errors that healthy files do not give."""

    def __init__(self, real: Any, answers: dict[str, Any]) -> None:
        self.real, self.answers = real, answers
        self.opt = real.opt

    def load_param(self, path: str) -> int:
        return self._answer("param") or int(self.real.load_param(path))

    def load_model(self, path: str) -> int:
        return self._answer("bin") or int(self.real.load_model(path))

    def create_extractor(self) -> Any:
        extractor = self.real.create_extractor()
        return SimpleNamespace(
            input=lambda name, mat: self._answer("input") or extractor.input(name, mat),
            extract=lambda name: (self._answer("extract"), extractor.extract(name)[1]),
        )

    def _answer(self, step: str) -> int:
        if isinstance(answer := self.answers.get(step, 0), Exception):
            raise answer
        return int(answer)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"param": -1}, r"cannot load .*whole\.param \(it answers -1\)"),
        ({"bin": -100}, r"cannot load .*whole\.bin \(it answers -100\)"),
        ({"bin": MemoryError("no memory")}, r"cannot load .*whole\.bin: no memory"),
    ],
)
def test_what_ncnn_refuses_is_an_engine_error(
    tiny_bundle: ModelBundle,
    built: Path,
    monkeypatch: pytest.MonkeyPatch,
    answers: dict[str, Any],
    message: str,
) -> None:
    ncnn = load_ncnn()
    real = ncnn.Net
    monkeypatch.setattr(ncnn, "Net", lambda: Net(real(), answers))
    with pytest.raises(EngineError, match=message):
        whole(tiny_bundle, built)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"input": -1}, "does not take 'images'"),
        ({"extract": -100}, r"failed to give 'logits' \(it answers -100\)"),
    ],
)
def test_a_run_that_fails_inside_ncnn_is_a_runner_error(
    tiny_bundle: ModelBundle,
    built: Path,
    images: Array,
    monkeypatch: pytest.MonkeyPatch,
    answers: dict[str, Any],
    message: str,
) -> None:
    ncnn = load_ncnn()
    real = ncnn.Net
    monkeypatch.setattr(ncnn, "Net", lambda: Net(real(), answers))
    with whole(tiny_bundle, built) as runner:
        with pytest.raises(RunnerError, match=message):
            runner.run({"images": images})
        answers.clear()
        assert runner.run({"images": images})["logits"].shape == (1, 7)


def test_without_ncnn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **options: Any) -> Any:
        if name == "ncnn":
            raise ImportError("No module named 'ncnn'")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingDependencyError, match=r"pip install 'parnet-deploy\[ncnn\]'"):
        load_ncnn()


@pytest.mark.parametrize("given_by_user", [None, "77"])
def test_idle_threads_spin_for_a_moment_unless_the_user_says_otherwise(
    given_by_user: str | None,
) -> None:
    """The OpenMP library tells what it read when it was loaded, also beside the command line's."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", "OMP_WAIT_POLICY": "PASSIVE"}
    if given_by_user:
        environment["GOMP_SPINCOUNT"] = given_by_user
    script = (
        "import os; from parnet_deploy.runtime.ncnn import load_ncnn; load_ncnn(); "
        "print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert f"GOMP_SPINCOUNT = '{given_by_user or 2000}'" in result.stderr
    assert result.stdout.strip() == str(given_by_user)  # others' libraries read what they would


def test_the_target_is_the_format_and_nothing_of_the_machine() -> None:
    check_ncnn_target(ncnn_target())
    check_ncnn_target({**ncnn_target(), "more": "of another version"})
    for target in ({}, {"param": "7767518"}):
        with pytest.raises(TargetError, match=r"format .* of ncnn's \.param \(here: 7767517\)"):
            check_ncnn_target(target)


WORDS = st.text("abc_./0123456789", min_size=1, max_size=8)
PARAMS = st.dictionaries(
    st.integers(0, 30),
    st.integers(-1000, 2**31 - 1)
    | st.lists(st.integers(-300, 10**6), min_size=1, max_size=4).map(tuple),
    max_size=4,
)


@st.composite
def chains(draw: st.DrawFn) -> tuple[NcnnLayer, ...]:
    """Layers that each read what the one before gives."""
    names = draw(st.lists(WORDS, min_size=1, max_size=5, unique=True))
    return tuple(
        NcnnLayer(
            kind="Input" if number == 0 else draw(st.sampled_from(["ReLU", "Slice", "Scale"])),
            name=draw(WORDS),
            bottoms=tuple(names[number - 1 : number]),
            tops=(name,),
            params=draw(PARAMS),
        )
        for number, name in enumerate(names)
    )


@given(layers=chains())
def test_layers_come_back_from_their_text(layers: tuple[NcnnLayer, ...]) -> None:
    text = param_text(layers)
    assert read_param(text) == layers
    lines = text.splitlines()
    for cut_short in ("\n".join(lines[:-1]) + "\n", text[:-1], text + "\n"):
        with pytest.raises(EngineError):
            read_param(cut_short)


@pytest.mark.parametrize("name", ["", "two words", "x" * 256, "tab\t"])
def test_names_that_ncnn_would_not_read_are_refused(name: str) -> None:
    with pytest.raises(EngineError, match="one word"):
        NcnnLayer(kind="ReLU", name="relu", bottoms=(name,), tops=("y",))
