"""``python -m parnet_deploy``: the command line."""

import sys

from parnet_deploy.cli.main import run

sys.exit(run())
