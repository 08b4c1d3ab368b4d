"""The report as one page that needs nothing else: styles, picture and figures are in it."""

from __future__ import annotations

from importlib import resources

from markupsafe import Markup

from parnet_deploy.pages import frame
from parnet_deploy.quantise import plots, wording
from parnet_deploy.quantise.result import QuantisationReport

TEMPLATE = "page.html.j2"


def render(report: QuantisationReport) -> str:
    """A report as HTML.

    Args:
        report: what was found.
    """
    template = (resources.files(__package__) / TEMPLATE).read_text(encoding="utf-8")
    return frame.render(
        template,
        r=report,
        headline=wording.headline(report),
        sentences=wording.sentences(report),
        words=wording,
        blamed={each.block for each in report.blamed},
        picture=Markup(plots.layers(report)),  # noqa: S704 - made by matplotlib here
    )
