"""How a human's edit meets a payload, and how the difference is shown."""

import copy
from collections.abc import Iterable, Mapping

from service.domain.canonical import JSON, same


class NoPatch(ValueError):
    """What is wanted cannot be said in a merge patch; the message is for a person."""


def merge_patch(target: JSON, patch: JSON) -> JSON:
    """`patch` applied to `target` by JSON Merge Patch (RFC 7396); shares nothing with its arguments."""
    if not isinstance(patch, Mapping):
        return copy.deepcopy(patch)
    merged = copy.deepcopy(dict(target)) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def diff(before: JSON, after: JSON) -> list[dict[str, JSON]]:
    """What changed: `{op: add|remove|replace, path, from, value}`, one entry a changed member.

    `path` is a JSON Pointer; `from` is absent for `add`, `value` for `remove`. Objects are compared
    member by member, in name order; arrays and scalars whole.
    """
    return list(_diff((), before, after))


def patch_between(before: JSON, after: JSON) -> JSON:
    """The merge patch that makes `after` of `before`. Raises `NoPatch` where none can: a null member says "remove"."""
    patch = _patch(before, after)
    if not same(merge_patch(before, patch), after):
        raise NoPatch("a field cannot be set to null: remove it instead")
    return patch


def _patch(before: JSON, after: JSON) -> JSON:
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
        return after
    removed: dict[str, JSON] = {name: None for name in before if name not in after}
    changed = {
        name: _patch(before.get(name), value)
        for name, value in after.items()
        if name not in before or not same(before[name], value)
    }
    return {**removed, **changed}


def pointer(parts: Iterable[str | int]) -> str:
    """The JSON Pointer (RFC 6901) of a path: `("a/b", 0)` → `/a~1b/0`; `""` for the whole document."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def _diff(path: tuple[str, ...], before: JSON, after: JSON) -> Iterable[dict[str, JSON]]:
    if same(before, after):
        return
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
        yield {"op": "replace", "path": pointer(path), "from": before, "value": after}
        return
    for name in sorted(before.keys() | after.keys()):
        here = (*path, name)
        if name not in before:
            yield {"op": "add", "path": pointer(here), "value": after[name]}
        elif name not in after:
            yield {"op": "remove", "path": pointer(here), "from": before[name]}
        else:
            yield from _diff(here, before[name], after[name])
