"""The error tree. Standard library only.

    ParnetDeployError               whatever goes wrong that a user can act on
    ├── UsageError                  an option or argument that cannot be (exit status 2)
    │   └── SpecError               an architecture that cannot be built
    ├── MissingDependencyError      an optional package that this command needs
    ├── CheckpointError             a checkpoint that cannot be read or does not fit
    ├── ImageError                  a file that is not a readable image
    ├── DataError                   a data set, or a file of images or labels, that cannot be used
    ├── BundleError                 a bundle that is missing, damaged or of another format
    │   └── OutputExistsError       the output is already there, and --force was not given
    ├── TrainingError               training came apart
    ├── ExportError                 the exported graphs do not equal the network
    ├── BuildError                  an engine could not be built
    ├── EngineError                 an engine that cannot be used
    │   └── TargetError             ... since it is for another machine, GPU or version than this
    ├── RunnerError                 a run that failed, or was fed the wrong arrays
    ├── ServingError                a server that cannot start
    ├── RequestError                a request that is refused, with its HTTP status
    └── VerificationError           verification that could not be carried out

A message says what was found, what was expected, and what to do next. Foreign exceptions are
mapped to this tree at the edge where they arise, with ``from exc``.
"""

from __future__ import annotations


class ParnetDeployError(Exception):
    """Root of the tree; `exit_code` is the exit status of the command line."""

    exit_code = 1


class UsageError(ParnetDeployError):
    """An option or argument has a value that cannot be."""

    exit_code = 2


class SpecError(UsageError):
    """A `ParNetSpec` describes an architecture that cannot be built."""


class MissingDependencyError(ParnetDeployError):
    """An optional package is needed and is not installed."""


class CheckpointError(ParnetDeployError):
    """A checkpoint cannot be read, or does not fit the network."""


class ImageError(ParnetDeployError):
    """A file cannot be decoded as an image, or has an unusable size."""


class DataError(ParnetDeployError):
    """A data set, or a file of images or labels, that cannot be used; the message names it."""


class BundleError(ParnetDeployError):
    """A bundle is missing, damaged, or of a format this version cannot read."""


class OutputExistsError(BundleError):
    """The output is already there and may not be replaced without being told to."""


class TrainingError(ParnetDeployError):
    """Training came apart: its loss is no longer a number."""


class ExportError(ParnetDeployError):
    """An export whose graphs do not equal the network they came from, or cannot be written."""


class BuildError(ParnetDeployError):
    """An engine could not be built."""


class EngineError(ParnetDeployError):
    """An engine cannot be used."""


class TargetError(EngineError):
    """An engine is for another machine than this (GPU, version, provider); no fault of its own."""


class RunnerError(ParnetDeployError):
    """A run failed, or its inputs do not fit."""


class ServingError(ParnetDeployError):
    """A server cannot start, or a model repository cannot be written."""


class RequestError(ParnetDeployError):
    """A request is refused. The message is for the client: nothing of the server's inside is in it.

    Attributes:
        status: HTTP status code (RFC 9110, section 15).
        retry_after: seconds after which it may be tried again, or None.
    """

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        """Refuse with a status and a reason."""
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class VerificationError(ParnetDeployError):
    """Verification could not be carried out."""


def os_reason(exc: OSError) -> str:
    """What the operating system says went wrong, without the number and the path."""
    return exc.strerror or str(exc)
