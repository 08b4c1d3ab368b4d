"""What to verify with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from parnet_deploy.errors import UsageError
from parnet_deploy.verify.tolerances import RungName

SAMPLES, SMALL_SAMPLES = 4, 32
SMALL_PIXELS = 128 * 128
"""A unit that is silent on all images hides its faults: so more are fed where they are cheap."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyOptions:
    """What to verify with.

    Attributes:
        images: folder of images to feed, or None.
        npz: file of an array to feed, or None. Without either, seeded noise is fed.
        calibrate: what a quantised network was calibrated on, as ``export --calibrate`` takes it:
            its ranges must be found again on it, and it is what is fed where nothing else is.
        seed: seed of the noise.
        samples: number of images: of the noise, or the most that are taken of what was given;
            None for `SAMPLES`, or `SMALL_SAMPLES` where images are small.
        required: rungs that must be verified.
        tolerances: greatest relative errors that differ from the defaults.
        model: where the model bundle lies, or None for where the engine says.
        sibling: an engine of the other kind, split or whole, of the same model, or None.
    """

    images: Path | None = None
    npz: Path | None = None
    calibrate: str | None = None
    seed: int = 0
    samples: int | None = None
    required: tuple[RungName, ...] = ()
    tolerances: Mapping[RungName, float] = field(default_factory=dict)
    model: Path | None = None
    sibling: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            UsageError: two sources of images, or no sample.
        """
        if self.images is not None and self.npz is not None:
            raise UsageError("--images and --npz are two sources of images; give one of them")
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"at least one sample is needed, not {self.samples}")

    def samples_for(self, size: tuple[int, int]) -> int:
        """Number of images to feed, of a size (H, W) in pixels."""
        if self.samples is not None:
            return self.samples
        return SMALL_SAMPLES if size[0] * size[1] <= SMALL_PIXELS else SAMPLES
