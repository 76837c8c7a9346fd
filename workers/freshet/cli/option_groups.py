"""Options of a verb in groups: a frozen dataclass each, whose fields the command line offers as options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """Make a verb for typer out of a verb whose parameters are option groups.

    A parameter of a dataclass becomes an option for each field, with the field's annotation and default. The verb is
    called with the dataclasses again. The names of all fields and of all other parameters must differ.
    """
    groups: dict[str, Any] = {}
    options: list[inspect.Parameter] = []
    for parameter in inspect.signature(verb, eval_str=True).parameters.values():
        group = parameter.annotation
        if not is_dataclass(group):
            options.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = group
        annotations = get_type_hints(group, include_extras=True)
        for field in fields(group):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            options.append(
                inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotations[field.name]
                )
            )

    def command(**given: Any) -> None:
        made = {
            name: group(**{field.name: given.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        verb(**made, **given)

    command.__doc__ = verb.__doc__
    command.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    return command
