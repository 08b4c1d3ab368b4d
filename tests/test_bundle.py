"""Bundles: written whole or not at all, and checked before use."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from parnet_deploy.bundle import (
    FORMAT_VERSION,
    LABELS,
    MANIFEST,
    MANIFEST_SUM,
    MODEL_GRAPH,
    WEIGHTS,
    ModelBundle,
    find_bundles,
    open_bundle,
    open_engine_bundle,
    open_model,
    seal,
    sha256,
    staged,
    writing,
)
from parnet_deploy.errors import BundleError, OutputExistsError
from parnet_deploy.spec.quantisation import Calibration, Quantisation, Scheme


@pytest.fixture
def copy(tiny_bundle: ModelBundle, tmp_path: Path) -> Path:
    """A bundle that may be damaged."""
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "models" / "net"))


def rewrite(bundle: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Change a manifest, and make its own digest right again."""
    manifest = json.loads((bundle / MANIFEST).read_bytes())
    change(manifest)
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    (bundle / MANIFEST_SUM).write_text(f"{sha256(bundle / MANIFEST)}  {MANIFEST}\n")


# Opening


def test_a_whole_bundle_opens(copy: Path, tiny_bundle: ModelBundle) -> None:
    bundle = open_bundle(copy)
    assert bundle.manifest == tiny_bundle.manifest
    assert bundle.manifest_sha256 == sha256(copy / MANIFEST)
    assert bundle.file(WEIGHTS) == copy / WEIGHTS


def test_what_is_not_quantised_computes_in_the_base(tiny_bundle: ModelBundle) -> None:
    manifest = tiny_bundle.manifest
    assert manifest.base == "fp32"
    assert replace(manifest, precision="bf16").base == "bf16"
    how = Quantisation(
        scheme=Scheme(activation="int8", weight="int8", base="fp16", outputs=False),
        calibration=Calibration(method="minmax", images=1, sha256="", source="a test"),
        tensors={},
    )
    assert replace(manifest, precision="int8", quantisation=how).base == "fp16"


def test_manifest_names_every_file(copy: Path) -> None:
    files = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()}
    assert files - {MANIFEST, MANIFEST_SUM} == open_model(copy).manifest.files.keys()


@pytest.mark.parametrize("name", [MODEL_GRAPH, WEIGHTS, LABELS, "stages/fusion.onnx"])
@pytest.mark.parametrize("place", [0, -1])
def test_a_flipped_byte(copy: Path, name: str, place: int) -> None:
    data = bytearray((copy / name).read_bytes())
    data[place] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(BundleError, match=r"is damaged: its sha256 is .* make the bundle again"):
        open_model(copy)


def test_without_checking_damage_is_not_looked_for(copy: Path) -> None:
    (copy / WEIGHTS).write_bytes(b"")
    assert open_model(copy, check=False).manifest.name == "tiny"


def test_another_size(copy: Path) -> None:
    with (copy / LABELS).open("a") as file:
        file.write("one more\n")
    with pytest.raises(BundleError, match=r"labels\.txt is damaged: it has \d+ bytes, and \d+"):
        open_model(copy)


@pytest.mark.parametrize("name", [MODEL_GRAPH, "stages/stream2.onnx"])
def test_a_missing_file(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"incomplete: '{name}' is missing"):
        open_model(copy)


def test_a_folder_in_a_files_place(copy: Path) -> None:
    (copy / LABELS).unlink()
    (copy / LABELS).mkdir()
    with pytest.raises(BundleError, match=LABELS):
        open_model(copy)


def test_a_flipped_byte_in_the_manifest(copy: Path) -> None:
    text = (copy / MANIFEST).read_text()
    (copy / MANIFEST).write_text(text.replace('"softmax": false', '"softmax": true '))
    with pytest.raises(BundleError, match="was changed after it was written"):
        open_model(copy)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe"])
def test_no_digest_of_the_manifest(copy: Path, content: bytes | None) -> None:
    (copy / MANIFEST_SUM).unlink()
    if content is not None:
        (copy / MANIFEST_SUM).write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.sha256 is missing or unreadable"):
        open_model(copy)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "stages/../../outside"])
def test_a_file_outside_the_bundle_is_never_read(copy: Path, name: str) -> None:
    outside = copy.parent / "outside"
    outside.write_text("secret")
    record = {"sha256": sha256(outside), "bytes": outside.stat().st_size}
    rewrite(copy, lambda manifest: manifest["files"].update({name: record}))  # type: ignore[attr-defined]
    for check in (True, False):
        with pytest.raises(BundleError, match="names a file outside itself"):
            open_model(copy, check=check)


def test_a_newer_format(copy: Path) -> None:
    newer = FORMAT_VERSION + 1
    rewrite(copy, lambda manifest: manifest.update(format_version=newer, spec="of another kind"))
    for opening in (open_model, open_bundle):
        with pytest.raises(BundleError, match=f"manifest format {newer}, .* reads up to 1"):
            opening(copy)


def test_the_wrong_kind(copy: Path) -> None:
    with pytest.raises(
        BundleError, match=r"a 'parnet-deploy/model' bundle, and a 'parnet-deploy/e"
    ):
        open_engine_bundle(copy)
    rewrite(copy, lambda manifest: manifest.update(format="somebody/else"))
    with pytest.raises(BundleError, match="a 'somebody/else' bundle"):
        open_bundle(copy)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": "parnet-deploy/model"}']
)
def test_a_damaged_manifest(copy: Path, content: bytes) -> None:
    (copy / MANIFEST).write_bytes(content)
    (copy / MANIFEST_SUM).write_text(f"{sha256(copy / MANIFEST)}  {MANIFEST}\n")
    with pytest.raises(BundleError, match=r"is damaged: .* make the bundle again"):
        open_model(copy)


def test_a_manifest_whose_network_cannot_be(copy: Path) -> None:
    rewrite(copy, lambda manifest: manifest["spec"].update(classes=0))  # type: ignore[attr-defined]
    with pytest.raises(BundleError, match="at least one class"):
        open_model(copy)


def test_what_is_no_bundle(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no bundle at"):
        open_bundle(tmp_path / "missing")
    with pytest.raises(BundleError, match=r"is a file; a bundle is a folder"):
        open_bundle(copy / LABELS)
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
        open_bundle(copy / "stages")


def test_a_file_that_the_manifest_does_not_name(copy: Path) -> None:
    (copy / "stranger").touch()
    with pytest.raises(BundleError, match="no file 'stranger' in its manifest"):
        open_model(copy).file("stranger")


def test_find_bundles(copy: Path) -> None:
    models = copy.parent
    assert find_bundles(models) == [copy]
    shutil.copytree(copy, models / "also")
    shutil.copytree(copy, models / ".half.1.abcdefgh")
    (models / "notes").mkdir()
    assert find_bundles(models) == [models / "also", copy]
    assert find_bundles(models / "nowhere") == []


# Writing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(final: Path, text: str = "new", *, force: bool = False) -> None:
    with staged(final, force=force) as work:
        (work / "file").write_text(text)
        (work / MANIFEST).write_text("{}")


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    final = tmp_path / "made" / "on" / "the way" / "net"
    with staged(final) as work:
        (work / "file").write_text("new")
        assert not final.exists()
        assert work.parent == final.parent
    assert (final / "file").read_text() == "new"
    assert names(final.parent) == ["net"]


def test_files_are_readable_by_others_as_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with staged(tmp_path / "net") as work:
            os.close(os.open(work / "private", os.O_CREAT, 0o600))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "net").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "net" / "private").stat().st_mode) == 0o640


@pytest.mark.parametrize("exception", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("force", [False, True])
def test_an_interrupted_write_leaves_what_was(
    tmp_path: Path, exception: type[BaseException], force: bool
) -> None:
    final = tmp_path / "net"
    if force:
        write(final, "old")

    def interrupted() -> None:
        with staged(final, force=force) as work:
            (work / "file").write_text("half")
            raise exception

    with pytest.raises(exception):
        interrupted()
    assert names(tmp_path) == (["net"] if force else [])
    assert not force or (final / "file").read_text() == "old"


def test_what_stands_there_is_refused(tmp_path: Path) -> None:
    final = tmp_path / "net"
    write(final, "old")
    with pytest.raises(OutputExistsError, match="exists already; give --force"):
        write(final)
    assert (final / "file").read_text() == "old"
    write(final, force=True)
    assert (final / "file").read_text() == "new"
    assert names(tmp_path) == ["net"], "the old one is gone"


def test_force_without_anything_there(tmp_path: Path) -> None:
    write(tmp_path / "net", force=True)
    assert (tmp_path / "net" / "file").exists()


def test_force_replaces_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    write(tmp_path / "net", force=True)
    assert (tmp_path / "net" / "file").exists()


def test_force_never_replaces_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    (tmp_path / "file").write_text("text")
    for name in ("thesis", "file"):
        with pytest.raises(OutputExistsError, match="is not ours"):
            write(tmp_path / name, force=True)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "text"


def test_force_replaces_a_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "old")
    (tmp_path / "net").symlink_to("elsewhere")
    write(tmp_path / "net", force=True)
    assert (tmp_path / "elsewhere" / "file").read_text() == "old"
    assert (tmp_path / "net" / "file").read_text() == "new"
    assert not (tmp_path / "net").is_symlink()
    assert names(tmp_path) == ["elsewhere", "net"]


def test_somebody_else_was_faster(tmp_path: Path) -> None:
    final = tmp_path / "net"

    def overtaken() -> None:
        with staged(final) as work:
            (work / "file").write_text("second")
            write(final, "first")

    with pytest.raises(OutputExistsError, match="made by somebody else meanwhile"):
        overtaken()
    assert (final / "file").read_text() == "first"
    assert names(tmp_path) == ["net"]


def test_without_renameat2_the_old_one_is_moved_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing.ctypes, "CDLL", lambda *args, **kwargs: object())
    final = tmp_path / "net"
    write(final, "old")
    write(final, force=True)
    assert (final / "file").read_text() == "new"
    assert names(tmp_path) == ["net"]


def test_seal_names_every_file(tmp_path: Path, tiny_bundle: ModelBundle) -> None:
    with staged(tmp_path / "net") as work:
        (work / "a").mkdir()
        (work / "a" / "b").write_bytes(b"12345")
        sealed = seal(work, tiny_bundle.manifest)
    assert sealed.files.keys() == {"a/b"}
    assert sealed.files["a/b"].bytes == 5
    assert sealed.files["a/b"].sha256 == sha256(tmp_path / "net" / "a" / "b")
    assert open_model(tmp_path / "net").manifest == sealed


# What the world does to a writer

WRITER = """
import sys, time
from pathlib import Path
from parnet_deploy.bundle import staged
with staged(Path(sys.argv[1]), force=True) as work:
    (work / "file").write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


def killed_while_writing(final: Path, how: signal.Signals) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, final], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    with writer.stdout:
        assert writer.stdout.readline() == b"writing\n"
        writer.send_signal(how)
        writer.wait(timeout=30)


def test_a_kill_in_mid_write_loses_nothing_and_the_next_run_tidies_up(tmp_path: Path) -> None:
    final = tmp_path / "net"
    killed_while_writing(final, signal.SIGKILL)
    assert not final.exists(), "nothing half-written under the final name"
    (left,) = names(tmp_path)
    assert left.startswith(".net.")
    assert find_bundles(tmp_path) == []
    write(final, "whole")
    assert names(tmp_path) == ["net"], "and what was left is gone"

    killed_while_writing(final, signal.SIGKILL)
    assert (final / "file").read_text() == "whole", "the old one stays as it was"


def test_only_what_dead_writers_left_is_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    keep = [
        f".net.{os.getpid()}.abcdefgh",  # still being written
        f".net.5.{dead.pid}.abcdefgh",  # of a bundle called net.5
        f".other.{dead.pid}.abcdefgh",
        f".net.{dead.pid}.notes",
    ]
    stale = [f".net.{dead.pid}.abcdefgh", f".net.{dead.pid}.abcdefgh.old"]
    for name in (*keep, *stale):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    write(tmp_path / "net")
    assert names(tmp_path) == sorted([*keep, "net"])


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files stands for it; the command line's test mounts a small disk."""
    final = tmp_path / "net"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(BundleError, match=f"cannot write {final}: File too large"):
            write(final, "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert not any(tmp_path.iterdir())


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(writing.tempfile, "mkdtemp", refuse)
    with pytest.raises(BundleError, match=r"cannot write .*net: Permission denied"):
        write(tmp_path / "net")


def test_a_place_that_cannot_be_written() -> None:
    """The kernel's own folder takes files from nobody, not even from root."""
    with pytest.raises(BundleError, match="cannot write /proc/net-of-ours"):
        write(Path("/proc/net-of-ours"))


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    for final in (tmp_path / "models" / "net", tmp_path / "models" / "deeper" / "net"):
        with pytest.raises(BundleError, match="is not a folder"):
            write(final)


def test_readers_never_see_a_gap_while_a_bundle_is_replaced(tmp_path: Path) -> None:
    """One process replaces it again and again; another always finds it whole."""
    final = tmp_path / "net"
    write(final, "0")
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]);"
        "from test_bundle import write\n"
        "for i in range(60): write(Path(sys.argv[1]), str(i), force=True)"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, final, Path(__file__).parent])
    looks = 0
    while writer.poll() is None:
        assert final.is_dir()
        looks += 1
        time.sleep(0.0005)
    assert writer.returncode == 0
    assert looks > 20
    assert (final / "file").read_text() == "59"
