"""Checkpoints: what is read, what is refused, and what the refusal says."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DATA, tiny_network, tiny_spec
from parity import greatest_error
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from parnet_deploy.bundle import sha256
from parnet_deploy.errors import CheckpointError, SpecError
from parnet_deploy.net import (
    ParNet,
    TrainingFacts,
    load_checkpoint,
    load_for_finetuning,
    save_checkpoint,
)
from parnet_deploy.net.official import authors_key, infer_spec, translate
from parnet_deploy.spec import ParNetSpec, Preprocessing, variant

OFFICIAL = DATA / "official_tiny_silu.pth.tar"
STEM = "inits.0.0.block.rbr_dense.conv.weight"


def official_state() -> dict[str, Tensor]:
    content = torch.load(OFFICIAL, weights_only=True)
    return dict(content["state_dict_ema"])


def written(folder: Path, content: object, name: str = "checkpoint.pth.tar") -> Path:
    torch.save(content, folder / name)
    return folder / name


# Ours


def test_own_checkpoint_round_trip(tmp_path: Path) -> None:
    model = tiny_network(activation="relu", squeeze=False, bn_eps=1e-3)
    facts = TrainingFacts(
        labels=("a", "b"), preprocessing=Preprocessing(size=(64, 64), crop_ratio=1.0)
    )
    path = tmp_path / "net.safetensors"
    save_checkpoint(model, path, facts)
    read = load_checkpoint(path)
    assert read.model.spec == model.spec
    assert read.facts == facts
    assert read.source.kind == "parnet-deploy"
    assert read.source.file == "net.safetensors"
    assert read.source.sha256 == sha256(path)
    assert not read.model.training
    images = torch.randn(1, 3, 64, 64)
    assert greatest_error(read.model, model, images) == 0


def test_another_image_size(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_checkpoint(tiny_network(), path)
    assert load_checkpoint(path, image_size=(32, 96)).model.spec.image_size == (32, 96)
    with pytest.raises(SpecError, match="a multiple of 32"):
        load_checkpoint(path, image_size=(32, 90))


def test_own_checkpoints_are_told_by_their_content(tmp_path: Path) -> None:
    save_checkpoint(tiny_network(), tmp_path / "net.safetensors")
    renamed = (tmp_path / "net.safetensors").rename(tmp_path / "net.weights")
    assert load_checkpoint(renamed).source.kind == "parnet-deploy"


def test_own_checkpoint_says_its_activation(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_checkpoint(tiny_network(), path)
    with pytest.raises(CheckpointError, match="trained with silu, not relu"):
        load_checkpoint(path, activation="relu")


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot write"):
        save_checkpoint(tiny_network(), tmp_path / "nowhere" / "net.safetensors")


# The authors'


def test_released_form_is_described_by_its_shapes() -> None:
    spec = load_checkpoint(OFFICIAL).model.spec
    assert spec == ParNetSpec(
        name="custom",
        stem_widths=(12,),
        stem_strides=(2, 2),
        stream_widths=(12, 24, 40),
        stream_blocks=(4, 5, 5),
        last_width=64,
    )


def test_a_bare_state_dict_with_and_without_prefix(tmp_path: Path) -> None:
    state = official_state()
    bare = load_checkpoint(written(tmp_path, state, "bare.pth"))
    assert bare.source.ema is False
    wrapped = {"state_dict": {f"module.{name}": value for name, value in state.items()}}
    prefixed = load_checkpoint(written(tmp_path, wrapped, "prefixed.pth"))
    expected = load_checkpoint(OFFICIAL).model.state_dict()
    for model in (bare.model, prefixed.model):
        assert all(torch.equal(expected[name], v) for name, v in model.state_dict().items())


def test_two_keys_for_one_tensor_are_not_chosen_between(tmp_path: Path) -> None:
    state = official_state()
    name, value = next(iter(state.items()))
    both = state | {f"module.{name}": value + 1}
    with pytest.raises(CheckpointError, match=r"two tensors for .* with and without 'module\.'"):
        load_checkpoint(written(tmp_path, both, "both.pth"))


def released(spec: ParNetSpec) -> dict[str, Tensor]:
    """A state dict of the authors' form for a three-stream network, from the names of the tiny one.

    Only the shapes matter: the tensors share one element each.
    """
    with torch.device("meta"):
        shapes = ParNet(spec).state_dict()
    state = {}
    for name in official_state():
        (ours,) = translate({name: torch.empty(0)}).weights
        state[name] = torch.zeros(()).expand(shapes[ours].shape)
    return state


@pytest.mark.parametrize("name", ["s", "m", "l", "xl"])
def test_released_variants_are_recognised(name: str) -> None:
    spec = variant(name).spec
    assert infer_spec(translate(released(spec)), activation="silu") == spec
    other = infer_spec(translate(released(spec)), activation="relu")
    assert other.name == ("m-relu" if name == "m" else name)
    assert other.activation == "relu"


def test_the_released_s_begins_with_92(tmp_path: Path) -> None:
    spec = variant("s").spec.with_widths((92, 192, 384, 1280))
    path = written(tmp_path, {"state_dict": released(spec)})
    for expected in (None, variant("s").spec):
        read = load_checkpoint(path, expected=expected)
        assert read.model.spec == spec
        assert read.model.spec.name == "s"
    for other in (variant("m").spec, variant("s").spec.with_streams(2)):
        with pytest.raises(CheckpointError, match="would fit variant 's' of widths 92,192,384,128"):
            load_checkpoint(path, expected=other)


# As the beginning of another training


HEAD = ("blocks.head.linear.weight", "blocks.head.linear.bias")


def test_the_same_classes_keep_everything(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    size = Preprocessing(size=(64, 64), crop_ratio=1.0)
    save_checkpoint(
        tiny_network(), path, TrainingFacts(labels=tuple("abcdefg"), preprocessing=size)
    )
    found = load_for_finetuning(path, labels=tuple("abcdefg"), image_size=(96, 32), seed=0)
    assert not found.new_head
    assert found.model.spec == tiny_spec(image_size=(96, 32))
    assert found.facts.labels == tuple("abcdefg")
    assert found.facts.preprocessing == replace(size, size=(96, 32))
    for name, value in tiny_network().state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value)


def test_another_number_of_classes_gets_a_seeded_head(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_checkpoint(tiny_network(), path, TrainingFacts(labels=tuple("abcdefg")))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (
        load_for_finetuning(path, labels=("x", "y", "z"), image_size=None, seed=seed)
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.rand(3), expected), "the global random state is untouched"
    assert one.new_head
    assert one.facts.labels == ()
    assert one.source.sha256 == sha256(path)
    assert one.model.spec == tiny_spec(classes=3)
    weights = one.model.state_dict()
    before = tiny_network().state_dict()
    assert all(torch.equal(weights[n], before[n]) for n in weights if n not in HEAD)
    assert all(torch.equal(weights[n], same.model.state_dict()[n]) for n in HEAD)
    assert not any(torch.equal(weights[n], other.model.state_dict()[n]) for n in HEAD)
    assert weights[HEAD[0]].shape == (3, 32)
    assert one.model(torch.zeros(2, 3, 64, 64)).shape == (2, 3)


def test_as_many_but_other_classes_get_a_new_head(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_checkpoint(tiny_network(), path, TrainingFacts(labels=tuple("abcdefg")))
    found = load_for_finetuning(path, labels=tuple("gfedcba"), image_size=None, seed=1)
    assert found.new_head
    weights, before = found.model.state_dict(), tiny_network().state_dict()
    assert [name for name in weights if not torch.equal(weights[name], before[name])] == [*HEAD]


@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_finetuning_an_authors_checkpoint(activation: Any) -> None:
    path = DATA / f"official_tiny_{activation}.pth.tar"
    found = load_for_finetuning(
        path, labels=tuple("abcdefghij"), image_size=(64, 96), seed=0, activation=activation
    )
    assert found.new_head
    assert found.source.ema is True
    with np.load(DATA / f"official_tiny_{activation}.npz") as golden:
        with torch.inference_mode():
            values = found.model.values(torch.from_numpy(golden["input"]))
        last = torch.from_numpy(golden["combine"])
    assert values["logits"].shape == (len(last), 10)
    torch.testing.assert_close(values["last"], last, rtol=1e-4, atol=1e-4)
    thousand = tuple(map(str, range(1000)))  # an authors' file does not say what they are called
    kept = load_for_finetuning(
        path, labels=thousand, image_size=None, seed=0, activation=activation
    )
    assert not kept.new_head


def test_finetuning_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="at least one class"):
        load_for_finetuning(OFFICIAL, labels=(), image_size=None, seed=0)
    with pytest.raises(SpecError, match="a multiple of 32"):
        load_for_finetuning(OFFICIAL, labels=tuple("abcdefghij"), image_size=(50, 64), seed=0)
    with pytest.raises(CheckpointError, match="no checkpoint file"):
        load_for_finetuning(tmp_path / "none", labels=("a", "b"), image_size=None, seed=0)


# What does not fit


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    state = official_state()
    del state["streams.1.2.block.rbr_identity.running_var"]
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(written(tmp_path, {"state_dict": state}))
    message = str(caught.value)
    assert "1 missing (streams.1.2.block.rbr_identity.running_var)" in message
    assert "no whole checkpoint of a ParNet of widths 12,24,40,64, 1000 classes" in message


def test_every_key_of_theirs_is_found_again_by_its_name_here() -> None:
    translated = translate(official_state())
    assert not translated.unknown
    assert len(translated.keys) == len(official_state())
    assert all(authors_key(name) == key for name, key in translated.keys.items())
    assert authors_key("blocks.merge4.dense.conv.weight") == "blocks.merge4.dense.conv.weight"


def test_a_missing_key_that_tells_the_widths_is_named_as_theirs(tmp_path: Path) -> None:
    state = official_state()
    del state["inits.0.1.block.rbr_dense.conv.weight"]
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(written(tmp_path, {"state_dict": state}))
    assert "it has no 'inits.0.1.block.rbr_dense.conv.weight'" in str(caught.value)
    assert "it begins with inits.0.0." in str(caught.value)


def test_a_squeeze_that_is_too_much_is_named_as_theirs() -> None:
    described = load_checkpoint(OFFICIAL).model.spec
    with pytest.raises(
        CheckpointError, match=r"extra \(inits\.0\.0\.block\.se\.cvsig\.conv\.weight"
    ):
        load_checkpoint(OFFICIAL, expected=replace(described, squeeze=False))


def test_an_extra_key_is_named(tmp_path: Path) -> None:
    state = official_state() | {"neck.weight": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"1 extra \(neck\.weight\)"):
        load_checkpoint(written(tmp_path, {"state_dict": state}))


def test_a_misshapen_key_is_named(tmp_path: Path) -> None:
    state = official_state()
    state["streams.0.1.block.rbr_1x1.conv.weight"] = torch.zeros(12, 13, 1, 1)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(written(tmp_path, {"state_dict": state}))
    assert (
        "1 misshapen (streams.0.1.block.rbr_1x1.conv.weight "
        "[12, 13, 1, 1] instead of [12, 12, 1, 1])" in str(caught.value)
    )


def test_what_it_would_fit_is_named() -> None:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(OFFICIAL, expected=variant("s").spec)
    message = str(caught.value)
    assert "does not fit variant 's' of widths 96,192,384,1280, 1000 classes" in message
    assert "misshapen" in message
    assert "and 310 more" in message, "a long list is cut"
    assert "it would fit a ParNet of widths 12,24,40,64, 1000 classes" in message


def test_own_weights_that_are_not_those_of_their_spec(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_checkpoint(tiny_network(), path)
    with pytest.raises(CheckpointError, match=r"does not fit .* would fit a ParNet of widths 8,16"):
        load_checkpoint(path, expected=tiny_spec(last_width=40))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stem_strides": (1, 2)}, r"stem_strides \(2, 2\), not \(1, 2\)"),
        ({"last_stride": 1}, "last_stride 2, not 1"),
        ({"bn_eps": 1e-3}, "bn_eps 1e-05, not 0.001"),
    ],
)
def test_what_no_shape_tells_is_compared_too(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    """The weights fit, and the network would answer something else."""
    path = tmp_path / "net.safetensors"
    save_checkpoint(tiny_network(), path)
    assert load_checkpoint(path, expected=tiny_spec(dropout=0.5)).model.spec.dropout == 0.5
    with pytest.raises(CheckpointError, match=f"was trained with {words}"):
        load_checkpoint(path, expected=tiny_spec(**changes))


RESNET = {
    "conv1.weight": torch.zeros(64, 3, 7, 7),
    "bn1.weight": torch.zeros(64),
    "layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3),
    "fc.weight": torch.zeros(1000, 512),
}


class Code:
    """What a pickle can do to whoever opens it."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> Any:
        return Path.touch, (self.touched,)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"state_dict": RESNET}, "not a checkpoint of a ParNet"),
        (RESNET, "it begins with conv1.weight, bn1.weight, layer1.0.conv1.weight"),
        ({"state_dict": {}}, "it begins with nothing"),
        ({"state_dict": {STEM: torch.zeros(())}}, "not a checkpoint of a ParNet"),
        ({"state_dict": {STEM: "text"}}, "no 'state_dict' of tensors"),
        ({"epoch": 3, "optimizer": {}}, "it has ['epoch', 'optimizer']"),
        ([torch.zeros(3)], "holds a list"),
        (torch.zeros(3), "holds a Tensor"),
        ({"state_dict": torch.zeros(3)}, "no 'state_dict' of tensors"),
        ({"state_dict_ema": torch.zeros(3), "state_dict": {}}, "it begins with nothing"),
        (nn.Linear(2, 2), "never unpickled"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_torch_file_of_something_else(tmp_path: Path, content: object, words: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_stream_without_blocks(tmp_path: Path) -> None:
    state = {k: v for k, v in official_state().items() if not k.startswith("streams.1.")}
    with pytest.raises(CheckpointError, match="at least one block in every stream"):
        load_checkpoint(written(tmp_path, {"state_dict": state}))


@pytest.mark.parametrize("writer", [torch.save, lambda c, f: f.write_bytes(pickle.dumps(c))])
def test_a_pickle_with_code_is_refused_and_never_runs(tmp_path: Path, writer: Any) -> None:
    path, touched = tmp_path / "evil.pth.tar", tmp_path / "touched"
    writer({"state_dict": {STEM: Code(touched)}}, path)
    with pytest.raises(CheckpointError, match="never unpickled") as caught:
        load_checkpoint(path)
    assert not touched.exists()
    assert "weights_only=False" not in str(caught.value), "torch's advice is unsafe"
    assert "\n" not in str(caught.value)


# Files that are no checkpoint


def contents() -> Mapping[str, bytes]:
    official = OFFICIAL.read_bytes()
    return {
        "empty": b"",
        "text": b"not a checkpoint\n",
        "json": b'{"state_dict": {}}',
        "zeros": bytes(4096),
        "noise": np.random.default_rng(0).bytes(4096),
        "half": official[: len(official) // 2],
        "without its end": official[:-100],
        "only its beginning": official[:20],
        "zip": b"PK\x03\x04" + bytes(100),
        "pickle": pickle.dumps({"state_dict": 3}),
    }


@pytest.mark.parametrize("suffix", [".pth.tar", ".safetensors"])
@pytest.mark.parametrize("kind", contents())
def test_files_that_are_no_checkpoint(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_bytes(contents()[kind])
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.pth.tar", tmp_path):
        with pytest.raises(CheckpointError, match="no checkpoint file"):
            load_checkpoint(path)


def test_truncated_own_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_checkpoint(tiny_network(), path)
    data = path.read_bytes()
    for length in (0, 4, 9, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


def test_safetensors_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="not of parnet-deploy"):
        load_checkpoint(path)
    save_file({"weight": torch.zeros(3)}, path, metadata={"parnet-deploy/checkpoint": "{}"})
    with pytest.raises(CheckpointError, match="required field `spec`"):
        load_checkpoint(path)


def test_own_checkpoint_whose_spec_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_checkpoint(tiny_network(), path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    damaged = {key: text.replace('"classes": 7', '"classes": 0') for key, text in metadata.items()}
    assert damaged != metadata
    save_file(load_file(path), path, metadata=damaged)
    with pytest.raises(CheckpointError, match="at least one class"):
        load_checkpoint(path)


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    for index in range(5):
        save_checkpoint(tiny_network(), tmp_path / f"{index}.safetensors")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_a_damaged_file_never_ends_in_another_exception(tmp_path: Path) -> None:
    """Bytes flipped anywhere: it is refused, or, where only numbers changed, read."""
    path = tmp_path / "damaged.pth.tar"
    official = OFFICIAL.read_bytes()
    refused = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        data = bytearray(official)
        # The beginning holds the pickle, the end the archive's index: where damage is seen.
        end = len(data)
        for place in (*rng.integers(0, 40_000, 20), *rng.integers(end - 20_000, end, 3)):
            data[place] ^= int(rng.integers(1, 256))
        path.write_bytes(data)
        try:
            load_checkpoint(path)
        except CheckpointError as exc:
            refused.append(str(exc))
    assert len(refused) > 5
    assert not any("\n" in message for message in refused)
