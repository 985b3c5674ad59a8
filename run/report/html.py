"""HTML pages from the templates in templates/. A page is one file: no script, font or picture from elsewhere."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """Return the page that `template` makes of `values`. Every value is escaped, unless the template marks it safe."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt name is an error, not an empty place on the page
        auto_reload=False,  # a long run ends with the templates that it loaded when it rehearsed its end
        trim_blocks=True,
        lstrip_blocks=True,
    )
