"""What a schema says of a field, for the person who fills it: its name, its choices, what is allowed."""

from collections.abc import Mapping
from datetime import date
from typing import Any, Final

from service.domain import form as forms
from service.domain import schema as schemas
from service.domain.canonical import JSON

FORMATS: Final = {
    "date": "A date, as 2026-01-31.",
    "date-time": "A moment with its zone, as 2026-01-31T09:30:00Z.",
    "time": "A time with its zone, as 09:30:00Z.",
    "email": "A mail address.",
    "uri": "A web address.",
    "uuid": "A UUID.",
    "ipv4": "An IPv4 address.",
    "hostname": "A host name.",
}


def label(name: str, facets: Mapping[str, JSON]) -> str:
    title = facets.get("title")
    words = name.replace("_", " ").strip()
    return title if isinstance(title, str) and title else words[:1].upper() + words[1:]


def hint(root: JSON, facets: Mapping[str, JSON]) -> str:
    """Its description, and in words what the schema allows; the choices of an enum stand in its list already."""
    described = facets.get("description")
    own = forms.allowed({name: value for name, value in facets.items() if name != "enum"})
    each = [f"Each: {told}" for told in forms.allowed(schemas.facets(root, facets.get("items")))]
    shape = FORMATS.get(str(facets.get("format")), "")
    return " ".join(one for one in (described if isinstance(described, str) else "", *own, *each, shape) if one)


def choices(facets: Mapping[str, JSON]) -> list[tuple[Any, str]]:
    """`(value, label)` of each value that an enum, a const or a union of consts allows; empty: any."""
    listed = facets.get("enum") if "enum" in facets else [facets["const"]] if "const" in facets else None
    if isinstance(listed, list):
        return [(one, schemas.spelled(one)) for one in listed]
    union = facets.get("oneOf") or facets.get("anyOf")
    branches = [one for one in union if one != {"type": "null"}] if isinstance(union, list) else []
    if not all(isinstance(one, Mapping) and "const" in one for one in branches):
        return []
    return [(one["const"], str(one.get("title") or schemas.spelled(one["const"]))) for one in branches]


def is_date(facets: Mapping[str, JSON], value: Any) -> bool:
    """Whether a browser's own field for dates would keep what stands there."""
    if facets.get("format") != "date" or not isinstance(value, str | None):
        return False
    try:
        return not value or date.fromisoformat(value).isoformat() == value
    except ValueError:
        return False
