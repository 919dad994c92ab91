"""Canaries: words that occur nowhere else, put into every field of a request that can hold one, by its model."""

import re
import secrets
import types
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin
from uuid import UUID, uuid4

from pydantic import BaseModel

MARK: Final = "c4n4ry"
_WORD: Final = re.compile(MARK + r"\d+x[0-9a-f]{8}", re.IGNORECASE)
NOTHING: Final = object()
Given = Mapping[tuple[str, str], Callable[[], Any] | Any]


@dataclass
class Planted:
    """Where each canary was put, and other secrets that must not come out either."""

    words: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    by_field: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))

    def word(self, where: str) -> str:
        made = f"{MARK}{len(self.words)}x{secrets.token_hex(4)}"
        self.words[made] = where
        self.by_field[where] += 1
        return made

    def secret(self, where: str, value: str) -> str:
        self.secrets[value] = where
        return value

    def found(self, text: str, *, of: str | None = None) -> set[str]:
        """Where those that occur in the text were put; `of` narrows to one place."""
        seen = {self.words.get(word.lower(), word) for word in _WORD.findall(text)}
        seen |= {where for value, where in self.secrets.items() if value in text}
        return {where for where in seen if of is None or of in where}

    def model(self, kind: type[BaseModel], given: Given, *, at: str = "") -> dict[str, Any]:
        """A request of this model with a canary in each field that can hold one. `given` says what to put into those
        that cannot hold anything: a value, a function that makes one, or `NOTHING`."""
        made = {}
        for name, about in kind.model_fields.items():
            where = f"{at}{kind.__name__}.{name}"
            value = given.get((kind.__name__, name), self)
            if value is self:
                value = self.value(about.annotation, where, given, about.metadata)
            elif callable(value):
                value = value()
            if value is not NOTHING:
                made[about.alias or name] = value
        return made

    def value(self, kind: Any, where: str, given: Given, metadata: Iterable[Any] = ()) -> Any:
        origin, args = get_origin(kind), get_args(kind)
        if origin is Annotated:
            return self.value(args[0], where, given, args[1:])
        if origin in (Union, types.UnionType):
            arms = [self.value(arm, where, given, metadata) for arm in args if arm is not type(None)]
            return next((arm for arm in arms if arm is not NOTHING), NOTHING)
        if origin is Literal:
            return args[0]
        if origin is list or origin is tuple:
            inner = self.value(args[0], where, given)
            return [inner] if inner is not NOTHING else NOTHING
        if origin is dict or kind is dict:
            key = str(uuid4()) if args and "UUID" in str(args[0]) else self.word(f"{where}{{}}")
            held = self.value(args[1] if args else Any, where, given)
            return {key: 1 if held is NOTHING else held}
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return self.model(kind, given)
        if kind is UUID:
            return str(uuid4())
        if kind is str:
            pattern = next((m.pattern for m in metadata if getattr(m, "pattern", None)), None)
            return "0" * 64 if pattern else self.word(where)
        if kind is Any:
            return {"inside": [self.word(where)]}
        return NOTHING  # numbers, times: nothing to tell them from others by
