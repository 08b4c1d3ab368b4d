"""Every peer runs the network it is said to run, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.images import read_images, write_images
from parnet_deploy.bench.openers import open_contestant
from parnet_deploy.bench.peers import PEERS, Peer, Preparation, find_peer
from parnet_deploy.bench.preparing import prepare_in_process, reference_in_process
from parnet_deploy.bench.reference import Question, compare_answers, read_answers
from parnet_deploy.bench.result import Absence
from parnet_deploy.bundle import ModelBundle
from parnet_deploy.errors import RunnerError, UsageError
from parnet_deploy.spec import IMAGES, LOGITS, Array, decode, encode

BATCH = 2
ON_CPU = [name for name, peer in PEERS.items() if "cpu" in peer.devices]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def images(workspace: Path, tiny_bundle: ModelBundle) -> Path:
    path = workspace / "images.npz"
    return write_images(path, tiny_bundle.manifest.preprocessing, count=3, seed=0)


@pytest.fixture(scope="module")
def reference(workspace: Path, tiny_bundle: ModelBundle, images: Path) -> Array:
    answers = reference_in_process(
        Question(
            model=str(tiny_bundle.path),
            images=str(images),
            count=BATCH,
            answers=str(workspace / "reference.npy"),
        )
    )
    found = read_answers(Path(answers.path))
    assert found is not None
    return found


@pytest.fixture
def asked(workspace: Path, tiny_bundle: ModelBundle, images: Path) -> Preparation:
    return Preparation(
        peer="torch",
        network="tiny",
        model=str(tiny_bundle.path),
        workspace=str(workspace),
        images=str(images),
        batch=BATCH,
    )


@pytest.mark.parametrize("name", ON_CPU)
def test_it_answers_as_the_training_form(name: str, asked: Preparation, reference: Array) -> None:
    contestant = PEERS[name].prepare(replace(asked, peer=name))
    opened = open_contestant(decode(encode(contestant), Contestant))
    feeds = {IMAGES: read_images(Path(contestant.images), "float32")[:BATCH]}
    first = opened.runner.run(feeds)[LOGITS]
    kept = first.copy()
    parity = compare_answers(first, reference)
    assert parity.max_rel < 5e-6
    assert parity.same_top1 == BATCH
    assert opened.versions
    opened.runner.run({IMAGES: -feeds[IMAGES]})
    np.testing.assert_array_equal(first, kept, "an answer belongs to whom it was given")
    opened.runner.close()
    opened.runner.close()
    with pytest.raises(RunnerError, match="closed"):
        opened.runner.run(feeds)
