"""The result as one page that needs nothing else: styles, plots and figures are in it."""

from __future__ import annotations

from importlib import resources

from markupsafe import Markup

from parnet_deploy.pages import frame
from parnet_deploy.spec import layout
from parnet_deploy.verify import plots, wording
from parnet_deploy.verify.judge import block_limit
from parnet_deploy.verify.result import Verification
from parnet_deploy.verify.tolerances import RUNGS

TEMPLATE = "page.html.j2"


def built_columns(verification: Verification) -> list[str]:
    """The rungs that tell what their layers compute in, in the ladder's order."""
    told = {rung for row in verification.types for rung in row.built}
    return [rung for rung in RUNGS if rung in told]


def render(verification: Verification) -> str:
    """A verification as HTML.

    Args:
        verification: what was found.
    """
    template = (resources.files(__package__) / TEMPLATE).read_text(encoding="utf-8")
    blocks = [block.name for block in layout(verification.spec)]
    return frame.render(
        template,
        v=verification,
        headline=wording.headline(verification),
        summary=wording.summary(verification),
        lines={rung.name: wording.lines(rung) for rung in verification.rungs},
        relative=wording.RELATIVE,
        agreement=wording.agreement,
        steps=wording.steps,
        probes=wording.probes(verification),
        columns=built_columns(verification),
        figure=wording.figure,
        block_limit=block_limit,
        rung_plot=Markup(plots.rung_errors(verification)),  # noqa: S704 - made by matplotlib here
        block_plot=Markup(plots.block_errors(verification, blocks)),  # noqa: S704 - likewise
    )
