"""Checks every option of a configuration against the signature of what it builds, before anything is built.

Hydra only checks plain types. Here unknown names are refused too, a list where a word is expected, and a list of words where numbers are.
A number is accepted where a word is expected: `subtasks.classes=[1,2]` names two classes.
"""

import difflib
import inspect
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

META = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", type(None): "null"}
MANY = {int: "whole numbers", float: "numbers", str: "words", bool: "true or false"}


def check_options(config: DictConfig) -> None:
    """Check all options, and convert numbers to words in place where words are expected.

    Raises:
        ValueError: an option is unknown, missing or of a wrong type.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    for path, value in _corrections(plain, ""):
        parent, _, name = path.rpartition(".")
        OmegaConf.select(config, parent)[name] = value


def accepts(target: str, name: str, value: Any) -> bool:
    """Whether what `target` builds has the option `name` and takes the type of `value`; a reference to another option is of any type."""
    hints = _parameters(target)
    if hints is None or name not in hints:
        return hints is None
    try:
        convert(value, Any if "${" in str(value) else hints[name], name)
    except ValueError:
        return False
    return True


def require_option(target: str, group: str, name: str) -> None:
    """Raise ValueError where what `target` builds has no option `name`."""
    hints = _parameters(target)
    if hints is not None and name not in hints:
        raise ValueError(f"unknown option {group}.{name}{nearest(name, hints)}; {group} has {', '.join(hints)}")


def nearest(name: str, names: Iterable[str]) -> str:
    """Return `; did you mean ...?` with the most similar name, or nothing where none is similar."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _corrections(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The paths below `value` whose value must be replaced, with the new value."""
    if isinstance(value, Mapping):
        hints = _parameters(value["_target_"]) if "_target_" in value else {}
        for key, part in value.items():
            place = f"{path}.{key}" if path else str(key)
            if "_target_" in value and key not in META:
                require_option(value["_target_"], path, str(key))
                if hints is not None:
                    changed = convert(part, hints[key], place)
                    if changed != part:
                        yield place, changed
            yield from _corrections(part, place)
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _corrections(part, f"{path}[{number}]")
    elif value == "???":
        raise ValueError(f"{path} must be given")


def _parameters(path: str) -> dict[str, Any] | None:
    """The parameters of a target with their types; None where it takes any."""
    target = get_object(path)
    parameters = inspect.signature(target).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    return {name: hints.get(name, Any) for name in parameters}


def convert(value: Any, hint: Any, path: str) -> Any:
    """Return `value` as the type `hint`, with numbers converted to words where words are expected.

    Args:
        value: plain nested values.
        hint: a type hint.
        path: the option, for the error.

    Raises:
        ValueError: the value is not of the type.
    """
    if hint is Any or (isinstance(value, Mapping) and "_target_" in value) or value == "???":
        return value
    for alternative in _alternatives(hint):
        result = _as(value, alternative, path)
        if result is not _WRONG:
            return result
    raise ValueError(f"{path} must be {type_in_words(hint)}, got {_shown(value)}")


_WRONG = object()


def _as(value: Any, hint: Any, path: str) -> Any:
    """`value` as a `hint`, or `_WRONG`; raises ValueError with its path for a wrong part of a list or a mapping."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in KINDS:
        return _as_plain(value, hint)
    if origin is Literal:
        return value if value in arguments else _WRONG
    if isinstance(origin, type) and issubclass(origin, Sequence):
        if not isinstance(value, list):
            return _WRONG
        fixed = origin is tuple and arguments[-1] is not Ellipsis
        if fixed and len(value) != len(arguments):
            return _WRONG
        kinds = arguments if fixed else [arguments[0]] * len(value)
        return [convert(part, kind, f"{path}[{place}]") for place, (part, kind) in enumerate(zip(value, kinds, strict=True))]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            return _WRONG
        return {str(key): convert(part, arguments[1], f"{path}.{key}") for key, part in value.items()}
    # Objects of other kinds are built by other options.
    return value if isinstance(hint, type) and value is not None else _WRONG


def _as_plain(value: Any, kind: type) -> Any:
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, bool) and kind is not bool:
        return _WRONG
    if kind is float and isinstance(value, int):
        return value
    return value if isinstance(value, kind) else _WRONG


def _alternatives(hint: Any) -> Sequence[Any]:
    """The members of a union; str comes last, as it takes numbers too."""
    if get_origin(hint) in (Union, types.UnionType):
        return sorted(get_args(hint), key=lambda kind: kind is str)
    return (hint,)


def type_in_words(hint: Any) -> str:
    """Return a type in words, such as `a list of numbers`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(type_in_words(part) for part in arguments)
    if hint in KINDS:
        return KINDS[hint]
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping {NAME: VALUE}" if arguments[1] is Any else f"a mapping {{NAME: {type_in_words(arguments[1])}}}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        if origin is tuple and arguments[-1] is not Ellipsis:
            return f"a list of {len(arguments)} {MANY.get(arguments[0], type_in_words(arguments[0]))}"
        return f"a list of {_many(arguments[0])}"
    return str(getattr(hint, "__name__", hint))


def _many(hint: Any) -> str:
    """Several of a type, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_many(part) for part in arguments)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"lists of {_many(arguments[0])}"
    return MANY.get(hint, type_in_words(hint))


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
