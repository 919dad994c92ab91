"""From what a person said to what a provider is sent: fixed rules, no guess that is not counted as one."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from service.domain import schema as schemas
from service.domain.answers import answers, turn_files, turn_text
from service.domain.attachments import Attachment, Kind, from_prompt, kind, unique, urls_in
from service.domain.canonical import JSON, same
from service.domain.fields import (
    DEFAULT_PROMPT,
    MEDIA,
    PROMPTS,
    Field,
    effective_schema,
    fields_of,
    inner_fields,
    is_negative,
    is_url,
    kind_by_name,
    prompt_alias,
    prompt_path,
)

TURNS: Final = 10  # how far back a conversation is searched for files
Origin: TypeAlias = Literal["prompt", "attachment", "conversation", "example", "schema_default", "edited"]


@dataclass(frozen=True, slots=True)
class Material:
    """What a run was given: the prompt, its files, a document, and the conversation, oldest turn first."""

    prompt: str
    attachments: tuple[Attachment, ...] = ()
    document_url: str | None = None
    conversation: tuple[Mapping[str, JSON], ...] = ()


@dataclass(frozen=True, slots=True)
class Built:
    """A payload and its story.

    `schema`: what it is validated against, see `effective_schema`.
    `origins`: what put each top-level field there. `missing`: required fields that are empty. `baseline`:
    the example as the client gave it, and the schema's defaults that were filled in, which nobody changed.
    `confidence`: 0 to 1, see `build`.
    """

    payload: dict[str, JSON]
    schema: dict[str, JSON]
    origins: dict[str, Origin]
    missing: tuple[str, ...]
    baseline: dict[str, JSON]
    confidence: float


@dataclass(slots=True)
class _Draft:
    """A payload in the making. The first to fill a field keeps it: the order of calls is the precedence."""

    payload: dict[str, JSON] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    guessed: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)  # URLs that stand somewhere

    def fill(self, name: str, value: JSON, origin: Origin) -> None:
        if name not in self.payload:
            self.payload[name] = value
            self.origins[name] = origin


def build(material: Material, *, schema: JSON | None, example: Mapping[str, JSON] | None) -> Built:
    """The payload by the fixed rules of contract section 10; pure, and total but for a bad schema.

    Precedence: prompt, attachments, conversation, example, schema defaults. Content fields lose their
    sample, settings keep it, arrays are emptied. Nothing a caller passed in is shared or changed.

    Confidence = mean over the required fields of {1.0 given explicitly (prompt, conversation, file whose
    kind is the field's) or a setting of the example or a default; 0.5 a file mapped by guess: its kind
    unknown, or several fields that could take it; 0.0 empty}, times 1.0 if the payload validates, else
    0.5. 1.0 when nothing is required and the payload validates. Raises `schema.BadSchema`.
    """
    whole = effective_schema(schema, example)
    fields = fields_of(schema, example)
    draft = _drafted(material, schema, fields, prompt_path(schema, example))
    payload = {name: draft.payload[name] for name in (*fields, *draft.payload) if name in draft.payload}
    return Built(
        payload=payload,
        schema=whole,
        origins={name: draft.origins[name] for name in payload},
        missing=missing(payload, whole),
        baseline=_baseline(draft, example),
        confidence=_confidence(payload, draft.guessed, whole),
    )


def missing(payload: Mapping[str, JSON], schema: JSON | None) -> tuple[str, ...]:
    """The required fields that are absent, null, blank or an empty array, in schema order.

    Without a schema that is the prompt, under any of its names. `negative_prompt` never is missing.
    """
    if schema is None:
        filled = any(not _empty(payload.get(name), None, {}) for name in PROMPTS)
        return () if filled else (prompt_field(None, payload),)
    parts = schemas.properties(schema, schema)
    return tuple(
        name
        for name in schemas.required(schema, schema)
        if not is_negative(name) and _empty(payload.get(name), schema, parts.get(name))
    )


def changes(baseline: Mapping[str, JSON], payload: Mapping[str, JSON]) -> int:
    """How many top-level fields differ from the baseline: changed, added or gone, the prompt included."""
    return len(changed(baseline, payload))


def changed(before: Mapping[str, JSON], after: Mapping[str, JSON]) -> list[str]:
    """The top-level fields that differ."""
    names = dict.fromkeys((*before, *after))
    return [name for name in names if name not in before or name not in after or not same(before[name], after[name])]


def prompt_field(schema: JSON | None, example: Mapping[str, JSON] | None) -> str:
    """The top-level field that takes the prompt: the first known alias of schema, then example, or `prompt`.

    Where only an object inside has such a field (`{"input": {"prompt": …}}`), the name of that object.
    """
    return prompt_path(schema, example)[0]


# -- the order of placing ------------------------------------------------------------------------------


def _drafted(material: Material, root: JSON | None, fields: Mapping[str, Field], path: tuple[str, ...]) -> _Draft:
    draft = _Draft()
    text, named = from_prompt(material.prompt)
    if len(path) == 2:
        _place_wrapped(draft, material, root, fields[path[0]])
    else:
        _place_prompt(draft, text, root, fields, path[0])
    document = (Attachment(material.document_url),) if material.document_url else ()
    _place_files(draft, unique((*material.attachments, *named, *document)), fields, "attachment")
    open_fields = {name: one for name, one in fields.items() if name != path[0]}
    for name, value in answers(material.conversation, open_fields).items():
        draft.fill(name, value, "conversation")
        draft.used |= {value} if isinstance(value, str) else set()
    _place_files(draft, _files_of_turns(material.conversation), fields, "conversation")
    _place_settings(draft, root, fields)
    return draft


def _place_wrapped(draft: _Draft, material: Material, root: JSON | None, wrapper: Field) -> None:
    """An object that holds the whole request is built like one: its prompt, its files, its settings."""
    inside = inner_fields(root, wrapper)
    inner = _drafted(material, root, inside, (prompt_alias(inside) or DEFAULT_PROMPT,))
    draft.fill(wrapper.name, {name: inner.payload[name] for name in inside if name in inner.payload}, "prompt")
    draft.used |= inner.used
    draft.guessed |= {wrapper.name} if inner.guessed else set()


def _place_prompt(draft: _Draft, text: str, root: JSON | None, fields: Mapping[str, Field], name: str) -> None:
    closed = root is not None and bool(schemas.properties(root, root))
    if not text.strip() or (name not in fields and closed):
        return  # a model without a prompt (an upscaler) is not sent one
    place = fields.get(name)
    if place is None or place.type != "array":
        draft.fill(name, text, "prompt")
    else:
        draft.fill(name, [{"role": "user", "content": text} if place.holds_turns else text], "prompt")


# -- files ---------------------------------------------------------------------------------------------


def _place_files(draft: _Draft, files: Iterable[Attachment], fields: Mapping[str, Field], origin: Origin) -> None:
    """Each file to a field of its kind, the required and best named first; then the rest by guess."""
    kinds: dict[Kind, list[str]] = {}
    for one in files:
        if one.url not in draft.used:
            kinds.setdefault(kind(one), []).append(one.url)
    placed = {
        of_kind: _spread(draft, urls, _ranked(fields, draft, of_kind), origin, guess=False)
        for of_kind, urls in kinds.items()
    }
    for of_kind, urls in kinds.items():
        if not placed[of_kind]:
            _spread(draft, urls, _guessed(fields, draft, of_kind), origin, guess=True)


def _spread(draft: _Draft, urls: list[str], ranked: list[Field], origin: Origin, *, guess: bool) -> bool:
    """Fills the first field and, while URLs are left, the other required ones; whether there was a field."""
    rivals = sum(candidate.required for candidate in ranked) or len(ranked)
    left = urls
    for nth, candidate in enumerate(ranked):
        if not left or (nth and not candidate.required):
            break
        whole = candidate.type == "array"
        draft.fill(candidate.name, left if whole else left[0], origin)
        draft.used |= set(left if whole else left[:1])
        left = [] if whole else left[1:]
        if guess or (rivals > 1 and not whole):
            draft.guessed.add(candidate.name)
    return bool(ranked)


def _guessed(fields: Mapping[str, Field], draft: _Draft, of_kind: Kind) -> list[Field]:
    """For files that no field of their kind takes: a field for any; a required URL; if of unknown kind, the
    only media field."""
    media = [one for wanted in MEDIA for one in _ranked(fields, draft, wanted)]
    needed = [one for one in media if one.required] or media
    only = needed if of_kind == "file" and len(needed) == 1 else []
    nameless = [one for one in fields.values() if one.name not in draft.payload and one.needs_a_file]
    return _ranked(fields, draft, "file") or nameless or only


def _ranked(fields: Mapping[str, Field], draft: _Draft, of_kind: Kind) -> list[Field]:
    """The open fields that take files of that kind, the required and best named first."""
    found = [one for one in fields.values() if one.name not in draft.payload and one.kind == of_kind]
    return sorted((one for one in found if one.takes_files), key=lambda one: (not one.required, one.distance))


def _files_of_turns(conversation: Iterable[Mapping[str, JSON]]) -> tuple[Attachment, ...]:
    """The URLs of the last ten turns, the newest turn first."""
    turns = list(conversation)[-TURNS:]
    urls = [url for turn in reversed(turns) for url in (*turn_files(turn), *urls_in(turn_text(turn)))]
    return unique(map(Attachment, urls))


# -- the example and the defaults ----------------------------------------------------------------------


def _place_settings(draft: _Draft, root: JSON | None, fields: Mapping[str, Field]) -> None:
    for name, candidate in fields.items():
        kept = _emptied(root, candidate) if candidate.sampled else None
        if kept is not None or (candidate.sampled and _keeps_null(candidate)):
            draft.fill(name, kept, "example")
        elif candidate.negative:
            if candidate.required:
                draft.fill(name, "", "schema_default")
        elif candidate.kind is None and candidate.facets.get("default") is not None:
            draft.fill(name, copy.deepcopy(candidate.facets["default"]), "schema_default")


def _emptied(root: JSON | None, candidate: Field) -> JSON:
    """What the sample leaves behind: null for content, `[]` for an array, objects field by field."""
    if candidate.negative:
        return "" if candidate.type in ("string", None) and candidate.free else None
    if isinstance(candidate.sample, list | tuple) and candidate.type == "array":
        return [] if candidate.required or not candidate.facets.get("minItems") else None
    if candidate.kind is not None or _misplaced(candidate):
        return None
    if isinstance(candidate.sample, list | tuple):
        return None
    if not isinstance(candidate.sample, Mapping):
        return candidate.sample
    inner = inner_fields(root, candidate)
    kept = {name: _emptied(root, one) for name, one in inner.items() if one.sampled}
    rest = {name: value for name, value in kept.items() if value is not None or _keeps_null(inner[name])}
    return None if not rest and kind_by_name(candidate.name) else rest


def _misplaced(candidate: Field) -> bool:
    """A sample of content where the schema has something else: a text for a number, a value that no enum has."""
    content = isinstance(candidate.sample, str) and (kind_by_name(candidate.name) or is_url(candidate.sample))
    allowed = candidate.facets.get("enum", [candidate.facets.get("const")])
    return bool(content) and candidate.kind is None and candidate.sample not in allowed


def _keeps_null(candidate: Field) -> bool:
    """A setting whose sample is null stays null where no schema says otherwise."""
    return candidate.sample is None and candidate.kind is None and not candidate.facets


def _baseline(draft: _Draft, example: Mapping[str, JSON] | None) -> dict[str, JSON]:
    defaults = {name: draft.payload[name] for name, origin in draft.origins.items() if origin == "schema_default"}
    return copy.deepcopy({**defaults, **(example or {})})


# -- what is required ----------------------------------------------------------------------------------


def _empty(value: JSON, root: JSON | None, node: JSON) -> bool:
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, Mapping):
        parts = schemas.properties(root, node)
        return any(_empty(value.get(name), root, parts.get(name)) for name in schemas.required(root, node))
    return value is None or value == []


def _confidence(payload: Mapping[str, JSON], guessed: set[str], schema: JSON) -> float:
    wanted = [name for name in schemas.required(schema, schema) if not is_negative(name)]
    absent = missing(payload, schema)
    scores = [0.0 if name in absent else 0.5 if name in guessed else 1.0 for name in wanted]
    mean = sum(scores) / len(scores) if scores else 1.0
    return round(mean * (0.5 if schemas.violations(schema, payload) else 1.0), 4)
