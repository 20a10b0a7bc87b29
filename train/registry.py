"""What a name may mean: networks, methods, data sets; with room for those of plugins (train/plugins.py)."""

import re
from collections.abc import Mapping
from typing import TypeVar

from train.errors import OWN, unknown


Entry = TypeVar("Entry")
NAME = re.compile(r"[A-Za-z0-9_]+")
"""Names become parts of folders, bundles and addresses."""


class Registry(dict[str, Entry]):
    """Entries by name, to which more can be added, each once: nothing is replaced under a name that is in use."""

    def __init__(self, kind: str, entries: Mapping[str, Entry], *, of: type | None = None) -> None:
        """`kind`: what messages call an entry. `of`: its class; None: a function of its settings."""
        super().__init__(entries)
        self.kind, self._of = kind, of

    def __setitem__(self, name: str, entry: Entry) -> None:
        """Add an entry. Raises ValueError for a name that is taken or more than letters, digits and underscores, and
        for an entry that is no such thing or calls itself otherwise."""
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(f"{self.kind} {name!r}: a name is letters, digits and underscores")
        if name in self:
            raise ValueError(f"{self.kind} {name!r} is there already; give yours a name of its own")
        if self._of is None and not callable(entry):
            raise ValueError(f"{self.kind} {name!r} must be a function of its settings, got {entry!r}")
        if self._of is not None and not isinstance(entry, self._of):
            raise ValueError(f"{self.kind} {name!r} must be an object of a {self._of.__name__}, got {entry!r}")
        if getattr(entry, "name", name) != name:
            raise ValueError(f"{self.kind} {name!r} calls itself {entry.name!r}")  # type: ignore[attr-defined]
        super().__setitem__(name, entry)

    def find(self, name: str) -> Entry:
        """The entry of this name; ValueError, with the nearest names, for one that is not known."""
        if name not in self:
            raise unknown(self.kind, name, self, more=OWN)
        return self[name]
