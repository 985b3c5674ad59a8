"""OmegaConf nodes that convert a value when it is set: units such as "3h" become numbers, and `~` the home folder.

The conversion takes place while Hydra composes a configuration, so that everything that reads one sees the same values:
interpolations, the jobs of a sweep, `--cfg job`, and the hash in the name of a run's folder.
"""

from __future__ import annotations

import os
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError
from omegaconf.nodes import FloatNode, IntegerNode, StringNode, ValueNode

from common.units import parse_unit
from config import leaves


class BadQuantity(ValidationError):
    """A value that is not a quantity in the unit of its option. OmegaConf adds `full_key` and `value`."""


def first_line(error: OmegaConfBaseException) -> str:
    """The message of an error without the lines that OmegaConf adds about the place in the configuration."""
    return str(error).partition("\n")[0]


class QuantityNode(FloatNode):
    """A float option that accepts quantities in its unit."""

    unit = ""

    def _validate_and_convert_impl(self, value: Any) -> float:
        return float(super()._validate_and_convert_impl(_number(value, self.unit)))

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantityNode:
        return _copied(self, QuantityNode(), memo)


class WholeQuantityNode(IntegerNode):
    """An int option that accepts quantities in its unit, such as 1.5k or 1e9, if they are whole numbers."""

    unit = ""

    def _validate_and_convert_impl(self, value: Any) -> int:
        number = _number(value, self.unit)
        if isinstance(number, float):
            if not number.is_integer():
                raise BadQuantity("not a whole number")
            number = int(number)
        return int(super()._validate_and_convert_impl(number))

    def __deepcopy__(self, memo: dict[int, Any]) -> WholeQuantityNode:
        return _copied(self, WholeQuantityNode(), memo)


class PathNode(StringNode):
    """A path in which `~` and `~user` at the start stand for a home folder. An unknown user is left as it is."""

    def _validate_and_convert_impl(self, value: Any) -> str:
        # Not by pathlib, which also normalises a path: that would change the names of existing runs' folders.
        return os.path.expanduser(super()._validate_and_convert_impl(value))  # noqa: PTH111

    def __deepcopy__(self, memo: dict[int, Any]) -> PathNode:
        return _copied(self, PathNode(), memo)


def structured(schema: type) -> DictConfig:
    """The schema as an OmegaConf object whose options with a unit or a path have the nodes above."""
    whole = OmegaConf.structured(schema)
    for name, option, _ in leaves(schema):
        group, _, leaf = name.rpartition(".")
        parent = OmegaConf.select(whole, group) if group else whole
        node = parent._get_node(leaf)
        kinds: dict[type, type[QuantityNode | WholeQuantityNode]] = {
            FloatNode: QuantityNode,
            IntegerNode: WholeQuantityNode,
        }
        kind: Any = PathNode if option.path else kinds[type(node)] if option.unit else None
        if kind is not None:
            own = kind(node._value(), leaf, parent, node._is_optional())
            if option.unit:
                own.__dict__["unit"] = option.unit
            parent._content[leaf] = own
    return whole


def _number(value: Any, unit: str) -> Any:
    """`value`, or the number that it means if it is a string. Raises BadQuantity."""
    if not isinstance(value, str):
        return value
    try:
        return parse_unit(value, unit)
    except ValueError as error:
        raise BadQuantity(str(error)) from None


def _copied(node: ValueNode, copy: Any, memo: dict[int, Any]) -> Any:
    node._deepcopy_impl(copy, memo)
    if "unit" in node.__dict__:
        copy.__dict__["unit"] = node.__dict__["unit"]
    return copy
