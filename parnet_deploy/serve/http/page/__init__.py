"""The page at ``/``: drop an image, see its labels, where the time went, and the streams' overlap.

``page.html``, ``page.css`` and ``page.js`` stand beside this file and are put together once, when a
server starts. The page loads nothing: it works without internet, and behind a path prefix.
"""

from __future__ import annotations

import base64
import hashlib
import html
from dataclasses import dataclass
from importlib import resources
from string import Template

from parnet_deploy.serve.signature import Signature

CONTENT_TYPE = "text/html; charset=utf-8"

TOP = 5
"""How many labels a classification gives, unless told otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """A page that needs nothing else.

    Attributes:
        body: HTML in UTF-8.
        policy: what its header ``Content-Security-Policy`` has to say: the page's own script and
            style are known by their hashes, it talks to its own server only, and nothing but the
            script's own calls makes elements of it (https://www.w3.org/TR/CSP3/).
    """

    body: bytes
    policy: str


def page(signature: Signature) -> Page:
    """The page of a served model, the same bytes for the same model.

    Args:
        signature: whose name, classes, image size, backend and precision it states.
    """
    style, script = _read("page.css"), _read("page.js")
    text = Template(_read("page.html")).substitute(
        name=html.escape(signature.name),
        facts=html.escape(_facts(signature)),
        top=min(TOP, len(signature.labels)),
        style=style,
        script=script,
    )
    return Page(body=text.encode(), policy=_policy(style, script))


def _facts(signature: Signature) -> str:
    height, width = signature.preprocessing.size
    classes = f"{len(signature.labels):,} classes"
    return f"{classes}, images of {width}x{height} · {signature.backend}, {signature.precision}"


def _policy(style: str, script: str) -> str:
    allowed = {
        "default-src": "'none'",
        "script-src": _source(script),
        "style-src": _source(style),
        "img-src": "blob: data:",  # the image that was chosen, and the icon
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        # Browsers that know of them refuse to make elements or scripts of a text.
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return "; ".join(f"{directive} {source}" for directive, source in allowed.items())


def _source(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _read(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
