"""How a data set is opened."""

from __future__ import annotations

from dataclasses import dataclass

from parnet_deploy.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class DataOptions:
    """What a person may say about a data set beside where it is.

    Attributes:
        hold_out: part of each class that becomes the test split, where the images are not split
            already; None where they are.
        skip_bad: let classes without images pass in a test split.
    """

    hold_out: float | None = None
    skip_bad: bool = False

    def __post_init__(self) -> None:
        """Refuse a part that would leave nothing to learn from or to test on.

        Raises:
            UsageError: `hold_out` is not between 0 and 1.
        """
        if self.hold_out is not None and not 0.0 < self.hold_out < 1.0:
            raise UsageError(f"a part between 0 and 1 can be held out, not {self.hold_out}")
