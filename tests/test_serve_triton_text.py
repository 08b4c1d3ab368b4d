"""Protocol buffers' text format: what is written is what their own parser reads."""

from __future__ import annotations

from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as pb

from parnet_deploy.serve.triton.text import Word, entries, to_text

# What UTF-8 can hold: no lone surrogates.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def parsed(text: str) -> pb.ModelConfig:
    assert text.isascii()
    return text_format.Parse(text, pb.ModelConfig())


@given(name=TEXTS, parameters=st.dictionaries(TEXTS, TEXTS, max_size=4))
def test_any_text_survives(name: str, parameters: dict[str, str]) -> None:
    pairs = {key: {"string_value": value} for key, value in parameters.items()}
    read = parsed(to_text({"name": name, "parameters": entries(pairs)}))
    assert read.name == name
    assert {key: value.string_value for key, value in read.parameters.items()} == parameters


@given(size=st.integers(-(2**31), 2**31 - 1), dims=st.lists(st.integers(-1, 2**62), max_size=5))
def test_numbers_survive(size: int, dims: list[int]) -> None:
    read = parsed(to_text({"max_batch_size": size, "input": [{"name": "x", "dims": dims}]}))
    assert read.max_batch_size == size
    assert list(read.input[0].dims) == dims


def test_every_kind_of_field() -> None:
    text = to_text(
        {
            "backend": 'a "quoted" \\ \n\t name, ä',
            "max_batch_size": 0,
            "version_policy": {"specific": {"versions": [1, 3]}},
            "instance_group": [{"kind": Word("KIND_GPU"), "gpus": []}],
            "model_warmup": [],
            "response_cache": {"enable": False},
            "dynamic_batching": {},
        }
    )
    assert text == (
        'backend: "a \\"quoted\\" \\\\ \\n\\t name, \\303\\244"\n'
        "max_batch_size: 0\n"
        "version_policy {\n  specific {\n    versions: [1, 3]\n  }\n}\n"
        "instance_group {\n  kind: KIND_GPU\n}\n"
        "response_cache {\n  enable: false\n}\n"
        "dynamic_batching {\n}\n"
    )
    read = parsed(text)
    assert read.HasField("dynamic_batching")
    assert read.instance_group[0].kind == pb.ModelInstanceGroup.KIND_GPU
    assert read.backend == 'a "quoted" \\ \n\t name, ä'
