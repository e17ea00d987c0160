"""Methods and functions of frameworks that ours are called in the place of, where their own hooks miss something.

What ours do is the business of each framework's module.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

Ours = Callable[..., Any]
"""Called with what it stands in for, then with what that one was called with; gives what it gives."""


class Patches:
    """What one module has put in the place of theirs, so that all of it can be taken back at once."""

    def __init__(self) -> None:
        self._patches: list[_Patch] = []

    def put(self, owner: type | ModuleType, name: str, ours: Ours) -> None:
        """Have `ours` called in the place of a method, or of a function that `owner`, a module, calls by that name.

        A method is replaced where it is defined: in `owner` or a class that it is made of.
        """
        places = owner.__mro__ if isinstance(owner, type) else (owner,)
        self._patches.append(_Patch(next(place for place in places if name in vars(place)), name, ours))

    def take_back(self) -> None:
        """Put back what was there. Where somebody has wrapped ours since, theirs stays, and ours does nothing."""
        while self._patches:
            self._patches.pop().take_back()


class _Patch:
    def __init__(self, owner: type | ModuleType, name: str, ours: Ours) -> None:
        self._owner = owner
        self._name = name
        self._theirs = vars(owner)[name]
        self._active = True
        function = self._theirs.__func__ if isinstance(self._theirs, classmethod) else self._theirs

        @wraps(function)
        def method(*args: Any, **kwargs: Any) -> Any:
            return ours(function, *args, **kwargs) if self._active else function(*args, **kwargs)

        self._put: Any = classmethod(method) if isinstance(self._theirs, classmethod) else method
        setattr(owner, name, self._put)

    def take_back(self) -> None:
        self._active = False
        if vars(self._owner).get(self._name) is self._put:
            setattr(self._owner, self._name, self._theirs)
