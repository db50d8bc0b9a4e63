"""A dict of what was used last: what strangers bring may be remembered, and takes a bounded room."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class UsedLast(OrderedDict[Key, Value]):
    """Keeps the `most` entries that were written or read last."""

    def __init__(self, most: int):
        super().__init__()
        self._most = most

    def __getitem__(self, key: Key) -> Value:
        value = super().__getitem__(key)
        self.move_to_end(key)
        return value

    def __setitem__(self, key: Key, value: Value) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > self._most:
            del self[next(iter(self))]
