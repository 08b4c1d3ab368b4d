"""``parnet-deploy bench`` as people call it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest
from commands import call
from conftest import Cli

from parnet_deploy.bench.entries.timm_networks import TimmRequest
from parnet_deploy.bench.peer_names import PEER_NAMES
from parnet_deploy.bench.peers import PEERS
from parnet_deploy.bench.plan_table import PlanTable
from parnet_deploy.bench.report.paper import networks as paper_networks
from parnet_deploy.bench.result import Absence, BenchResult, Settings
from parnet_deploy.bundle import EngineBundle, ModelBundle
from parnet_deploy.cli import bench_asked
from parnet_deploy.cli.bench_asked import Asked, build_engines
from parnet_deploy.cli.bench_space import ENGINE, MODEL, space_needed
from parnet_deploy.engine import BuildOptions, build_engine, make_builder
from parnet_deploy.engine.choose import Choice
from parnet_deploy.errors import BuildError, EngineError
from parnet_deploy.spec import Backend, count, decode, variant
from parnet_deploy.spec.precision import Precision
from parnet_deploy.spec.quantisation import Scheme, scheme_of

QUICK = (
    *("--rounds", 2, "--processes", 1, "--iterations", 4, "--seconds", 0),
    *("--warm-up", 1, "--warm-up-seconds", 0),
)


def test_an_engine_its_split_sibling_and_a_peer_are_measured(
    tiny_engine: EngineBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    result = call(
        capsys,
        "bench",
        tiny_engine.path,
        "--against",
        "onnxruntime",
        *QUICK,
        "--floor",
        "--output",
        out,
    )
    assert result.status == 0, result.err
    found = decode(out.read_bytes(), BenchResult)
    outcomes = {outcome.contestant.name: outcome for outcome in found.outcomes}
    assert set(outcomes) == {
        "onnxruntime whole",
        "onnxruntime split",
        "ONNX Runtime, unfused export",
    }
    assert found.absent == ()
    for name, outcome in outcomes.items():
        assert [len(latencies) for latencies in outcome.rounds] == [2, 2]
        assert outcome.parity is not None
        assert outcome.parity.max_rel < 1e-4
        assert outcome.parity.same_top1 == outcome.parity.images == 8
        assert outcome.floor is not None
        assert outcome.host_memory > 1 << 20
        assert len(outcome.first_answer) == 1
        assert name in result.out
    assert outcomes["onnxruntime whole"].ratio.median == 1.0
    spans = {span.stage: span for span in outcomes["onnxruntime split"].timeline}
    assert set(spans) == {"stream1", "stream2", "stream3", "fusion"}
    assert spans["fusion"].start >= max(spans[f"stream{n}"].end for n in (1, 2, 3))
    assert found.conditions.versions["parnet-deploy"]
    assert all(sentence in result.out for sentence in found.verdict)
    assert f"written: {out}" in result.err


def test_json_is_the_whole_result(
    tiny_engine: EngineBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    result = call(capsys, "bench", tiny_engine.path, "--no-schedules", *QUICK, "--json")
    assert result.status == 0, result.err
    found = decode(result.out, BenchResult)
    assert [outcome.contestant.name for outcome in found.outcomes] == ["onnxruntime whole"]
    assert found.settings.rounds == 2
    assert (found.settings.warm_up, found.settings.warm_up_seconds) == (1, 0.0)


@pytest.mark.slow
def test_models_and_variants_are_built_first(
    tiny_bundle: ModelBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    result = call(
        capsys,
        "bench",
        tiny_bundle.path,
        "--variants",
        "digits",
        "--backends",
        "onnxruntime",
        "--batch",
        1,
        "--no-schedules",
        *QUICK,
        "--json",
    )
    assert result.status == 0, result.err
    found = decode(result.out, BenchResult)
    assert found.networks == (tiny_bundle.manifest.spec.name, "digits")
    assert [outcome.ratio.median for outcome in found.outcomes] == [1.0, 1.0]
    assert all(o.parity and o.parity.max_rel < 1e-4 for o in found.outcomes)


def test_who_cannot_take_part_is_named_with_the_reason(
    tiny_engine: EngineBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its weights are gone: it does not open; the others are measured."""
    broken = tmp_path / "broken"
    builder = make_builder("onnxruntime", BuildOptions(provider="cpu", threads=1), split=True)
    model = tiny_engine.path / tiny_engine.manifest.model.path
    from parnet_deploy.bundle import open_model

    build_engine(open_model(model), broken, builder, split=True)
    (broken / "stream2.onnx").write_bytes(b"")
    result = call(capsys, "bench", broken, tiny_engine.path, "--no-schedules", *QUICK)
    assert result.status == 1  # what is damaged is not measured around
    assert "stream2.onnx is damaged" in result.err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--variants", "xxl"], 2, "xxl"),
        (["--variants", "s", "--against", "torch,nobody"], 2, "'nobody'"),
        (["--variants", "s", "--backends", "cuda"], 2, "--backends is one of"),
        (["--variants", "s", "--devices", "a"], 2, "--devices"),
        ([], 2, "there is no engine under engines/"),
        (["nowhere"], 1, "there is no bundle at nowhere"),
        (["--variants", "s", "--rounds", "0"], 2, "--rounds"),
        (["--variants", "s", "--seconds", "-1"], 2, "--seconds"),
        (["--variants", "s", "--forms", "keep"], 2, "nothing is counted, so leave out --forms"),
        (["--variants", "s", "--warm-up-seconds", "-1"], 2, "--warm-up-seconds"),
        (["--variants", "s", "--seed", "-1"], 2, "--seed"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_built(
    arguments: list[str],
    status: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(capsys, "bench", *arguments)
    assert result.status == status
    assert words in result.err
    assert "export:" not in result.err
    assert "Traceback" not in result.err


def test_a_batch_that_an_engine_does_not_take_is_refused(
    tiny_engine: EngineBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    result = call(capsys, "bench", tiny_engine.path, "--batch", 4)
    assert result.status == 2
    assert "takes 1 to 1 images per run, not 4" in result.err
    assert "build:" not in result.err


def test_results_that_stand_there_are_kept(
    tiny_engine: EngineBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "found.md").write_text("earlier")
    result = call(capsys, "bench", tiny_engine.path, "--output", tmp_path / "found.md", *QUICK)
    assert result.status == 1
    assert "--force" in result.err
    assert "round" not in result.err
    assert (tmp_path / "found.md").read_text() == "earlier"


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    return [
        int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if _parent(stat) == pid
    ]


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError):
        return 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_when_it_is_ended_its_processes_end_too(
    tiny_engine: EngineBundle, tmp_path: Path, number: signal.Signals
) -> None:
    """Also those that are stopped at the moment, which notice nothing by themselves."""
    program = [sys.executable, "-m", "parnet_deploy", "bench", str(tiny_engine.path)]
    with (tmp_path / "said").open("w+") as said:
        process = subprocess.Popen(
            [*program, "--rounds", "200", "--seconds", "100"],
            stderr=said,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        )
        started: list[int] = []
        deadline = time.monotonic() + 60
        while "round 2" not in (tmp_path / "said").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        started = children(process.pid)
        process.send_signal(number)
        status = process.wait(timeout=60)
    assert len(started) == 2
    assert status == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    deadline = time.monotonic() + 20
    while any(map(running, started)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(running, started))
    if number != signal.SIGKILL:
        assert not list(tmp_path.glob("parnet-deploy-bench-*"))


def running(pid: int) -> bool:
    """A process that has not ended; one that nobody has asked about yet (a zombie) has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_help_names_the_peers(cli: Cli) -> None:
    done = cli("bench", "--help")
    assert done.returncode == 0
    assert all(peer in done.stdout.replace("-\n", "-") for peer in ("torch-compile", "openvino"))


def test_the_settings_are_those_of_the_options() -> None:
    """So that a default is told in one place."""
    from dataclasses import asdict, fields

    from parnet_deploy.bench.result import Settings
    from parnet_deploy.cli.bench import Measuring

    plain = asdict(Settings())
    assert [field.name for field in fields(Measuring)] == list(plain)
    for name, hint in get_type_hints(Measuring, include_extras=True).items():
        kind, words = get_args(hint)
        assert kind is type(plain[name])
        assert words.endswith(f"[default: {plain[name]}].")


def test_the_names_of_the_peers_are_those_there_are() -> None:
    assert tuple(PEERS) == PEER_NAMES


def test_other_commands_do_not_load_the_benchmark() -> None:
    program = "import sys, parnet_deploy.cli.main; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    bench = {name for name in done.stdout.split() if name.startswith("parnet_deploy.bench.")}
    assert bench
    assert bench <= {
        f"parnet_deploy.bench.{name}"
        for name in ("contestant", "peer_names", "result", "statistics")
    }


def test_what_does_not_fit_on_the_disk_is_not_begun(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "parnet_deploy.cli.bench_space.shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 30)
    )
    result = call(capsys, "bench", "--paper", "--backends", "onnxruntime", "--schedules")
    assert result.status == 2
    assert "GiB of models and engines" in result.err
    assert "set TMPDIR to a folder on a larger disk" in result.err
    assert "export:" not in result.err


def test_room_is_counted_by_what_is_built(tiny_engine: EngineBundle) -> None:
    one = Asked(subjects=(), variants=("s",), backends=("onnxruntime",), schedules=False)
    weights = 4 * count(variant("s").spec).parameters_fused
    assert space_needed(one, ()) == pytest.approx((MODEL + ENGINE) * weights)
    assert space_needed(replace(one, schedules=True), ()) > space_needed(one, ())
    both = replace(one, backends=("onnxruntime", "ncnn"))
    assert space_needed(both, ()) == pytest.approx(2 * space_needed(one, ()), abs=1)
    assert space_needed(replace(one, against=("mnn",)), ()) > space_needed(one, ())
    assert space_needed(one, (tiny_engine.path,)) > space_needed(one, ())
    assert space_needed(replace(one, paper=True), ()) - space_needed(one, ()) > 1 << 30


@pytest.mark.slow
def test_the_papers_tables_stand_beside_ours(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[TimmRequest] = []

    def absent(request: TimmRequest) -> Absence:
        asked.append(request)
        return Absence(name=request.name, network=request.name, reason="timm is not installed")

    monkeypatch.setattr(bench_asked, "timm_in_process", absent)
    given = ("--paper", "--variants", "s", "--backends", "onnxruntime", *QUICK)
    result = call(capsys, "bench", *given, "--output", tmp_path / "paper.md")
    assert result.status == 0, result.err
    assert [request.name for request in asked] == [
        "resnet34",
        "resnet50",
        "repvgg-b1g4",
        "repvgg-b2g4",
    ]
    assert {(request.backend, request.device) for request in asked} == {("onnxruntime", "cpu")}
    written = (tmp_path / "paper.md").read_text()
    for text in (result.out, written):
        assert "the paper's table 2" in text
        assert "RTX 3090" in text
        assert "timm is not installed" in text
    assert "here: onnxruntime" in result.out
    assert "prepare: onnxruntime" not in result.err  # only L stands unfused in the paper


def test_the_paper_needs_all_its_networks() -> None:
    asked = Asked(subjects=(), variants=(), paper=True)
    assert asked.networks == paper_networks()
    assert {"s", "m", "l", "xl", "l-depth9", "xl-depth15"} <= set(paper_networks())
    assert (asked.peers, asked.networks_of_peers) == (("onnxruntime",), ("l",))
    only = Asked(subjects=(), variants=("s",), against=("torch",), paper=True)
    assert only.networks == ("s",)
    assert (only.peers, only.networks_of_peers) == (("torch",), ())
    assert Asked(subjects=(), variants=()).peers == ()


def test_plans_are_counted_without_a_gpu(
    tiny_bundle: ModelBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plans.json"
    given = ("--plan", "--variants", "digits", "--precisions", "fp32,fp16", "--output", out)
    result = call(capsys, "bench", *given)
    assert result.status == 0, result.err
    table = decode(out.read_bytes(), PlanTable)
    streams = ("stream1", "stream2", "stream3", "fusion")
    parts = [
        ("whole", None),
        *((part, "replicate") for part in streams),
        *((part, "share") for part in ("stem", *streams)),
    ]
    assert [(row.precision, row.part, row.stem) for row in table.rows] == [
        (precision, *part) for precision in ("fp32", "fp16") for part in parts
    ]
    for row in table.rows:
        assert f" {row.kernels} " in result.out
        assert row.streams <= row.kernels
    result = call(capsys, "bench", tiny_bundle.path, "--plan", "--json")
    assert result.status == 0, result.err
    assert {row.network for row in decode(result.out, PlanTable).rows} == {"tiny"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--variants", "digits", "--forms", "keep"], "a form is"),
        (["--variants", "digits", "--precisions", "fp7"], "--precisions is one of"),
        (["--variants", "digits", "--precisions", ","], "--precisions is one or several of"),
        (["--variants", "digits", "--output", "plans.html"], "--plan writes .json or .md"),
        (["--variants", "digits", "--compute-capability", "86"], "compute capability"),
        ([], "plans of which network?"),
        (
            ["--variants", "s", "--against", "all", "--rounds", 12, "--floor", "--paper"],
            "--plan runs nothing, so leave out --against, --floor, --paper, --rounds",
        ),
        (["--variants", "s", "--no-schedules"], "so leave out --no-schedules"),
        (["--variants", "s", "--warm-up", 3, "--devices", "0"], "leave out --devices, --warm-up"),
    ],
)
def test_plans_that_cannot_be_are_refused(
    arguments: list[str | int], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = call(capsys, "bench", "--plan", *arguments)
    assert result.status == 2
    assert words in result.err


def test_an_engines_plans_are_built_already(
    tiny_engine: EngineBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    result = call(capsys, "bench", "--plan", tiny_engine.path)
    assert result.status == 2
    assert "parnet-deploy inspect" in result.err


@pytest.mark.parametrize(("precision", "target"), [("bf16", "openvino"), ("int8", "tensorrt")])
def test_a_model_is_built_with_what_takes_its_graphs(
    tiny_bundle: ModelBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
    target: Backend,
) -> None:
    """As build-engine's auto: by its own precision, and by what it was quantised for."""
    asked_for: list[tuple[str, Scheme | None]] = []
    built: list[Backend] = []
    scheme = scheme_of(precision, target)

    def choose(precision: str = "fp32", scheme: Scheme | None = None) -> Choice:
        asked_for.append((precision, scheme))
        if scheme is not None:
            raise EngineError("nothing that works here runs these graphs")
        return Choice("openvino", ())

    def build(model: ModelBundle, backends: tuple[Backend, ...], *rest: Any, **more: Any) -> Any:
        built.extend(backends)
        return ()

    quantisation = None if scheme is None else SimpleNamespace(scheme=scheme)
    manifest = SimpleNamespace(
        precision=precision, quantisation=quantisation, spec=tiny_bundle.manifest.spec
    )
    monkeypatch.setattr(bench_asked, "choose_backend", choose)
    monkeypatch.setattr(bench_asked, "model_engines", build)
    monkeypatch.setattr(bench_asked, "open_model", lambda path: SimpleNamespace(manifest=manifest))
    asked = Asked(subjects=(tiny_bundle.path,), variants=())
    engines, absent = build_engines(asked, asked.subjects, tmp_path, Settings())
    assert asked_for == [(precision, scheme)]
    assert not engines
    assert built == ([] if scheme else ["openvino"])
    assert [(one.name, one.reason) for one in absent] == (
        [("auto", "nothing that works here runs these graphs")] if scheme else []
    )


def test_variants_are_built_with_what_takes_their_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    takers: dict[str, Backend] = {"fp32": "onnxruntime", "bf16": "openvino"}
    built: list[tuple[str, Backend]] = []

    def build(names: Any, backends: tuple[Backend, ...], folder: Path, **given: Any) -> Any:
        built.extend((given["precision"], backend) for backend in backends)
        return ()

    monkeypatch.setattr(
        bench_asked, "choose_backend", lambda precision, scheme: Choice(takers[precision], ())
    )
    monkeypatch.setattr(bench_asked, "variant_engines", build)
    asked = Asked(subjects=(), variants=("s",), precisions=("fp32", "bf16"))
    build_engines(asked, (), tmp_path, Settings())
    assert built == list(takers.items())


def test_a_backend_that_cannot_build_is_absent_and_the_others_are_measured(
    tiny_bundle: ModelBundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bench_asked.model_engines

    def build(model: ModelBundle, backends: tuple[str, ...], *rest: Any, **more: Any) -> Any:
        if backends == ("ncnn",):
            raise BuildError("ncnn reads no fp7 graphs")
        return real(model, backends, *rest, **more)

    monkeypatch.setattr(bench_asked, "model_engines", build)
    given = ("--backends", "ncnn,onnxruntime", "--no-schedules", *QUICK, "--json")
    result = call(capsys, "bench", tiny_bundle.path, *given)
    assert result.status == 0, result.err
    found = decode(result.out, BenchResult)
    assert [o.contestant.name for o in found.outcomes] == ["onnxruntime whole"]
    assert [(a.name, a.reason) for a in found.absent] == [("ncnn", "ncnn reads no fp7 graphs")]
    assert any("untrained weights" in line for line in found.conditions.observations)
    alone = call(capsys, "bench", tiny_bundle.path, "--backends", "ncnn", *QUICK)
    assert alone.status == 1
    assert "there is no engine to measure: ncnn: ncnn reads no fp7 graphs" in alone.err
