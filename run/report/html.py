"""Renders the HTML templates in templates/. A page is one file, without external scripts, fonts or images."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """Render `template` with `values`. Every value is escaped unless the template marks it as safe."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt name is an error instead of an empty string
        auto_reload=False,  # a run uses the templates that it loaded at its start, even if the files change meanwhile
        trim_blocks=True,
        lstrip_blocks=True,
    )
