"""Sections to one HTML file that needs nothing else: no script, no font, no request."""

from collections.abc import Sequence

import jinja2
from markupsafe import Markup

from raypipe.report.blocks import Section


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page.

    Args:
        title: heading of the page.
        subtitle: a line under it.
        sections: in the order they appear; every string in them is escaped.

    Returns:
        HTML5 with the style sheet, the drawings and the pictures inside.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("raypipe.report", package_path=""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    style, _, _ = environment.loader.get_source(environment, "style.css")  # type: ignore[union-attr]
    return environment.get_template("report.html.j2").render(
        title=title, subtitle=subtitle, sections=sections, style=Markup(style)
    )
