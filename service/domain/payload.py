"""From what a person said to what a provider is sent: fixed rules, no guess that is not counted as one."""

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from service.domain import schema as schemas
from service.domain.attachments import Attachment, Kind, from_prompt, kind, unique, urls_in
from service.domain.canonical import JSON, same

Path: TypeAlias = tuple[str, ...]
"""Where a field stands: its name, or that of an object and the name inside it."""

DEFAULT_PROMPT: Final = "prompt"
TURNS: Final = 10  # how far back a conversation is searched for files

# The prompt goes to the first of these that the schema, else the example, knows.
_PROMPTS: Final = (
    *("prompt", "text_prompt", "text", "instruction", "instructions", "input", "input_text", "text_input"),
    *("query", "question", "message", "user_prompt", "user_message", "user_input", "input_prompt"),
    *("positive_prompt", "prompts", "texts", "inputs", "content", "q", "search_query"),
    *("caption", "lyrics"),
)
# Objects that hold the whole request: {"input": {"prompt": …}}.
_WRAPPERS: Final = frozenset(
    {"input", "inputs", "data", "payload", "params", "parameters", "body", "request", "arguments", "args"}
)
_TEXTS: Final = frozenset({*_PROMPTS, "transcript", "messages"})
_NOUNS: Final[Mapping[str, Kind]] = {
    **dict.fromkeys(("image", "images", "img", "picture", "photo", "photos", "mask", "frame"), "image"),
    **dict.fromkeys(("audio", "audios", "song", "sound", "speech"), "audio"),
    **dict.fromkeys(("video", "videos", "clip"), "video"),
    **dict.fromkeys(("file", "files", "document", "documents", "pdf", "url", "urls", "uri", "uris"), "file"),
    **dict.fromkeys(("prompt", "prompts", "text", "texts", "instruction", "instructions"), "text"),
}
# What may follow the noun without changing what the field carries: image_url, audio_file_2.
_SUFFIXES: Final = frozenset({"url", "urls", "uri", "uris", "path", "file", "files", "base64", "b64", "data", "input"})
# What before the noun makes it a setting: num_images counts, system_prompt configures.
_COUNTS: Final = frozenset(
    {"num", "n", "number", "max", "min", "total", "count", "has", "is", "enable", "use", "output", "return"}
    | {"save", "with", "add", "disable", "system", "negative"}
)
# Not what a lone file is for, as long as another field of its kind is there.
_SECONDARY: Final = frozenset({"mask", "last", "end", "tail", "control", "style", "target", "reference", "background"})
_NO_FILES: Final = frozenset(
    {
        "webhook",
        "callback",
        "base",
        "api",
        "endpoint",
        "proxy",
        "redirect",
        "site",
        "lora",
        "weights",
        "model",
    }
)
_URL: Final = re.compile(r"\s*(?:(?:https?|ftp|gs|s3|blob|file)://|data:[\w.+-]+[/;,]|www\.)", re.IGNORECASE)
_SCALARS: Final = frozenset({"integer", "number", "boolean"})
_MEDIA: Final[tuple[Kind, ...]] = ("image", "audio", "video")


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

    `origins`: top-level field → `prompt | attachment | conversation | example | default`.
    `missing`: required fields that are empty. `baseline`: the example as the client gave it, and the
    schema's defaults that were filled in, which nobody changed. `confidence`: 0 to 1, see `build`.
    """

    payload: dict[str, JSON]
    origins: dict[str, str]
    missing: tuple[str, ...]
    baseline: dict[str, JSON]
    confidence: float


@dataclass(frozen=True, slots=True)
class Field:
    """One field that a payload may have: its schema flattened, and its sample where there is one."""

    name: str
    facets: Mapping[str, JSON]
    sample: JSON = None
    sampled: bool = False
    required: bool = False

    @property
    def type(self) -> str | None:
        """The JSON type: the schema's, else that of the sample; null where neither tells."""
        named = self.facets.get("type")
        return named if isinstance(named, str) else json_type(self.sample)

    @property
    def free(self) -> bool:
        """Whether the field takes any value of its type: no enum, no constant."""
        return not ({"enum", "const"} & self.facets.keys())

    @property
    def is_url(self) -> bool:
        """Whether the field holds a URL (or several), by its schema's format or by its sample."""
        items = self.facets.get("items")
        formats = [self.facets.get("format"), items.get("format") if isinstance(items, Mapping) else None]
        samples = self.sample if isinstance(self.sample, list | tuple) else [self.sample]
        return "uri" in formats or any(isinstance(one, str) and _URL.match(one) for one in samples)

    @property
    def kind(self) -> Kind | None:
        """What content the field carries, null for a setting: by URL-ness and by name, never for numbers."""
        if self.type in _SCALARS or self.type == "object" or not self.free:
            return None
        named = _kind_by_name(self.name)
        if not self.is_url:
            return named
        return named if named in _MEDIA else _kind_of_url(self)


@dataclass(slots=True)
class _Draft:
    """A payload in the making. The first to fill a field keeps it: the order of calls is the precedence."""

    payload: dict[str, JSON] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    guessed: set[str] = field(default_factory=set)

    def fill(self, name: str, value: JSON, origin: str) -> None:
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
    fields = _fields(schema, example)
    text, named = from_prompt(material.prompt)
    draft = _Draft()
    _place_prompt(draft, text, schema, example, fields)
    document = (Attachment(material.document_url),) if material.document_url else ()
    _place_files(draft, unique((*material.attachments, *named, *document)), fields, "attachment")
    _place_answers(draft, material.conversation, fields, prompt_field(schema, example))
    _place_files(draft, _files_of_turns(material.conversation, draft), fields, "conversation")
    _place_settings(draft, schema, fields)
    payload = {name: draft.payload[name] for name in (*fields, *draft.payload) if name in draft.payload}
    return Built(
        payload=payload,
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
        filled = any(not _empty(payload.get(name), None, {}) for name in _PROMPTS)
        return () if filled else (prompt_field(None, payload),)
    parts = schemas.properties(schema, schema)
    return tuple(
        name
        for name in schemas.required(schema, schema)
        if not _is_negative(name) and _empty(payload.get(name), schema, parts.get(name))
    )


def effective_schema(schema: JSON | None, example: Mapping[str, JSON] | None) -> dict[str, JSON]:
    """What a payload is validated against: the schema given, else one derived from the example.

    A derived one gives each field the JSON type of its sample (null: any), requires the prompt
    (`minLength` 1) and allows fields that it does not name.
    """
    if schema is not None:
        return dict(schema)
    path = _prompt_path(None, example)
    parts = {name: _derived(sample) for name, sample in (example or {}).items()}
    prompt = {"type": "string", "minLength": 1}
    if json_type((example or {}).get(path[0])) == "array":
        prompt = {"type": "array", "minItems": 1}
    for name in reversed(path[1:]):
        prompt = {"type": "object", "properties": {name: prompt}, "required": [name]}
    return {
        "type": "object",
        "properties": {path[0]: prompt, **_without(parts, path[0])},
        "required": [path[0]],
        "additionalProperties": True,
    }


def changes(baseline: Mapping[str, JSON], payload: Mapping[str, JSON]) -> int:
    """How many top-level fields differ from the baseline: changed, added or gone, the prompt included."""
    names = baseline.keys() | payload.keys()
    return sum(name not in baseline or name not in payload or not same(baseline[name], payload[name]) for name in names)


def prompt_field(schema: JSON | None, example: Mapping[str, JSON] | None) -> str:
    """The top-level field that takes the prompt: the first known alias of schema, then example, or `prompt`.

    Where only an object inside has such a field (`{"input": {"prompt": …}}`), the name of that object.
    """
    return _prompt_path(schema, example)[0]


def category(candidate: Field) -> str:
    """`content`, `setting` or `hybrid`: text that steers rather than says (negative_prompt), objects."""
    if candidate.kind is not None:
        return "content"
    steers = _is_negative(candidate.name) or candidate.name == "system_prompt" or candidate.type == "object"
    return "hybrid" if steers else "setting"


def json_type(value: JSON) -> str | None:
    """The JSON Schema type of a value; null for null."""
    match value:
        case None:
            return None
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case Mapping():
            return "object"
        case _:
            return "array"


def fields_of(schema: JSON | None, example: Mapping[str, JSON] | None) -> dict[str, Field]:
    """Every field that schema or example knows, by name: the schema's order, then the example's."""
    return _fields(schema, example)


def _fields(root: JSON | None, example: Mapping[str, JSON] | None, node: JSON | None = None) -> dict[str, Field]:
    here = root if node is None else node
    parts, wanted, samples = schemas.properties(root, here), schemas.required(root, here), example or {}
    closed = schemas.facets(root, here).get("additionalProperties") is False
    extra = () if closed else tuple(samples)
    return {
        name: Field(
            name,
            schemas.facets(root, parts.get(name)),
            samples.get(name),
            name in samples,
            name in wanted,
        )
        for name in dict.fromkeys((*parts, *extra))
    }


# -- names ---------------------------------------------------------------------------------------------


def _words(name: str) -> list[str]:
    snake = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower()
    words = [word for word in re.split(r"[^a-z0-9]+", snake) if word and not word.isdigit()]
    return [word.rstrip("0123456789") or word for word in words]


def _kind_by_name(name: str) -> Kind | None:
    """By the noun the name ends in: `source_image_url` is an image, `image_size`, `context` are none."""
    words = _words(name)
    while len(words) > 1 and words[-1] in _SUFFIXES and _carries(words[-2:]):
        words.pop()
    if not words or _COUNTS & set(words[:-1]):
        return None
    if words[-1] in _NOUNS:
        return _NOUNS[words[-1]]
    return "text" if "_".join(words) in _TEXTS else None


def _carries(pair: list[str]) -> bool:
    return pair[0] in _NOUNS or pair[0] in _SUFFIXES or pair[1] == "input"


def _is_negative(name: str) -> bool:
    return _words(name) == ["negative", "prompt"]


def _takes_files(candidate: Field) -> bool:
    """Whether a file may go there: not to every URL a config holds (a webhook, weights)."""
    words = set(_words(candidate.name))
    return candidate.kind in _MEDIA or (_kind_by_name(candidate.name) == "file" and not words & _NO_FILES)


def _kind_of_url(candidate: Field) -> Kind:
    """Of a field that holds URLs under a name that says less: by a word in it, else by the sample."""
    for word in _words(candidate.name):
        if _NOUNS.get(word) in _MEDIA:
            return _NOUNS[word]
    samples = candidate.sample if isinstance(candidate.sample, list | tuple) else [candidate.sample]
    kinds = [kind(Attachment(one)) for one in samples if isinstance(one, str)]
    return kinds[0] if kinds and kinds[0] in _MEDIA else "file"


# -- the prompt ----------------------------------------------------------------------------------------


def _prompt_path(schema: JSON | None, example: Mapping[str, JSON] | None) -> Path:
    fields = _fields(schema, example)
    top = _prompt_alias(fields)
    if top is not None:
        return (top,)
    for name, candidate in fields.items():
        inside = _inner(schema, candidate) if candidate.type == "object" else {}
        alias = _prompt_alias(inside)
        if alias is not None and (name.lower() in _WRAPPERS or inside[alias].required):
            return (name, alias)
    return (DEFAULT_PROMPT,)


def _prompt_alias(fields: Mapping[str, Field]) -> str | None:
    known = {"_".join(_words(name)): name for name in reversed(list(fields)) if _takes_text(fields[name])}
    ranked = [known[alias] for alias in _PROMPTS if alias in known]
    in_schema = [name for name in ranked if fields[name].facets]
    return next(iter(in_schema or ranked), None)


def _takes_text(candidate: Field) -> bool:
    if candidate.is_url or not candidate.free:
        return False
    if candidate.type == "array":
        items = candidate.facets.get("items", {})
        texts = not isinstance(items, Mapping) or items.get("type", "string") == "string"
        return texts and all(isinstance(one, str) for one in candidate.sample or ())
    return candidate.type in ("string", None)


def _inner(root: JSON | None, candidate: Field) -> dict[str, Field]:
    sample = candidate.sample if isinstance(candidate.sample, Mapping) else None
    return _fields(root, sample, candidate.facets)


def _place_prompt(
    draft: _Draft,
    text: str,
    schema: JSON | None,
    example: Mapping[str, JSON] | None,
    fields: Mapping[str, Field],
) -> None:
    path = _prompt_path(schema, example)
    closed = schema is not None and bool(schemas.properties(schema, schema))
    if not text.strip() or (path[0] not in fields and closed):
        return  # a model without a prompt (an upscaler) is not sent one
    if len(path) == 1:
        array = path[0] in fields and fields[path[0]].type == "array"
        draft.fill(path[0], [text] if array else text, "prompt")
        return
    outer = _emptied(schema, fields[path[0]])
    draft.fill(path[0], {**(outer or {}), path[1]: text}, "prompt")


# -- files ---------------------------------------------------------------------------------------------


def _place_files(draft: _Draft, files: tuple[Attachment, ...], fields: Mapping[str, Field], origin: str) -> None:
    """Each file to a field of its kind, the required and best named first; then the rest by guess."""
    kinds: dict[Kind, list[str]] = {}
    for one in files:
        kinds.setdefault(kind(one), []).append(one.url)
    placed = {
        of_kind: _spread(draft, urls, _ranked(fields, draft, of_kind), origin, guess=False)
        for of_kind, urls in kinds.items()
    }
    for of_kind, urls in kinds.items():
        if not placed[of_kind]:
            _spread(draft, urls, _guessed(fields, draft, of_kind), origin, guess=True)


def _spread(draft: _Draft, urls: list[str], ranked: list[Field], origin: str, *, guess: bool) -> bool:
    """Fills the first field and, while URLs are left, the other required ones; whether there was a field."""
    rivals = sum(candidate.required for candidate in ranked) or len(ranked)
    left = urls
    for nth, candidate in enumerate(ranked):
        if not left or (nth and not candidate.required):
            break
        whole = candidate.type == "array"
        draft.fill(candidate.name, left if whole else left[0], origin)
        left = [] if whole else left[1:]
        if guess or (rivals > 1 and not whole):
            draft.guessed.add(candidate.name)
    return bool(ranked)


def _guessed(fields: Mapping[str, Field], draft: _Draft, of_kind: Kind) -> list[Field]:
    """For files that no field of their kind takes: a field for any; if of unknown kind, the only media one."""
    media = [one for wanted in _MEDIA for one in _ranked(fields, draft, wanted)]
    needed = [one for one in media if one.required] or media
    only = needed if of_kind == "file" and len(needed) == 1 else []
    return _ranked(fields, draft, "file") or only


def _ranked(fields: Mapping[str, Field], draft: _Draft, of_kind: Kind) -> list[Field]:
    """The open fields that take files of that kind, the required and best named first."""
    found = [one for one in fields.values() if one.name not in draft.payload and one.kind == of_kind]
    return sorted(filter(_takes_files, found), key=lambda one: (not one.required, _distance(one)))


def _distance(candidate: Field) -> tuple[bool, int]:
    """How far a name is from the plain noun: image, then input_image, then mask and reference_image."""
    words = _words(candidate.name)
    return bool(_SECONDARY & set(words)), len(words)


def _files_of_turns(conversation: Iterable[Mapping[str, JSON]], draft: _Draft) -> tuple[Attachment, ...]:
    """The URLs of the last ten turns, the newest turn first, but for those that an answer put somewhere."""
    used = {value for value in draft.payload.values() if isinstance(value, str)}
    turns = list(conversation)[-TURNS:]
    urls = [url for turn in reversed(turns) for url in (*_turn_files(turn), *urls_in(_turn_text(turn)))]
    return unique(Attachment(url) for url in urls if url not in used)


# -- the conversation ----------------------------------------------------------------------------------


def _place_answers(
    draft: _Draft, conversation: Iterable[Mapping[str, JSON]], fields: Mapping[str, Field], prompt: str
) -> None:
    known = {name: candidate for name, candidate in fields.items() if name != prompt and _words(name)}
    if not known:
        return
    pattern = _answer_pattern(known)
    by_words = {"_".join(_words(name)): name for name in known}
    answers: dict[str, JSON] = {}
    for turn in conversation:
        if turn.get("role") in ("user", "human"):
            for words, value in _answers(_turn_text(turn), pattern):
                name = words if words in known else by_words.get("_".join(_words(words)), "")
                converted = _converted(value, known[name]) if name else None
                if converted is not None:
                    answers[name] = converted
    for name, value in answers.items():
        draft.fill(name, value, "conversation")


def _answer_pattern(known: Iterable[str]) -> re.Pattern[str]:
    spellings = {re.escape(name) for name in known}
    spellings |= {r"[ _-]".join(map(re.escape, name.split("_"))) for name in known}
    names = "|".join(sorted(spellings, key=lambda one: (-len(one), one)))
    return re.compile(rf"(?<![\w.?&/=-])({names})[\"'`*]{{0,3}}[ \t]{{0,3}}[:=]", re.IGNORECASE)


def _answers(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    """`(key, value text)` in order: a value goes to the next known key or the end of its line."""
    for line in text.splitlines():
        found = list(pattern.finditer(line))
        ends = [*(match.start() for match in found[1:]), len(line)]
        for match, end in zip(found, ends, strict=False):  # one end too many on a line without an answer
            value = line[match.end() : end].strip().rstrip(",;|& ")
            yield match.group(1), _first_word(value) if match.group().endswith("=") else value


def _first_word(value: str) -> str:
    """What `key=value` gives: a quoted string or JSON whole, else up to a blank, comma or semicolon."""
    if value[:1] in ("[", "{"):
        return value
    if value[:1] in ("'", '"') and (end := value.find(value[0], 1)) > 0:
        return value[1:end]
    return re.split(r"[\s,;]", value, maxsplit=1)[0]


def _converted(text: str, candidate: Field) -> JSON:
    """The answer in the type of its field; null where it does not convert."""
    for spelled in dict.fromkeys((_bare(text), _bare(_first_word(text)))):
        value = _member(spelled, candidate) if not candidate.free else _typed(spelled, candidate)
        if value is not None:
            return value
    return None


def _bare(text: str) -> str:
    return text.strip().strip("\"'`*").rstrip(".,;!?").strip()


def _member(text: str, candidate: Field) -> JSON:
    options = candidate.facets.get("enum", [candidate.facets.get("const")])
    spelled = [(schemas.spelled(option), option) for option in options]
    exact = [option for shown, option in spelled if shown == text]
    alike = [option for shown, option in spelled if shown.casefold() == text.casefold()]
    return next(iter((*exact, *alike)), None)


def _typed(text: str, candidate: Field) -> JSON:
    match candidate.type:
        case "integer":
            return int(text) if re.fullmatch(r"[+-]?[0-9]{1,15}", text) else None
        case "number":
            plain = re.fullmatch(r"[+-]?[0-9]{0,15}(?:\.[0-9]{1,15})?(?:[eE][+-]?[0-9]{1,2})?", text)
            return float(text) if plain and any(map(str.isdigit, text)) and text[0] not in "eE" else None
        case "boolean":
            return _BOOLEANS.get(text.lower())
        case "array":
            return _listed(text, candidate)
        case "object":
            value = _parsed(text)
            return value if isinstance(value, dict) else None
        case _:
            if candidate.kind in (None, "text"):
                return text or None
            return next(iter(urls_in(text)), None)


_BOOLEANS: Final = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


def _listed(text: str, candidate: Field) -> JSON:
    value = _parsed(text)
    if isinstance(value, list):
        return value
    items = candidate.facets.get("items")
    sample = candidate.sample[0] if isinstance(candidate.sample, list) and candidate.sample else None
    one = Field(candidate.name, items if isinstance(items, Mapping) else {}, sample)
    parts = [_converted(part, one) for part in text.strip("[]").split(",") if part.strip()]
    return parts if parts and None not in parts else None


def _parsed(text: str) -> JSON:
    try:
        return json.loads(text, parse_constant=_no_constant) if text[:1] in ("[", "{") else None
    except (ValueError, RecursionError):
        return None


def _no_constant(name: str) -> JSON:
    raise ValueError(name)


def _turn_parts(turn: Mapping[str, JSON]) -> list[JSON]:
    said = next((turn[key] for key in ("content", "text", "message") if turn.get(key)), None)
    return list(said) if isinstance(said, list | tuple) else [said]


def _turn_text(turn: Mapping[str, JSON]) -> str:
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in _turn_parts(turn)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _turn_files(turn: Mapping[str, JSON]) -> list[str]:
    parts = [part.get("image_url") for part in _turn_parts(turn) if isinstance(part, Mapping)]
    urls = [part.get("url") if isinstance(part, Mapping) else part for part in parts]
    return [url for url in urls if isinstance(url, str) and _URL.match(url)]


# -- the example and the defaults ----------------------------------------------------------------------


def _place_settings(draft: _Draft, root: JSON | None, fields: Mapping[str, Field]) -> None:
    for name, candidate in fields.items():
        kept = _emptied(root, candidate) if candidate.sampled else None
        if kept is not None or (candidate.sampled and _keeps_null(candidate)):
            draft.fill(name, kept, "example")
        elif _is_negative(name):
            if candidate.required:
                draft.fill(name, "", "default")
        elif candidate.kind is None and candidate.facets.get("default") is not None:
            draft.fill(name, copy.deepcopy(candidate.facets["default"]), "default")


def _emptied(root: JSON | None, candidate: Field) -> JSON:
    """What the sample leaves behind: null for content, `[]` for an array, objects field by field."""
    if _is_negative(candidate.name) and candidate.type in ("string", None):
        return ""
    if candidate.kind is not None:
        return None
    if isinstance(candidate.sample, list | tuple):
        return [] if candidate.required or not candidate.facets.get("minItems") else None
    if not isinstance(candidate.sample, Mapping):
        return candidate.sample
    inner = _inner(root, candidate)
    kept = {name: _emptied(root, one) for name, one in inner.items() if one.sampled}
    rest = {name: value for name, value in kept.items() if value is not None or _keeps_null(inner[name])}
    return None if not rest and _kind_by_name(candidate.name) else rest


def _keeps_null(candidate: Field) -> bool:
    """A setting whose sample is null stays null where no schema says otherwise."""
    return candidate.sample is None and candidate.kind is None and not candidate.facets


def _baseline(draft: _Draft, example: Mapping[str, JSON] | None) -> dict[str, JSON]:
    defaults = {name: draft.payload[name] for name, origin in draft.origins.items() if origin == "default"}
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
    wanted = [name for name in schemas.required(schema, schema) if not _is_negative(name)]
    absent = missing(payload, schema)
    scores = [0.0 if name in absent else 0.5 if name in guessed else 1.0 for name in wanted]
    mean = sum(scores) / len(scores) if scores else 1.0
    return round(mean * (0.5 if schemas.violations(schema, payload) else 1.0), 4)


def _derived(sample: JSON) -> dict[str, JSON]:
    named = json_type(sample)
    return {} if named is None else {"type": named}


def _without(mapping: Mapping[str, JSON], name: str) -> dict[str, JSON]:
    return {key: value for key, value in mapping.items() if key != name}
