"""Random networks of stages on simulated GPUs, and what they should answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from hypothesis import strategies as st

from parnet_deploy.bundle import BatchRange
from parnet_deploy.runtime.cuda.device import CudaDevice
from parnet_deploy.runtime.cuda.runner import CudaRunner
from parnet_deploy.runtime.cuda.stage import CudaStage
from parnet_deploy.runtime.simulated.driver import SimulatedDriver
from parnet_deploy.runtime.simulated.program import FunctionProgram
from parnet_deploy.spec import Array, TensorSpec

WIDTH = 3


def tensor(name: str) -> TensorSpec:
    return TensorSpec(name=name, shape=("N", WIDTH), dtype="float32")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stage: what it reads, what it gives, where."""

    name: str
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    device: int = 0

    def compute(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Every output tells every input, its order and the stage apart."""
        total = np.sum(
            [(rank + 1) * values[name] for rank, name in enumerate(self.reads)], axis=0
        ).astype(np.float32)
        return {name: 0.5 * total + np.float32(len(name) + k) for k, name in enumerate(self.gives)}


@dataclass(frozen=True, kw_only=True)
class Network:
    """Stages on GPUs."""

    parts: tuple[Part, ...]
    outputs: tuple[str, ...]
    gpus: int = 1
    peers: bool = True
    batch: BatchRange = BatchRange(min=1, opt=2, max=4)  # noqa: RUF009  # frozen

    def expected(self, x: Array) -> dict[str, Array]:
        """Every value, by NumPy alone."""
        values = {"x": x}
        for part in self.parts:
            values |= part.compute(values)
        return values

    def driver(self) -> SimulatedDriver:
        return SimulatedDriver(self.gpus, peers=self.peers)

    def programs(self, driver: SimulatedDriver, **changes: object) -> list[FunctionProgram]:
        return [
            FunctionProgram(
                driver=driver,
                name=part.name,
                device=part.device,
                function=part.compute,
                inputs=tuple(map(tensor, part.reads)),
                outputs=tuple(map(tensor, part.gives)),
                batch=self.batch,
                **changes,  # type: ignore[arg-type]
            )
            for part in self.parts
        ]

    def stages(self) -> list[CudaStage]:
        return [program.stage() for program in self.programs(self.driver())]

    def open(
        self,
        driver: SimulatedDriver,
        *,
        contexts: int = 1,
        programs: list[FunctionProgram] = (),  # type: ignore[assignment]
    ) -> CudaRunner:
        return CudaRunner(
            [program.stage() for program in programs or self.programs(driver)],
            inputs=(tensor("x"),),
            outputs=tuple(map(tensor, self.outputs)),
            contexts=contexts,
            open_device=partial(CudaDevice, driver=driver),
        )


def parnet(*devices: int, gpus: int = 3, peers: bool = True, stem: int | None = None) -> Network:
    """Three streams on devices, a stage that joins them where the last one is, and maybe a stem."""
    parts = [] if stem is None else [Part(name="stem", reads=("x",), gives=("f",), device=stem)]
    for number, device in enumerate(devices, start=1):
        reads = ("x",) if stem is None else ("f",)
        parts.append(
            Part(name=f"stream{number}", reads=reads, gives=(f"s{number}",), device=device)
        )
    cuts = tuple(f"s{number}" for number in range(1, len(devices) + 1))
    parts.append(Part(name="fusion", reads=cuts, gives=("y",), device=devices[-1]))
    return Network(parts=tuple(parts), outputs=("y",), gpus=gpus, peers=peers)


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Up to seven stages on up to three GPUs, each reading any of the values before."""
    gpus = draw(st.integers(1, 3))
    parts, there = [], ["x"]
    for index in range(draw(st.integers(1, 7))):
        reads = draw(st.lists(st.sampled_from(there), min_size=1, max_size=3, unique=True))
        gives = tuple(f"v{index}_{k}" for k in range(draw(st.integers(1, 2))))
        device = draw(st.integers(0, gpus - 1))
        parts.append(Part(name=f"p{index}", reads=tuple(reads), gives=gives, device=device))
        there += gives
    outputs = draw(st.lists(st.sampled_from(there[1:]), min_size=1, max_size=3, unique=True))
    return Network(parts=tuple(parts), outputs=tuple(outputs), gpus=gpus, peers=draw(st.booleans()))


def image(number: int, batch: int = 1) -> Array:
    return np.arange(batch * WIDTH, dtype=np.float32).reshape(batch, WIDTH) + np.float32(number)


NETWORKS = {
    "one GPU": parnet(0, 0, 0, gpus=1),
    "two GPUs": parnet(0, 1, 0, gpus=2),
    "three GPUs": parnet(0, 1, 2),
    "three GPUs, a stem": parnet(0, 1, 2, stem=0),
    "three GPUs, through the host": parnet(0, 1, 2, peers=False),
}


def check(network: Network, answer: Mapping[str, Array], x: Array) -> None:
    expected = network.expected(x)
    assert answer.keys() == set(network.outputs)
    for name in network.outputs:
        np.testing.assert_array_equal(answer[name], expected[name])
