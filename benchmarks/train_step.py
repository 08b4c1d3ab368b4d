"""A full training step of ParNet, against the same network written with plain timm layers.

Forward, loss, backward and SGD. That it is the same network is checked first: with the same
weights, logits, gradients and running statistics are equal in float64. Each contestant runs in a
fresh process in every round, in shuffled order; see README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import contest
import timm
import torch
from plain_timm import PlainParNet
from torch import Tensor, nn

from parnet_deploy.net import ParNet, initialise
from parnet_deploy.spec import ParNetSpec, variant

WARM_UP = 2
SAME = 1e-9
"""Relative: float64 has 2e-16, and a gradient goes through some forty layers."""

PLAIN, OURS = "plain timm layers", "parnet-deploy"
COMPILED = ", compiled"
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> None:
    """Check, measure, report."""
    options = _parse()
    if options.worker:
        print(json.dumps(work(options.worker, options)))
        return
    spec = variant(options.variant).spec
    check_same(spec)
    names = [PLAIN, OURS] + [name + COMPILED for name in (PLAIN, OURS) if options.compile]
    given = [argument for argument in sys.argv[1:] if argument]
    commands = {name: [sys.executable, __file__, *given, "--worker", name] for name in names}
    rounds = contest.interleave(commands, options.rounds)
    contest.write(_report(options, given), contest.summarise(rounds, PLAIN), rounds, options.batch)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", default="s")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of torch.autocast")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sgd", choices=("default", "foreach", "fused"), default="default")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile as well")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="processor: time of all threads, for a machine that is used by others meanwhile",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--worker", metavar="CONTESTANT", help=argparse.SUPPRESS)
    return parser.parse_args()


def check_same(spec: ParNetSpec) -> None:
    """Raise unless both are one network, in training mode and in float64.

    Dropout is left out, since its masks are random.
    """
    spec = replace(spec, dropout=0.0, conv_dropout=0.0)
    size = (2 * spec.stride, 2 * spec.stride)
    ours = initialise(spec, seed=0).double().train()
    plain = copy_weights(ours, PlainParNet(spec).double().train())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, *size, generator=generator, dtype=torch.float64)
    labels = torch.arange(4) % spec.classes
    logits = []
    for network in (ours, plain):
        logits.append(network(images))
        nn.functional.cross_entropy(logits[-1], labels).backward()
    _check_equal("logits", *logits)
    theirs = plain.parameters()
    for (name, parameter), other in zip(ours.named_parameters(), theirs, strict=True):
        _check_equal(f"the gradient of {name}", parameter.grad, other.grad)
    for (name, buffer), other in zip(ours.named_buffers(), plain.buffers(), strict=True):
        _check_equal(name, buffer, other)


def copy_weights(source: nn.Module, target: nn.Module) -> nn.Module:
    """Give a network the weights of another that has the same ones in the same order."""
    ours, theirs = source.state_dict(), target.state_dict()
    renamed = dict(zip(theirs, ours.values(), strict=True))
    target.load_state_dict(renamed)  # which refuses other shapes
    return target


def _check_equal(name: str, ours: Tensor | None, theirs: Tensor | None) -> None:
    if ours is None or theirs is None:
        raise AssertionError(f"{name} is missing")
    error = ((ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-6)).item()
    if not error <= SAME:
        raise AssertionError(f"not the same network: {name} differs by {error:.1e} relatively")


def work(name: str, options: argparse.Namespace) -> list[float]:
    """Run one contestant: milliseconds of every step."""
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True
    spec = variant(options.variant).spec
    network: nn.Module = ParNet(spec) if name.startswith(OURS) else PlainParNet(spec)
    if name.endswith(COMPILED):
        network = torch.compile(network)
    step = make_step(network, spec, options)
    for _ in range(WARM_UP):
        step()
    clock, result = CLOCKS[options.clock], []
    for _ in range(options.iterations):
        start = clock()
        step()
        result.append(1000 * (clock() - start))
    return result


def make_step(
    network: nn.Module, spec: ParNetSpec, options: argparse.Namespace
) -> Callable[[], None]:
    """One training step on the same random images, as a function that ends when it is done."""
    device = torch.device(options.device)
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    network = network.to(device=device, memory_format=layout).train()
    how = {} if options.sgd == "default" else {options.sgd: True}
    optimiser = torch.optim.SGD(
        network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, **how
    )
    scaler = torch.amp.GradScaler(device.type, enabled=options.dtype == "fp16")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.batch, 3, *spec.image_size, generator=generator)
    images = images.to(device=device, memory_format=layout)
    labels = torch.randint(spec.classes, (options.batch,), generator=generator).to(device)
    autocast = options.dtype != "fp32"

    def step() -> None:
        with torch.autocast(device.type, DTYPES[options.dtype], enabled=autocast):
            loss = nn.functional.cross_entropy(network(images).float(), labels)
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def _report(options: argparse.Namespace, given: list[str]) -> contest.Report:
    layout = "channels-last" if options.channels_last else "contiguous"
    stem = f"train-step-{options.device}-{options.variant}-{options.batch}-{options.dtype}-{layout}"
    hardware = f"{contest.cpu_model()}, {options.threads} threads, no GPU"
    if options.device == "cuda":
        hardware = f"{torch.cuda.get_device_name()}, {contest.cpu_model()}"
    versions = f"torch {torch.__version__}, timm {timm.__version__}"
    return contest.Report(
        stem=stem,
        title=f"A training step of {options.variant}, {versions}",
        hardware=hardware,
        conditions=(
            f"batch {options.batch}, {options.dtype}, {layout}, SGD ({options.sgd}), "
            f"{options.clock} time; "
            f"{options.rounds} interleaved rounds of {options.iterations} steps, a fresh process "
            "per contestant and round"
        ),
        command=" ".join(("benchmarks/train_step.py", *given)),
        rate="images/s" if options.clock == "wall" else "images per processor second",
    )


if __name__ == "__main__":
    main()
