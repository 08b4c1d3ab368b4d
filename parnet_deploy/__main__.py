"""``python -m parnet_deploy`` and ``parnet-deploy``: the command line."""

import os
import sys


def main() -> int:
    """Run the command line; an interrupt while it is being loaded ends it like any other."""
    try:
        _open_standard_streams()
        from parnet_deploy.cli.main import run

        return run()
    except KeyboardInterrupt:
        print("interrupted; nothing was left half-written", file=sys.stderr)
        return 130  # 128 + SIGINT, as shells have it


def _open_standard_streams() -> None:
    """Let what a supervisor has closed lead nowhere.

    Otherwise the next file or socket that is opened would be standard output, and get what is
    printed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w"))


if __name__ == "__main__":
    sys.exit(main())
