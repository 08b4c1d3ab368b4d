"""Options of ``export`` that say how a network is quantised, and what came of it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.markup import escape

from parnet_deploy.cli.console import Justify, new_table, print_table, say, tell, warn
from parnet_deploy.cli.counting import counting
from parnet_deploy.cli.field_options import flag
from parnet_deploy.errors import UsageError
from parnet_deploy.quantise.names import (
    LIMIT,
    check_needs_images,
    check_per_tensor,
    refuse_report,
    refuse_without_ranges,
)
from parnet_deploy.spec import Backend, Preprocessing
from parnet_deploy.spec.precision import Precision
from parnet_deploy.spec.quantisation import Scheme, scheme_of
from parnet_deploy.spec.targets import check_precision

if TYPE_CHECKING:
    from parnet_deploy.export.quantising import Quantised, QuantiseOptions
    from parnet_deploy.quantise.effect import Effect
    from parnet_deploy.quantise.images import Found
    from parnet_deploy.quantise.result import QuantisationReport
    from parnet_deploy.spec.learned import LearnedRanges

FEW = 16
"""On fewer calibration images ranges are a matter of luck."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What the command line takes for int8 and fp8: every field an option, with its help."""

    calibrate: Annotated[
        str | None,
        "Images for int8 and fp8: a folder, an .npz, or a data set such as digits or "
        "imagefolder:PATH.",
    ] = None
    calibration_images: Annotated[
        int, f"Calibration images at most, spread over the classes; 0: all [default: {LIMIT}]."
    ] = LIMIT
    calibration_method: Annotated[
        Literal["minmax", "entropy", "percentile", "mse"],
        "How the ranges of activations are found [default: mse].",
    ] = "mse"
    percentile: Annotated[float | None, "Values within a range, in percent, of percentile."] = None
    keep: Annotated[
        list[str] | None, "Blocks that are not quantised, with commas or option by option."
    ] = None
    auto_keep: Annotated[
        float | None,
        "Keep just the layers that it takes to lose at most so many points: of accuracy where the "
        "images have labels, else of top-1 agreement.",
    ] = None
    equalise: Annotated[bool, "Even out channels' ranges first, where it is exact."] = False
    correct_bias: Annotated[bool, "Take off what quantising shifts on average."] = False
    per_tensor: Annotated[bool, "One scale for a whole kernel: naive, for comparison."] = False
    allow_doubtful: Annotated[
        bool,
        "Go on where the images are unlike those of the training, were normalised otherwise, or "
        "too many answers on them are others than in fp32: a warning, then.",
    ] = False
    quantisation_report: Annotated[
        Path | None, "Folder for what each layer costs: a page, a picture and JSON."
    ] = None

    def __post_init__(self) -> None:
        """Refuse what cannot be, before anything is read.

        Raises:
            UsageError: a number of images or a budget that is none, a percentile that does not
                go with the method, or one scale for a whole kernel beside what measures it.
        """
        if self.calibration_images < 0:
            raise UsageError(f"--calibration-images is not negative, not {self.calibration_images}")
        if self.auto_keep is not None and not 0 <= self.auto_keep <= 100:
            raise UsageError(f"--auto-keep takes points, 0 to 100, not {self.auto_keep}")
        check_per_tensor(
            per_channel=not self.per_tensor,
            costs=self.quantisation_report is not None,
            budget=self.auto_keep,
        )
        if self.calibrate is not None:
            from parnet_deploy.quantise.ranges import check_method

            check_method(self.calibration_method, self.percentile)
            return
        check_needs_images(
            equalise=self.equalise,
            correct_bias=self.correct_bias,
            costs=self.quantisation_report is not None,
            budget=self.auto_keep,
        )

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of blocks: one or, with commas between, several an option; none twice."""
        texts = self.keep or ()
        return tuple(dict.fromkeys(name.strip() for text in texts for name in text.split(",")))


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What was said of quantising, for a precision that a backend computes in.

    Attributes:
        precision: ``int8`` or ``fp8``.
        scheme: what the backend takes of it.
        options: how.
        found: the images to calibrate on, not read yet; None before they are looked for, and where
            there are none.
    """

    precision: Precision
    scheme: Scheme
    options: Options
    found: Found | None = None

    @property
    def report(self) -> Path | None:
        """Folder for what each layer costs, or None."""
        return self.options.quantisation_report

    def with_images(self, checkpoint: Path | None) -> Asked:
        """The same, its images found: what is not there is known before a network is read.

        Args:
            checkpoint: what is to be quantised; None for a network with weights that were never
                trained, and so without ranges of its own.

        Raises:
            UsageError: no images are named where there is nothing else to find ranges on, or what
                is named is no data set.
            ParnetDeployError: there are none at the place that is named.
        """
        if self.options.calibrate is None:
            return self if checkpoint is not None else refuse_without_ranges()
        from parnet_deploy.quantise.images import find_images_of

        return replace(self, found=find_images_of(self.options.calibrate))

    def check_outside(self, bundle: Path) -> None:
        """Refuse a report in the bundle's own folder, which is put in place as a whole.

        Raises:
            UsageError: it would stand there.
        """
        if self.report is None:
            return
        folder, final = (Path(os.path.realpath(path)) for path in (self.report, bundle))
        if folder.is_relative_to(final):
            raise UsageError(
                f"--quantisation-report {self.report} lies in {bundle}, which is put in place as a "
                "whole: choose a folder beside it"
            )

    def read(
        self,
        name: str,
        preprocessing: Preprocessing,
        labels: Sequence[str],
        outputs: int,
        learned: LearnedRanges | None,
    ) -> QuantiseOptions:
        """How the network is to be quantised, its images read.

        Args:
            name: the network's.
            preprocessing: of the network.
            labels: class names in the order of the logits; empty where they are not known.
            outputs: how many logits there are.
            learned: ranges that a training found, or None.

        Raises:
            ParnetDeployError: the images cannot be used.
        """
        from parnet_deploy.export.quantising import QuantiseOptions
        from parnet_deploy.quantise.images import open_images

        images, options = None, self.options
        if self.found is not None:
            with counting("read") as count:
                images = open_images(
                    self.found,
                    preprocessing,
                    limit=options.calibration_images or None,
                    classes=labels,
                    outputs=outputs,
                    progress=lambda done, total: count("calibration images", done, total),
                )
        return QuantiseOptions(
            name=name,
            precision=self.precision,
            scheme=self.scheme,
            images=images,
            learned=learned,
            method=options.calibration_method,
            percentile=options.percentile,
            kept=options.kept,
            budget=options.auto_keep,
            equalise=options.equalise,
            correct_bias=options.correct_bias,
            per_channel=not options.per_tensor,
            costs=self.report is not None,
            doubtful=options.allow_doubtful,
        )


def find_asked(
    given: Mapping[str, Any], precision: Precision, target: Backend, *, force: bool
) -> Asked | None:
    """What is asked for; None where the precision quantises nothing.

    Args:
        given: fields of `Options` that were given on the command line.
        precision: what the graphs are to compute in.
        target: what they are for.
        force: replace a report that stands there.

    Raises:
        UsageError: options that mean nothing there or cannot be, or a report's folder that cannot
            be written to.
        SpecError: the target has no such precision.
    """
    check_precision(precision, target)
    if (scheme := scheme_of(precision, target)) is None:
        if given:
            named = ", ".join(sorted(flag(name, value) for name, value in given.items()))
            raise UsageError(f"--precision {precision} quantises nothing, so leave out {named}")
        return None
    options = Options(**given)
    if options.quantisation_report is not None:
        _check_folder(options.quantisation_report, force=force)
    return Asked(precision=precision, scheme=scheme, options=options)


def _check_folder(folder: Path, *, force: bool) -> None:
    """Refuse what could not be written; nothing is made yet."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write a report to --quantisation-report {folder}: see {there}")
    refuse_report(folder, force=force)


def check_kept(keep: Sequence[str], blocks: Sequence[str]) -> None:
    """Refuse names of blocks that have no convolution, before anything is computed.

    Raises:
        UsageError: there is no such block.
    """
    for name in keep:
        if name not in blocks:
            raise UsageError(f"there is no layer '{name}' to keep; there are {', '.join(blocks)}")


def show_quantised(found: Quantised, folder: Path | None) -> None:
    """Print what quantising made of the answers, what is kept, and who is to blame.

    Args:
        found: what was found.
        folder: where the report is written to, or None. That is done before the graphs are
            proven: where they are refused, it says why.
    """
    if folder is not None and found.report is not None:
        from parnet_deploy.quantise.report import write_report

        _, page = write_report(found.report, folder)
        tell(f"  report: {page}")
    _print_quantised(found)


def _print_quantised(found: Quantised) -> None:
    calibration = found.quantisation.calibration
    say(f"calibrated ({calibration.method}) on {calibration.images} images: {calibration.source}")
    warn(found.warnings)
    if calibration.images < FEW:
        warn((f"{calibration.images} calibration images are few: give {FEW} or more",))
    rows = _rows(found)
    if rows:
        labelled = found.accuracy is not None
        columns: dict[str, Justify] = {"": "left", "top-1 agreement": "right"}
        columns["logits' error"] = columns["SNR"] = "right"
        if labelled:
            columns["accuracy"] = "right"
        table = new_table("on the calibration images", columns)
        if labelled:
            table.add_row("fp32", "", "", "", f"{found.accuracy:.2%}")
        for what, effect in rows:
            table.add_row(escape(what), *_figures(effect, labelled=labelled))
        print_table(table)
    if found.report is not None:
        _print_report(found.report)
    if found.quantisation.kept:
        base = found.quantisation.scheme.base
        say(f"kept in {base}: {', '.join(found.quantisation.kept)}")


def _print_report(report: QuantisationReport) -> None:
    """Print what did not pay, who is to blame, and what was kept."""
    for sentence in _regrets(report):
        say(sentence)
    if report.blamed:
        listed = ", ".join(f"{one.block} ({one.share:.0%})" for one in report.blamed)
        say(f"half of the noise that layers make alone comes from {listed}")
    if report.kept is not None:
        say(report.kept.verdict)


def _rows(found: Quantised) -> list[tuple[str, Effect]]:
    """What was measured, and its figures."""
    if (report := found.report) is None:
        return [] if found.effect is None else [("as exported", found.effect)]
    rows = [("naive: a scale for a whole kernel, whole ranges", report.naive)]
    equalised = [option for option in report.options if option.option == "equalise"]
    rows += [("without --equalise", option.before) for option in equalised]
    rows.append(("as asked, nothing kept by --auto-keep", report.whole))
    rows += [(f"--{o.option}", o.after) for o in report.options if o not in equalised]
    return rows if report.final is None else [*rows, ("as exported", report.final)]


def _regrets(report: QuantisationReport) -> Iterator[str]:
    """What did not pay."""
    for option in report.options:
        if _decibels(option.after) < _decibels(option.before):
            yield f"--{option.option} makes it worse here: leave it out"
    if report.final is not None and _decibels(report.naive) > _decibels(report.final):
        yield "naive does better here: try --calibration-method minmax"


def _decibels(effect: Effect) -> float:
    return math.inf if effect.snr is None else effect.snr


def _figures(effect: Effect, *, labelled: bool) -> list[str]:
    snr = "exact" if effect.snr is None else f"{effect.snr:.1f} dB"
    cells = [f"{effect.agreement:.2%}", f"{effect.relative:.1e}", snr]
    if labelled:
        cells.append("" if effect.accuracy is None else f"{effect.accuracy:.2%}")
    return cells
