"""Python objects in place of members of a group.

The object stays in this process; the configuration has a node that identifies it:

    {_target_: mtl.run.objects.given, name: trunk, kind: MyTrunk, code: 1f0c..., values: 9a41...}

`code` is a digest of the bytecode of the object's class or function, `values` of its parameters, tensors and settings. A run is resumed
with an object whose digests are the same. Formatting and comments change neither; nor do changes of helper functions that the object calls.
Another version of Python gives another `code`.
"""

import copy
import functools
import hashlib
import inspect
import sys
import types
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from mtl.run.adapters import adapt

TARGET = "mtl.run.objects.given"
# Code of these enters the digest by its name alone: another version of a library is the same object.
LIBRARIES = {*sys.stdlib_module_names, "torch", "torchvision", "numpy", "PIL", "mtl"}
_OBJECTS: dict[tuple[str, str, str, str], Any] = {}


def give(name: str, value: Any) -> dict[str, str]:
    """Register an object for a group; modules are copied as they are now.

    Args:
        name: the group.
        value: the object.

    Returns:
        The node that represents it in a configuration.

    Raises:
        ValueError: the group takes no such object.
    """
    kind = _kind(value)
    code, values = digests(value)
    _OBJECTS[name, kind, code, values] = adapt(name, copy.deepcopy(value) if isinstance(value, nn.Module) else value)
    return {"_target_": TARGET, "name": name, "kind": kind, "code": code, "values": values}


def given(name: str, kind: str, code: str, values: str) -> Any:
    """Return the object of a node; raises ValueError where this process does not have it. Arguments as in the node."""
    key = name, kind, code, values
    if key not in _OBJECTS:
        raise ValueError(
            f"{name} of this run is an object of a Python program, {kind}, which is not saved in a run directory: a command cannot read "
            f"the run. A program can, after mtl.run.objects.give({name!r}, value) with the same {kind}"
        )
    return _OBJECTS[key]


def require(config: DictConfig, *groups: str) -> None:
    """Raise ValueError where one of the groups is an object that this process does not have."""
    for group in groups:
        node: dict[str, Any] = OmegaConf.to_container(config[group])  # type: ignore[assignment]
        if node.pop("_target_", None) == TARGET:
            given(**node)


def given_names(config: DictConfig) -> list[str]:
    """Return the groups of a configuration that are objects."""
    nodes = {str(group): OmegaConf.select(config, str(group), throw_on_missing=False) for group in config}
    return [group for group, node in nodes.items() if isinstance(node, DictConfig) and node.get("_target_") == TARGET]


def digests(value: Any) -> tuple[str, str]:
    """Return the digests of an object's code and of its values, in hexadecimal."""
    digest = _Digest()
    digest.add(value)
    return digest.code.hexdigest(), digest.values.hexdigest()


class _Digest:
    """Walks through an object: code into one digest, values into the other."""

    def __init__(self) -> None:
        self.code, self.values = (hashlib.blake2b(digest_size=16) for _ in range(2))
        self._above: set[int] = set()

    def add(self, value: Any) -> None:
        """Add a value, preceded by its type, so that different values never give the same bytes."""
        if id(value) in self._above:
            self._value("circle")
            return
        self._above.add(id(value))
        if not self._add_data(value):
            self._add_code(value)
        self._above.discard(id(value))

    def _add_data(self, value: Any) -> bool:
        """Add plain values and containers; returns whether `value` is one."""
        match value:
            case None | bool() | int() | float() | complex() | str() | bytes():
                self._value(type(value).__name__, repr(value))
            case Tensor():
                flat = value.detach().cpu().contiguous().flatten()
                self._value("tensor", str(value.dtype), str(tuple(value.shape)))
                self.values.update(flat.view(torch.uint8).numpy().data)
            case np.ndarray():
                self._value("array", str(value.dtype), str(value.shape))
                self.values.update(np.ascontiguousarray(value).view(np.uint8).data)
            case Mapping():
                self._value("mapping", str(len(value)))
                for key in sorted(value, key=repr):
                    self.add(key)
                    self.add(value[key])
            case list() | tuple():
                self._value("sequence", str(len(value)))
                for part in value:
                    self.add(part)
            case Set():
                self._value("set", *sorted(map(repr, value)))
            case torch.Generator():
                self.add(value.get_state())
            case _:
                return False
        return True

    def _add_code(self, value: Any) -> None:
        """Add functions, classes and other objects, by their code and their attributes."""
        match value:
            case functools.partial():
                self.add([value.func, value.args, value.keywords])
            case types.FunctionType():
                self._function(value)
            case types.BuiltinFunctionType():
                self.code.update(f"{value.__module__}.{value.__qualname__}".encode() + b"\0")
            case types.MethodType():
                self.add([value.__func__, value.__self__])
            case staticmethod() | classmethod():
                self.add(value.__func__)
            case property():
                self.add([value.fget, value.fset])
            case type():
                self._class(value)
            case _:
                self._class(type(value))
                attributes = getattr(value, "__dict__", None)
                if attributes is not None:
                    self.add(attributes)
                elif (shown := repr(value)) and " at 0x" not in shown:
                    self._value("repr", shown)

    def _value(self, *words: str) -> None:
        for word in words:
            self.values.update(word.encode() + b"\0")

    def _function(self, function: types.FunctionType) -> None:
        self._name(function)
        if _is_library(function):
            return
        self._bytecode(function.__code__)
        self.add([function.__defaults__, function.__kwdefaults__])
        self.add([cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)])

    def _class(self, kind: type) -> None:
        for part in kind.__mro__:
            self._name(part)
            if _is_library(part):
                continue
            for name, member in sorted(vars(part).items()):
                does = isinstance(member, types.FunctionType | staticmethod | classmethod | property)
                if (does or not name.startswith("_")) and not name.startswith("__annotate"):
                    self.code.update(name.encode() + b"\0")
                    self.add(member)

    def _name(self, value: Any) -> None:
        module = f"{value.__module__}." if _is_library(value) else ""  # the user's own file may be imported or run
        self.code.update(f"{module}{value.__qualname__}".encode() + b"\0")

    def _bytecode(self, code: types.CodeType) -> None:
        self.code.update(code.co_code + b"\0" + " ".join((*code.co_names, *code.co_freevars)).encode() + b"\0")
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._bytecode(constant)
            else:  # the order of a set of words differs from process to process
                shown = repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)
                self.code.update(shown.encode() + b"\0")


def _kind(value: Any) -> str:
    kind = value if isinstance(value, type) or inspect.isroutine(value) else type(value)
    return str(kind.__qualname__)


def _is_library(value: Any) -> bool:
    return str(getattr(value, "__module__", None) or "").partition(".")[0] in LIBRARIES


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a name that is not bound yet
        return False
