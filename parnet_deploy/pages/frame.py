"""A page that needs nothing else: its styles are in it, and what is put into it is escaped."""

from __future__ import annotations

from importlib import resources

import jinja2

FRAME, SHEET = "frame.html.j2", "sheet.html.j2"


def render(template: str, **values: object) -> str:
    """A page of HTML.

    Args:
        template: a jinja2 template that extends ``frame.html.j2`` and fills its blocks ``title``,
            ``style`` and ``body``. The macro ``sheet`` of ``sheet.html.j2`` draws a `Sheet`.
        values: what it refers to. Texts are escaped unless they are `markupsafe.Markup`.
    """
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({name: _read(name) for name in (FRAME, SHEET)}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.from_string(template).render(values)


def _read(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
