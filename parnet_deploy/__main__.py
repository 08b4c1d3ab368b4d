"""``python -m parnet_deploy`` and ``parnet-deploy``: the command line."""

import sys


def main() -> int:
    """Run the command line; an interrupt while it is being loaded ends it like any other."""
    try:
        from parnet_deploy.cli.main import run

        return run()
    except KeyboardInterrupt:
        print("interrupted; nothing was left half-written", file=sys.stderr)
        return 130  # 128 + SIGINT, as shells have it


if __name__ == "__main__":
    sys.exit(main())
