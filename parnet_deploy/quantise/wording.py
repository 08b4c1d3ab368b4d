"""What was found, in sentences, and figures as people read them."""

from __future__ import annotations

from parnet_deploy.quantise.effect import Effect
from parnet_deploy.quantise.kernels import KernelNoise
from parnet_deploy.quantise.result import LayerReport, QuantisationReport

NONE = "-"
LOSSLESS = "exact"

HARMED = 3.0
"""Decibels: a folded kernel so much noisier than its dense branch alone has half a bit less.

A bit of resolution is 6.02 dB (W. R. Bennett, "Spectra of quantized signals", 1948)."""

_SHOWN = 6


def headline(report: QuantisationReport) -> str:
    """What it comes to, in a few words."""
    if report.final is None:
        return "nothing is quantised"
    return f"{report.precision}: {answers(report.final, report)}"


def answers(effect: Effect, report: QuantisationReport) -> str:
    """What became of the answers: accuracy where there are labels, else agreement with float32."""
    if effect.accuracy is None or report.accuracy is None:
        return f"top-1 as in fp32 for {percent(effect.agreement)} of {report.images} images"
    lost = 100 * (report.accuracy - effect.accuracy)
    change = f"{lost:.2f} points less" if lost > 0 else f"{-lost:.2f} points more"
    if lost == 0:
        change = "the same"
    return (
        f"top-1 {percent(effect.accuracy)} on {report.images} images, {change} than fp32".replace(
            "the same than", "the same as"
        )
    )


def sentences(report: QuantisationReport) -> tuple[str, ...]:
    """What a reader must know: who is to blame, what folding did, what was decided."""
    found = [blame(report), folding(report), naive(report)]
    if report.kept is not None:
        verdict = report.kept.verdict
        found.append(f"{verdict[0].upper()}{verdict[1:]}.")
    found += [
        f"--{each.option}: {each.detail}. The logits' signal-to-noise ratio goes from "
        f"{decibels(each.before.snr)} to {decibels(each.after.snr)} dB, the agreement with fp32 "
        f"from {percent(each.before.agreement)} to {percent(each.after.agreement)}."
        for each in report.options
    ]
    return tuple(sentence for sentence in found if sentence)


def blame(report: QuantisationReport) -> str:
    """Which layers most of the noise comes from."""
    if not report.blamed:
        return "No layer changes the answers when it alone is quantised."
    named = ", ".join(f"{each.block} ({100 * each.share:.0f} %)" for each in report.blamed)
    measured = sum(layer.alone is not None for layer in report.layers)
    layers = f"{len(report.blamed)} of {measured} layers"
    return f"To blame for half of the noise in the answers: {layers}, {named}."


def folding(report: QuantisationReport) -> str:
    """What folding did to the kernels."""
    looked = [layer for layer in report.layers if layer.kernels and layer.kernels.dense]
    if not looked:
        return ""
    parts = []
    for scales, what in (
        ("per_tensor", "one scale for a kernel"),
        ("per_channel", "a scale for each output channel"),
    ):
        harmed = [layer.block for layer in looked if _drop(layer, scales) > HARMED]
        which = ", ".join(harmed[:_SHOWN]) + (" and others" if len(harmed) > _SHOWN else "")
        count = f"{len(harmed)} of {len(looked)}"
        parts.append(f"with {what}, {count}{f' ({which})' if harmed else ''}")
    return (
        f"Folded kernels that are more than {HARMED:g} dB noisier than their dense branch alone: "
        f"{'; '.join(parts)}."
    )


def naive(report: QuantisationReport) -> str:
    """What a run without any of this would give."""
    return (
        "For contrast, with whole ranges (minmax) and one scale for each kernel: "
        f"{answers(report.naive, report)}, signal-to-noise ratio {decibels(report.naive.snr)} dB; "
        f"as calibrated, before anything is kept: {answers(report.whole, report)}, "
        f"{decibels(report.whole.snr)} dB."
    )


def decibels(value: float | None) -> str:
    """A signal-to-noise ratio."""
    return LOSSLESS if value is None else f"{value:.1f}"


def both(noise: KernelNoise | None) -> str:
    """A kernel's, per channel and per tensor."""
    return (
        NONE if noise is None else f"{decibels(noise.per_channel)} / {decibels(noise.per_tensor)}"
    )


def percent(value: float) -> str:
    """A share."""
    return f"{100 * value:.2f} %"


def _drop(layer: LayerReport, scales: str) -> float:
    """By how many decibels the folded kernel is noisier than the dense one."""
    if layer.kernels is None or layer.kernels.dense is None:
        return 0.0
    dense, folded = (
        getattr(kernel, scales) for kernel in (layer.kernels.dense, layer.kernels.folded)
    )
    return 0.0 if dense is None or folded is None else float(dense - folded)
