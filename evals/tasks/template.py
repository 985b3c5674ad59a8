"""Templates: a text with {field} where the field of an item goes; {{ and }} stand for braces.

A field is only a name, without formats, attributes or expressions, so a template can only reach the fields that it is given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from common.errors import UserError
from common.paths import user_path
from common.safe_read import read_bytes
from common.typed import FROM_FILE, closest, unescaped
from evals.tasks.task import TaskOptions

LARGEST_FILE = 1 << 20  # bytes of a file with a template
PART = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")  # a brace, a field, or a brace that should not be there
BRACES = {"{{": "{", "}}": "}"}


def load_template(text: str, option: str) -> str:
    r"""Return the template that `text`, the value of `option`, stands for.

    It is FILE:PATH, a file in UTF-8 whose last line end does not count, or the template itself with \n, \t and \\ for line end,
    tab and backslash. Raises UserError for a file that cannot be read, an empty template, and a brace that is not part of a
    field.
    """
    if text.startswith(FROM_FILE):
        template, place = _read(text.removeprefix(FROM_FILE), option), f"{option}={text}"
    else:
        template, place = unescaped(text), option
    if not template:
        raise UserError(f"{place} is empty; write a text with fields, e.g. {{text}}")
    for found in PART.finditer(template):
        if found[0] in "{}":
            raise UserError(
                f"{place}: {found[0]} at character {found.start() + 1} is not part of a {{field}}; write"
                f" {found[0] * 2} for a brace"
            )
    return template


def template_of(options: TaskOptions) -> str | None:
    """Return the template of task.template, see `load_template`; None without one."""
    return None if options.template is None else load_template(options.template, "task.template")


def fields_of(template: str) -> set[str]:
    """Return the names of the fields in a template."""
    return {found[1] for found in PART.finditer(template) if found[1]}


def split_at(template: str, field: str) -> list[str]:
    """Return the parts of a template between the places where `field` is; one part if it is nowhere."""
    begin, parts = 0, []
    for found in PART.finditer(template):
        if found[1] == field:
            parts.append(template[begin : found.start()])
            begin = found.end()
    return [*parts, template[begin:]]


def render(template: str, fields: Mapping[str, str]) -> str:
    """Return the text of a template. Raises UserError for a field that is not in `fields`.

    Fields are put in once: braces in the text of a field stay as they are.
    """

    def text_of(found: re.Match[str]) -> str:
        name = found[1]
        if name is None:
            return BRACES[found[0]]
        if name not in fields:
            raise UserError(
                f"task.template: {found[0]} is not a field; allowed:"
                f" {', '.join(f'{{{each}}}' for each in fields)}{closest(name, fields)}; write {{{{ and }}}} for braces"
            )
        return fields[name]

    return PART.sub(text_of, template)


def _read(name: str, option: str) -> str:
    path = user_path(name)
    try:
        return read_bytes(path, LARGEST_FILE).decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{option}=FILE:{path} cannot be read: {reason}; give a text file in UTF-8") from None
