"""A payload as a form made from its schema, and the form as a payload again. A value keeps its JSON type.

What a person has not touched comes back as it was, byte for byte: a browser turns line ends, and `3.0` into `3`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import orjson

from service.border.body import parse
from service.console import hints
from service.console.page import Form
from service.domain import schema as schemas
from service.domain.canonical import JSON
from service.domain.fields import is_url, json_type
from service.domain.patch import pointer
from service.errors import InvalidJson

Kind = Literal["text", "long", "url", "integer", "number", "boolean", "enum", "lines", "object", "list", "json"]
MAX_DEPTH: Final = 6
MAX_ITEMS: Final = 50
LONG: Final = 80
_SCALARS: Final = ("string", "integer", "number", "boolean")
_INTEGER: Final = re.compile(r"[+-]?\d{1,16}")


class _Missing:
    """A member that is not there, which is not the same as null."""


MISSING: Final = _Missing()


@dataclass(frozen=True, slots=True)
class Input:
    """One field of the form. `value` is the text in it, `current` what stands in the payload (or `MISSING`)."""

    path: str
    label: str
    kind: Kind
    value: str
    current: Any
    required: bool = False
    hint: str = ""
    origin: str | None = None
    edited_by: str | None = None
    default: Any = None
    options: Sequence[tuple[str, str]] = ()
    item: str | None = None
    date: bool = False
    children: Sequence["Input"] = ()
    blank: bool = False

    @property
    def name(self) -> str:
        """Its name in the form."""
        return f"p{self.path}"

    @property
    def drop(self) -> str:
        """The name of the box that takes an item out of a list."""
        return f"x{self.path}"


@dataclass(frozen=True, slots=True)
class Fault:
    path: str
    message: str


def inputs_of(schema: JSON, payload: JSON, told: Sequence[Mapping[str, Any]] = (), typed: Form | None = None) -> Input:
    """The form of a payload. `told` are the fields of `context.form`; `typed` is what somebody has put in already."""
    made = _Maker(schema, typed).input((), schema, payload, label="Payload", required=True)
    if made.kind != "object":
        return made
    about = {str(row.get("name")): row for row in told}
    order = {name: n for n, name in enumerate(about)}
    children = sorted(made.children, key=lambda child: order.get(_name(child.path), len(order)))
    return replace(made, children=[_told(child, about.get(_name(child.path), {})) for child in children])


def read(form_input: Input, form: Form) -> tuple[Any, list[Fault]]:
    """The value in the form (or `MISSING`), and what cannot be one."""
    faults: list[Fault] = []
    return _read(form_input, form, faults), faults


def placed(root: Input, errors: Iterable[Mapping[str, str]]) -> tuple[dict[str, list[str]], list[str]]:
    """The server's faults by the path of the input that they belong to; those of none come second."""
    paths = sorted((each.path for each in _all(root) if each.path), key=len, reverse=True)
    by_path: dict[str, list[str]] = {}
    rest: list[str] = []
    for error in errors:
        at, message = error["pointer"], error["message"]
        place = next((path for path in paths if at == path or at.startswith(f"{path}/")), None)
        inside = at.removeprefix(place or "")
        if place is None:
            rest.append(f"{at} {message}".strip())
        else:
            by_path.setdefault(place, []).append(f"{inside} {message}".strip())
    return by_path, rest


def text_of(value: Any) -> str:
    """A value as it stands in a field."""
    if value is MISSING or value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


class _Maker:
    def __init__(self, root: JSON, typed: Form | None) -> None:
        self._root = root
        self._typed = typed

    def input(self, path: tuple[str | int, ...], node: JSON, value: Any, *, label: str, required: bool) -> Input:
        facets = schemas.facets(self._root, node)
        kind, item = self._kind(facets, value, len(path))
        made = Input(
            path=pointer(path), label=hints.label(label, facets), kind=kind, value="", current=value, required=required,
            hint=hints.hint(self._root, facets), default=facets.get("default"), item=item,
            date=kind == "text" and hints.is_date(facets, None if value is MISSING else value),
            options=_options(facets, value), children=self._children(kind, path, node, facets, value),
        )  # fmt: skip
        shown = _shown(made)
        if self._typed is not None and made.name in self._typed:
            shown = _lines(self._typed.get(made.name))
        return replace(made, value=shown)

    def _kind(self, facets: Mapping[str, JSON], value: Any, depth: int) -> tuple[Kind, str | None]:
        if hints.choices(facets):
            return "enum", None
        named = facets.get("type")
        kind = named if isinstance(named, str) else json_type(None if value is MISSING else value)
        fits = value is MISSING or value is None or json_type(value) == kind
        if not fits and not (kind == "number" and json_type(value) == "integer"):
            return "json", None
        match kind:
            case "string":
                return self._text_kind(facets, value), None
            case "integer" | "number" | "boolean":
                return kind, None
            case "array":
                return self._array_kind(facets, value, depth)
            case "object" if depth < MAX_DEPTH and (schemas.properties(self._root, facets) or value):
                return "object", None
            case _:
                return "json", None

    def _text_kind(self, facets: Mapping[str, JSON], value: Any) -> Kind:
        text = value if isinstance(value, str) else ""
        if "\n" in text or "\r" in text or len(text) > LONG:
            return "long"
        if facets.get("format") == "uri" or is_url(text):
            return "url"
        if facets.get("format") in hints.FORMATS:
            return "text"
        limit = facets.get("maxLength")
        return "text" if "pattern" in facets or (isinstance(limit, int) and limit <= LONG) else "long"

    def _array_kind(self, facets: Mapping[str, JSON], value: Any, depth: int) -> tuple[Kind, str | None]:
        items = value if isinstance(value, list) else []
        about = schemas.facets(self._root, facets.get("items"))
        if about.get("type") == "object" and depth < MAX_DEPTH and schemas.properties(self._root, about):
            whole = len(items) <= MAX_ITEMS and all(isinstance(one, Mapping) for one in items)
            return ("list", None) if whole else ("json", None)
        named = about.get("type")
        types = {json_type(one) for one in items} | ({named} if isinstance(named, str) else set())
        plain = all(not isinstance(one, str) or (one.strip() == one and one and "\n" not in one) for one in items)
        if len(types) == 1 and types <= set(_SCALARS) and plain:
            return "lines", str(next(iter(types)))
        return ("lines", "string") if not types else ("json", None)

    def _children(
        self, kind: Kind, path: tuple[str | int, ...], node: JSON, facets: Mapping[str, JSON], value: Any
    ) -> list[Input]:
        if kind == "object":
            known = schemas.properties(self._root, node)
            has = value if isinstance(value, Mapping) else {}
            needed = schemas.required(self._root, node)
            return [
                self.input((*path, name), known.get(name), has.get(name, MISSING), label=name, required=name in needed)
                for name in dict.fromkeys([*known, *has])
            ]
        if kind == "list":
            items = value if isinstance(value, list) else []
            about = facets.get("items")
            more = [] if len(items) >= MAX_ITEMS else [MISSING]
            made = [
                self.input((*path, n), about, one, label=f"Item {n + 1}", required=False)
                for n, one in enumerate([*items, *more])
            ]
            return [replace(one, blank=one.current is MISSING) for one in made]
        return []


def _read(one: Input, form: Form, faults: list[Fault]) -> Any:
    match one.kind:
        case "object":
            return _read_object(one, form, faults)
        case "list":
            items = [_read(each, form, faults) for each in one.children if each.drop not in form]
            found = [item for item in items if item is not MISSING]
            return one.current if not found and not isinstance(one.current, list) else found
        case _:
            if one.name not in form:
                return one.current
            text = _lines(form.get(one.name))
            if text == _lines(_shown(one)):
                return one.current
            if not text.strip() and one.kind != "json" and not (one.required and one.kind in ("text", "long", "url")):
                return [] if one.kind == "lines" and one.required else MISSING
            try:
                return _value(one, text)
            except ValueError as fault:
                faults.append(Fault(one.path, str(fault)))
                return one.current


def _read_object(one: Input, form: Form, faults: list[Fault]) -> Any:
    members = {_name(child.path): _read(child, form, faults) for child in one.children}
    found = {name: value for name, value in members.items() if value is not MISSING}
    return one.current if not found and not isinstance(one.current, Mapping) else found


def _value(one: Input, text: str) -> Any:
    """Raises `ValueError` with what is wrong, for a person."""
    match one.kind:
        case "integer" | "number" | "boolean":
            return _scalar(one.kind, text)
        case "lines":
            return [_scalar(one.item or "string", line) for line in text.split("\n") if line.strip()]
        case "enum" | "json":
            if not text.strip():
                return MISSING
            try:
                return parse(text.encode())
            except InvalidJson as fault:
                raise ValueError(fault.detail.replace("the body", "it")) from None
        case _:
            return text


def _scalar(kind: str, text: str) -> Any:
    text = text.strip()
    match kind:
        case "integer":
            if not _INTEGER.fullmatch(text):
                raise ValueError("must be a whole number")
            return int(text)
        case "number":
            try:
                return parse(text.encode()) if _INTEGER.fullmatch(text) else float(parse(text.encode()))
            except (InvalidJson, TypeError, ValueError):
                raise ValueError("must be a number, as 0.5") from None
        case "boolean":
            if text not in ("true", "false"):
                raise ValueError("must be true or false")
            return text == "true"
        case _:
            return text


def _shown(one: Input) -> str:
    match one.kind:
        case "lines":
            items = one.current if isinstance(one.current, list) else []
            return "\n".join(text_of(item) for item in items)
        case "enum" | "json":
            return "" if one.current is MISSING else _json(one.current, indent=one.kind == "json")
        case _:
            return text_of(one.current)


def _options(facets: Mapping[str, JSON], value: Any) -> list[tuple[str, str]]:
    """`(value, label)` of each choice; one that stands there and is none is named as such."""
    known = [(_json(one), label) for one, label in hints.choices(facets)]
    now = None if value is MISSING or not known else _json(value)
    return known if now is None or now in dict(known) else [(now, f"{schemas.spelled(value)} (not allowed)"), *known]


def _told(one: Input, row: Mapping[str, Any]) -> Input:
    return replace(
        one, label=str(row.get("label") or one.label),
        origin=row.get("origin"), edited_by=row.get("edited_by"),
    )  # fmt: skip


def _all(one: Input) -> Iterable[Input]:
    yield one
    for child in one.children:
        yield from _all(child)


def _name(path: str) -> str:
    return path.rpartition("/")[2].replace("~1", "/").replace("~0", "~")


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _json(value: Any, *, indent: bool = False) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 if indent else 0).decode()
