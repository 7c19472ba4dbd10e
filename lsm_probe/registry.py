"""Registries of named objects: those of this package, and those that other packages add through entry points."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """Objects of one kind by name, built-in ones first.

    Entry points are read when a name that is not built in is looked up, or when all names are listed. An entry point
    that cannot be used is left out with a warning, so another package cannot break a command that does not need it.

    Args:
        group: entry-point group. The name of an entry point is the name of the object, and its value is the object's
            location (`package.module:attribute`).
        kind: what kind of object it is, for warnings.
        accepts: whether an object is of this kind and may have this name.

    Example:
        >>> greetings = Registry("my_package.greetings", "greeting", lambda name, found: callable(found))
        >>> @greetings.register("hello")
        ... def hello(name: str) -> str:
        ...     return f"Hello, {name}"
        >>> greetings["hello"]("Ada")
        'Hello, Ada'
    """

    def __init__(self, group: str, kind: str, accepts: Callable[[str, Any], bool]):
        self.group, self.kind, self.accepts = group, kind, accepts
        self._registered: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers an object under a name; raises ValueError if the name is taken."""

        def add(found: T) -> T:
            if name in self._registered:
                raise ValueError(f"the {self.kind} {name!r} is registered already: choose another name")
            self._registered[name] = found
            return found

        return add

    @property
    def built_in(self) -> Mapping[str, T]:
        """The objects of this package, without reading entry points."""
        return self._registered

    def __getitem__(self, name: str) -> T:
        return self._registered[name] if name in self._registered else self._from_entry_points[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._registered
        yield from (name for name in self._from_entry_points if name not in self._registered)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @cached_property
    def _from_entry_points(self) -> dict[str, T]:
        found: dict[str, T] = {}
        for entry_point in sorted(entry_points(group=self.group), key=lambda e: (e.name, e.value)):
            if entry_point.name in {*self._registered, *found}:
                self._leave_out(entry_point, "its name is taken")
                continue
            try:
                loaded = entry_point.load()
            except Exception as error:  # whatever the other package's code raises
                self._leave_out(entry_point, f"it cannot be imported ({type(error).__name__}: {error})")
                continue
            if self.accepts(entry_point.name, loaded):
                found[entry_point.name] = loaded
            else:
                self._leave_out(entry_point, f"it is not a {self.kind} of this name")
        return found

    def _leave_out(self, entry_point: EntryPoint, reason: str) -> None:
        package = entry_point.dist.name if entry_point.dist else "an installed package"
        message = f"the {self.kind} {entry_point.name!r} ({entry_point.value}) of {package} is left out: {reason}"
        warnings.warn(" ".join(message.split()), stacklevel=2)
