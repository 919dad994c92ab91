"""A bounded memory of what was done already, so that it need not be done again."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Final

MOST: Final = 20_000


class Recent:
    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._known: OrderedDict[Hashable, None] = OrderedDict()

    def __contains__(self, one: Hashable) -> bool:
        return one in self._known

    def add(self, more: Iterable[Hashable]) -> None:
        """Remember these; the oldest are forgotten."""
        for one in more:
            self._known[one] = None
        while len(self._known) > self._most:
            self._known.popitem(last=False)
