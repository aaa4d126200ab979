"""One registry per kind of component, so that a newcomer adds a method with one new file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from tf_fashion.core.errors import UsageError

T = TypeVar("T")


class Registry(Generic[T]):
    """A dictionary from names to classes or functions that explains itself when a name is unknown.

    Args:
        kind: What the entries are, in the singular ("composer"); used in error messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files the decorated object under `name`.

        Raises:
            UsageError: the name is taken.
        """

        def add(entry: T) -> T:
            if name in self._entries:
                raise UsageError(f"A {self.kind} named {name!r} is already registered: {self._entries[name]!r}.")
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> T:
        """Returns the entry called `name`.

        Raises:
            UsageError: no such entry; the message lists the known names.
        """
        try:
            return self._entries[name]
        except KeyError:
            known = ", ".join(self.names())
            raise UsageError(f"Unknown {self.kind} {name!r}. Known: {known}.") from None

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())
