"""gRPC: whatever is asked, it is answered or refused as the client's fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve_grpc import SERVICE, Served, fronted, numbers, raw_request, typed_request
from served import echo, images
from served_plane import png
from tritonclient.grpc import service_pb2 as pb

IMAGE = images(1)["images"]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with fronted() as found:
        yield found


@pytest.fixture(scope="module")
def channel(served: Served) -> grpc.Channel:
    return served.channel()


@pytest.fixture(scope="module")
def stub(served: Served) -> Any:
    return served.stub()


SOME = st.sampled_from
TEXT = st.one_of(SOME(["images", "logits", "tiny", "1", ""]), st.text(max_size=5))
PARAMETERS = st.dictionaries(
    SOME(["classification", "shared_memory_region", "binary_data", "priority"]),
    st.one_of(
        st.builds(pb.InferParameter),
        st.builds(pb.InferParameter, int64_param=st.integers(-3, 7)),
        st.builds(pb.InferParameter, bool_param=st.booleans()),
        st.builds(pb.InferParameter, string_param=st.text(max_size=3)),
        st.builds(pb.InferParameter, double_param=st.floats()),
        st.builds(pb.InferParameter, uint64_param=st.integers(0, 2**64 - 1)),
    ),
    max_size=2,
)
CONTENTS = st.one_of(
    st.none(),
    st.builds(pb.InferTensorContents, fp32_contents=st.lists(st.floats(width=32), max_size=13)),
    st.just(pb.InferTensorContents(fp32_contents=[1.0] * 12)),
    st.builds(
        pb.InferTensorContents,
        bytes_contents=st.lists(st.one_of(st.just(png(9)), st.binary(max_size=9)), max_size=3),
    ),
    st.builds(
        pb.InferTensorContents,
        int_contents=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
        uint64_contents=st.lists(st.integers(0, 2**64 - 1), max_size=3),
    ),
)
SHAPES = st.one_of(
    SOME([[1, 3, 2, 2], [2, 3, 2, 2], [1, 2, 2, 3], [1], [2, 1], []]),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5),
)
INPUTS = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=TEXT,
    datatype=st.one_of(SOME(["FP32", "BYTES", "INT8", "FP16", "BF16"]), st.text(max_size=4)),
    shape=SHAPES,
    parameters=PARAMETERS,
    contents=CONTENTS,
)
OUTPUTS = st.builds(
    pb.ModelInferRequest.InferRequestedOutputTensor, name=TEXT, parameters=PARAMETERS
)
REQUESTS = st.builds(
    pb.ModelInferRequest,
    model_name=SOME(["tiny", "tiny", "tiny", "other"]),
    model_version=SOME(["", "1", "2"]),
    id=st.text(max_size=5),
    parameters=PARAMETERS,
    inputs=st.lists(INPUTS, max_size=2),
    outputs=st.lists(OUTPUTS, max_size=2),
    raw_input_contents=st.lists(
        st.one_of(st.just(IMAGE.tobytes()), st.binary(max_size=60)), max_size=2
    ),
)
CLIENTS_FAULT = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}


def outcome(call: Callable[[], Any]) -> tuple[grpc.StatusCode, Any]:
    """How a call ended, and its answer or what was said instead."""
    try:
        return grpc.StatusCode.OK, call()
    except grpc.RpcError as exc:
        return exc.code(), exc.details()


@settings(max_examples=120)
@given(request=REQUESTS)
def test_whatever_is_asked(stub: Any, request: Any) -> None:
    """It is answered, or refused as the client's fault; never anything else."""
    code, found = outcome(lambda: stub.ModelInfer(request))
    if code is grpc.StatusCode.OK:
        assert found.id == request.id
        assert len(found.raw_output_contents) == len(found.outputs) >= 1
    else:
        assert code in CLIENTS_FAULT, found
    assert stub.ServerLive(pb.ServerLiveRequest()).live


@settings(max_examples=100)
@given(method=SOME(["ModelInfer", "ModelReady", "ModelStatistics"]), data=st.binary(max_size=60))
def test_whatever_bytes_come(channel: grpc.Channel, method: str, data: bytes) -> None:
    code, found = outcome(lambda: channel.unary_unary(f"{SERVICE}/{method}")(data))
    assert code in {*CLIENTS_FAULT, grpc.StatusCode.OK}, found


@settings(max_examples=60)
@given(
    array=st.lists(
        st.lists(
            st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=12, max_size=12
        ),
        min_size=1,
        max_size=8,
    )
)
def test_both_ways_give_the_engines_answer(stub: Any, array: list[list[float]]) -> None:
    found = np.array(array, np.float32).reshape(-1, 3, 2, 2)
    expected = echo({"images": found})["logits"][:, 0].tolist()
    assert numbers(stub.ModelInfer(raw_request(found))) == expected
    assert numbers(stub.ModelInfer(typed_request(found))) == expected
