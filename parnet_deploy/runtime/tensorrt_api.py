"""The TensorRT module as a value: ``tensorrt`` and ``tensorrt_rtx`` have one API.

Whatever builds or runs plans takes the module that `load_api` gives, or a double of it. Polygraphy
offers the same choice, but once per process, through an environment variable that it reads when it
is imported, and it prints what the parser and the builder complain of instead of handing it over.
So plans are built and run with the modules' own API, in ``engine.tensorrt`` and
``runtime.tensorrt``; a test builds a plan with Polygraphy's loaders and compares.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any, Literal

from parnet_deploy.errors import MissingDependencyError
from parnet_deploy.spec.targets import NAMES

TensorRTBackend = Literal["tensorrt", "tensorrt-rtx"]

_MODULES: dict[TensorRTBackend, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_EXTRAS: dict[TensorRTBackend, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}

_KEPT_ERRORS = 4
"""How many of the newest error messages an exception quotes."""

_MESSAGES = logging.getLogger("parnet_deploy.tensorrt")


def load_api(backend: TensorRTBackend) -> Any:
    """Import the module of a TensorRT flavour.

    Raises:
        MissingDependencyError: it is not installed, or its libraries do not load.
    """
    module = _MODULES[backend]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name != module:
            raise MissingDependencyError(_broken(backend, exc)) from exc
        raise MissingDependencyError(
            f"{NAMES[backend]} is not installed (there is no module '{module}'); "
            f"install parnet-deploy[{_EXTRAS[backend]}]"
        ) from exc
    except (ImportError, OSError) as exc:
        raise MissingDependencyError(_broken(backend, exc)) from exc


def _broken(backend: TensorRTBackend, exc: Exception) -> str:
    return (
        f"{NAMES[backend]} is installed but does not load: {exc}; "
        f"install parnet-deploy[{_EXTRAS[backend]}] again"
    )


def message_log(api: Any) -> Any:
    """A logger for the module's builders, parsers and runtimes that keeps their errors.

    Nothing is printed. Every message goes to the Python logger ``parnet_deploy.tensorrt`` at level
    DEBUG. The logger must live as long as what was made with it.

    Args:
        api: what `load_api` gives.

    Returns:
        An ``ILogger`` with `errors`, a list of messages, and `last_errors()`, one line.
    """

    class MessageLog(api.ILogger):  # type: ignore[misc]
        """Keeps errors. TensorRT calls `log` from any thread and does not expect it to raise."""

        def __init__(self) -> None:
            api.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            """Take a message."""
            _MESSAGES.debug("%s: %s", severity.name, message)
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                self.errors.append(message.strip())

        def last_errors(self) -> str:
            """The newest errors as one line, each once."""
            kept = list(dict.fromkeys(self.errors))[-_KEPT_ERRORS:]
            return "; ".join(" ".join(text.split()) for text in kept) or "it gave no reason"

    return MessageLog()
