"""Settings as people write, read and compare them."""

import inspect
import math
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

RENAMED = {
    "resegment_prompted": "resegment_conditioning",
    "max_prompted_slices": "max_conditioning_slices",
}
"""Last part of a setting's name in version 0.1 -> since then."""

_REFERENCE = re.compile(r"\$\{(\.*)([^\s${}:]+)\}")  # an interpolation of one other setting
_INSTRUCTIONS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")  # Hydra's own
_NOTHING = object()


def flat(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `a.b.c` -> value; what is empty is a value, too."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        values |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return values


def misfits(cfg: Any, others: Mapping[str, Any]) -> Iterator[str]:
    """One line for each setting that does not fit what the constructor or function of its `_target_` is annotated with.

    So a type is written once, where it is used. A setting that is handed on (`${...}`) is named as it was written.

    Parameters
    ----------
    cfg
        A composed config (DictConfig).
    others
        Types of settings that no `_target_` takes, by their names, in which `*` stands for any one part; those that
        `cfg` does not have do not matter.
        Numbers have to be finite.
    """
    from omegaconf import OmegaConf

    raw = OmegaConf.to_container(cfg, resolve=False)
    kinds: dict[str, Any] = {}
    for key, kind in _annotated(raw):
        kinds.setdefault(_origin(raw, key), kind)
    plain = ((str, int), (str, float), (str, str), (str, bool))  # mappings that say what their own values are
    mappings = tuple(f"{key}." for key, kind in kinds.items() if _is_mapping(kind) and typing.get_args(kind) in plain)
    for pattern, kind in others.items():
        for key in _matching(raw, pattern):
            if not key.startswith(mappings):
                kinds.setdefault(key, kind)
    refused: set[str] = set()
    for key, kind in sorted(kinds.items(), key=lambda item: bool(_inputs(raw, item[0]))):
        if refused.isdisjoint(_inputs(raw, key)):  # else it is what follows from another that does not fit
            lines = list(_refusals(key, _value(cfg, key), kind))
            refused |= {key} if lines else set()
            yield from lines


def _annotated(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key, type) of all that is given to the targets of a config."""
    if isinstance(node, list):
        for number, value in enumerate(node):
            yield from _annotated(value, f"{prefix}{number}.")
    if not isinstance(node, dict):
        return
    takes = _parameters(node["_target_"]) if isinstance(node.get("_target_"), str) else {}
    for key, value in node.items():
        if key in takes and key not in _INSTRUCTIONS:
            yield f"{prefix}{key}", takes[key]
        yield from _annotated(value, f"{prefix}{key}.")


def _origin(raw: Any, key: str) -> str:
    """Name of the setting that `key` hands on: the one that a person sets."""
    value = _select(raw, key)
    while isinstance(value, str) and (reference := _REFERENCE.fullmatch(value)):
        dots, name = reference.groups()
        parents = key.split(".")[: -len(dots)] if dots else []
        key = ".".join([*parents, name])
        value = _select(raw, key)
    return key


def _inputs(raw: Any, key: str) -> list[str]:
    """Settings that a setting is computed from."""
    value = _select(raw, key)
    found = [] if not isinstance(value, str) or _REFERENCE.fullmatch(value) else _REFERENCE.finditer(value)
    above = key.split(".")
    return [
        _origin(raw, ".".join([*(above[: -len(dots)] if dots else []), name]))
        for dots, name in (one.groups() for one in found)
    ]


def _matching(raw: Any, pattern: str) -> Iterator[str]:
    """Keys of a config that a pattern such as `sources.*.weight` stands for."""
    before, star, after = pattern.partition("*")
    if not star:
        yield pattern
        return
    parts = _select(raw, before.rstrip("."))
    yield from (f"{before}{part}{after}" for part in (parts if isinstance(parts, dict) else ()))


def _select(raw: Any, key: str) -> Any:
    for part in key.split("."):
        raw = raw[int(part)] if isinstance(raw, list) else raw.get(part) if isinstance(raw, dict) else None
    return raw


def _value(cfg: Any, key: str) -> Any:
    """Plain value of a setting; `_NOTHING` of an object, and where none is given, which is told by who needs it."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        value = OmegaConf.select(cfg, key, default=_NOTHING, throw_on_missing=True)
        if not OmegaConf.is_config(value):
            return value
        return _NOTHING if "_target_" in value else OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException:
        return _NOTHING


def _refusals(key: str, value: Any, kind: Any) -> Iterator[str]:
    """One line for each value that does not fit; of a mapping, for each of its own."""
    if _fits(value, kind):
        return
    inner = typing.get_args(kind)
    if isinstance(value, dict) and _is_mapping(kind) and inner:
        for name, one in value.items():
            yield from _refusals(f"{key}.{name}", one, inner[1])
        return
    yield f"{key}={_written(value)} does not fit; allowed: {_described(kind)}."


def _is_mapping(kind: Any) -> bool:
    collection = typing.get_origin(kind) or kind
    return isinstance(collection, type) and issubclass(collection, Mapping)


def _written(value: Any) -> str:
    """A value as it is written in a config."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@cache
def _parameters(target: str) -> dict[str, Any]:
    """Types of the arguments of a target by their names; without annotation, the type of the default."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.utils import get_object

    had_hydra = GlobalHydra.instance().is_initialized()
    try:
        called = get_object(target)
    except Exception:  # told by Hydra when it is built
        return {}
    finally:
        if not had_hydra:  # sam2 initialises Hydra when it is imported
            GlobalHydra.instance().clear()
    kinds: dict[str, Any] = {}
    # a constructor with **named hands them on to that of its base class
    for constructor in called.__mro__ if isinstance(called, type) else (called,):
        kinds = _annotations(constructor) | kinds
    return kinds


def _annotations(called: Any) -> dict[str, Any]:
    """Types of the arguments of one class or function."""
    function = inspect.unwrap(called.__init__ if isinstance(called, type) else called)  # type: ignore[misc]
    scope, kinds = getattr(function, "__globals__", {}), {}
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # compiled
        return {}
    for name, parameter in parameters.items():
        kind = parameter.annotation
        if kind is parameter.empty:
            kind = type(parameter.default) if isinstance(parameter.default, bool | int | float) else Any
        elif isinstance(kind, str):
            try:
                kind = typing.get_type_hints(type("_", (), {"__annotations__": {name: kind}}), scope)[name]
            except NameError:  # a class that is imported for type checking only
                kind = Any
        kinds[name] = kind if kind is Any or parameter.default is not None else kind | None
    return kinds


def _fits(value: Any, kind: Any) -> bool:
    if value is _NOTHING:
        return True
    if kind is Any:
        return True
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is typing.Literal:
        return any(value == one and type(value) is type(one) for one in inner)
    if kind in (None, type(None)):
        return value is None
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is str or (isinstance(kind, type) and issubclass(kind, os.PathLike)):
        return isinstance(value, str | int | float) and not isinstance(value, bool)  # a name may be a number
    collection = origin if isinstance(origin, type) else kind if isinstance(kind, type) else object
    if _is_mapping(kind):
        return isinstance(value, dict) and (not inner or all(_fits(one, inner[1]) for one in value.values()))
    if collection is tuple and inner and inner[-1] is not ...:
        pairs = isinstance(value, list) and len(value) == len(inner)
        return pairs and all(_fits(one, of) for one, of in zip(value, inner, strict=True))
    if collection is not object and issubclass(collection, typing.Iterable):
        return isinstance(value, list) and (not inner or all(_fits(one, inner[0]) for one in value))
    if collection is object:
        return True
    return not isinstance(value, bool | int | float | str | None)  # an object is built from settings of its own


def _described(kind: Any) -> str:
    """A type in the words of someone who uses the program."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        choices = [one for one in inner if typing.get_origin(one) is typing.Literal]
        parts = [_described(one) for one in inner if one not in choices]
        if choices:  # several lists of them are one
            parts.insert(0, _described(typing.Literal[tuple(choices)]))
        return " or ".join(dict.fromkeys(parts))
    if origin is typing.Literal:
        return ", ".join(dict.fromkeys(map(str, inner)))
    words = {bool: "true or false", int: "whole numbers", float: "numbers", str: "text", type(None): "null"}
    if kind in words:
        return words[kind]
    if isinstance(kind, type) and issubclass(kind, os.PathLike):
        return "a path"
    collection = origin or kind
    if _is_mapping(kind):
        return "{NAME: VALUE}" + (f" with {_described(inner[1])}" if inner else "")
    if collection is tuple and inner and inner[-1] is not ...:
        return "[" + ", ".join(_described(one) for one in inner) + "]"
    if isinstance(collection, type) and issubclass(collection, typing.Iterable):
        return "a list" + (f" of {_described(inner[0])}" if inner else "")
    return "what configs/ says of it"
