"""The fields of a recipe's parts: what they may hold, and their form in JSON."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import RecipeError

Part = TypeVar("Part")
NAMES = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a string", NoneType: "null"}

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


class FieldError(RecipeError):
    """A field of a recipe has a value that it cannot have; the message names it by its path.

    Args:
        part: path of the part that has the field; empty for the recipe itself.
        name: of the field; empty for the part as a whole.
        problem: what was got, and what was expected.
        hint: what to do.
    """

    def __init__(self, part: str, name: str, problem: str, hint: str = "") -> None:
        self.part, self.name, self.problem = part, name, problem
        super().__init__(f"recipe field {'.'.join(filter(None, (part, name)))!r} {problem}", hint)


def shown(value: object) -> str:
    """A value for a message, as JSON has it, cut where it is long."""
    return "null" if value is None else _short.repr(value)


def check_types(part: Any, path: str) -> None:
    """Refuse values of another type than a dataclass's annotations ask for; those of mappings are not looked at.

    Raises:
        FieldError: the first such field.
    """
    hints = get_type_hints(type(part))
    for field in dataclasses.fields(part):
        hint, value = hints[field.name], getattr(part, field.name)
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if not any(_fits(value, option) for option in options):
            raise FieldError(path, field.name, f"must be {' or '.join(map(_told, options))}, got {shown(value)}")


def check_bounds(part: object, path: str, bounds: Mapping[str, tuple[bool, str]]) -> None:
    """Refuse values out of range: for each field, whether it is within, and the range in words.

    Raises:
        FieldError: the first such field.
    """
    for name, (holds, words) in bounds.items():
        if not holds:
            raise FieldError(path, name, f"must be {words}, got {shown(getattr(part, name))}")


def to_fields(part: Any) -> dict[str, Any]:
    """A part as a JSON object."""
    return {field.name: _plain(getattr(part, field.name)) for field in dataclasses.fields(part)}


def from_fields(default: Part, fields: object, path: str, belongs: Callable[[str], str]) -> Part:
    """The part of a JSON object; fields left out have the values of ``default``.

    Args:
        default: a part of the same kind.
        fields: the object.
        path: of the part.
        belongs: tells where a field of another part is written, as a hint, or nothing.

    Raises:
        FieldError: it is no object, has unknown fields, or one with a value that it cannot have.
    """
    if not isinstance(fields, dict):
        raise FieldError(path, "", f"must be a JSON object, got {shown(fields)}")
    known = [field.name for field in dataclasses.fields(default)]  # type: ignore[arg-type]
    for name in fields:
        if name not in known:
            raise FieldError(path, name, "is unknown", belongs(name) or f"the fields are: {', '.join(known)}")
    try:
        return dataclasses.replace(default, **fields)  # type: ignore[type-var]
    except FieldError as error:
        if error.part.startswith(path):
            raise
        raise FieldError(path, error.name, error.problem, error.hint) from None


def _fits(value: object, option: Any) -> bool:
    if get_origin(option) is Literal:
        return isinstance(value, str) and value in get_args(option)
    if option is float:
        try:
            return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
        except OverflowError:  # an integer beyond all floats
            return False
    if option in (int, bool, NoneType):
        return type(value) is option
    if get_origin(option) is tuple:
        return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    return isinstance(value, get_origin(option) or option)


def _told(option: Any) -> str:
    if get_origin(option) is Literal:
        return " or ".join(map(repr, get_args(option)))
    if get_origin(option) is tuple:
        return "a list of strings"
    return NAMES.get(option) or str(getattr(option, "__name__", option))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_fields(value)
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value
