"""The templates, how numbers look on a page, and what a page's browser lets it do."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from analysis.statistics import Estimate, Rate, percent
from workers.budgets import in_levels

__all__ = ["data_table", "embedded", "render_page", "script", "templates"]


def templates() -> Environment:
    """The pages' templates; what is put into them is escaped."""
    environment = Environment(
        loader=PackageLoader("analysis.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "interval": _interval,
        "number": _number,
        "levels": _levels,
        "unbroken": _unbroken,
    }
    return environment


def render_page(environment: Environment, template: str, *, scripts: Sequence[str] = (), **context: Any) -> str:
    """Renders a page that runs the scripts given and nothing else.

    Args:
        environment: of `templates`.
        template: one that extends ``base.html.j2``.
        scripts: JavaScript, run in this order once the page is read. The page's policy names each by its hash.
        context: what the template needs.
    """
    scripts = [_embeddable(text) for text in scripts]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    policy = "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src 'unsafe-inline'"
    if scripts:
        policy += "; script-src " + " ".join(f"'sha256-{digest}'" for digest in hashes)
    shown = [Markup(text) for text in scripts]  # noqa: S704  ours and a pinned library's, embeddable
    return environment.get_template(template).render(policy=Markup(policy), scripts=shown, **context)  # noqa: S704


def script(name: str) -> str:
    """One of the templates' scripts."""
    return resources.files("analysis.page").joinpath("templates", name).read_text("utf-8")


def data_table() -> str:
    """DataTables as a script that sets ``window.DataTable``: the module that itables brings, with its export undone.

    Raises:
        RuntimeError: when itables has another form.
    """
    module = resources.files("itables").joinpath("html", "dt_bundle.js").read_text("utf-8")
    exports = re.findall(r"\bexport\s*\{([^{}]*)\};?", module)
    name = re.search(r"(?:^|,)\s*([\w$]+) as default\b", exports[0]) if len(exports) == 1 else None
    if not name:
        raise RuntimeError("itables: html/dt_bundle.js is not one module with one export")
    body = re.sub(r"\bexport\s*\{[^{}]*\};?", "", module)
    return f'(() => {{\n"use strict";\n{body}\nwindow.DataTable = {name[1]};\n}})();'


def embedded(value: Any) -> Markup:
    """A value as JSON for ``<script type="application/json">``."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704  no tag can begin in it


def _embeddable(text: str) -> str:
    """A script that does not end, or change, the element that it stands in."""
    return re.sub(r"<(?=!--|/?script)", r"\\x3c", text.replace("\r\n", "\n"), flags=re.IGNORECASE)


def _unbroken(text: str) -> Markup:
    """Text whose flags do not break at their hyphens."""
    return Markup(re.sub(r"(--[\w-]+)", r'<span class="flag">\1</span>', str(escape(text))))  # noqa: S704


def _interval(found: Rate | Estimate) -> str:
    if found.interval is None:
        return "–"
    return f"{percent(found.interval[0])} to {percent(found.interval[1])}"


def _levels(distance: float | None) -> str:
    return "–" if distance is None else in_levels(distance)


def _number(value: float | None, digits: int = 2) -> str:
    if value is None:
        return "–"
    shown = f"{value:.{digits}f}"
    return f"{value:.2g}" if value and not float(shown) else shown
