"""What a field of a payload is: its schema and sample, what content it carries by name, where the prompt goes."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from service.domain import schema as schemas
from service.domain.attachments import Attachment, Kind, kind
from service.domain.canonical import JSON

Path: TypeAlias = tuple[str, ...]
"""Where a field stands: its name, or that of an object and the name inside it."""

DEFAULT_PROMPT: Final = "prompt"
MEDIA: Final[tuple[Kind, ...]] = ("image", "audio", "video")

# The prompt goes to the first of these that the schema, else the example, knows.
PROMPTS: Final = (
    *("prompt", "text_prompt", "text", "instruction", "instructions", "input", "input_text", "text_input"),
    *("query", "question", "message", "user_prompt", "user_message", "user_input", "input_prompt"),
    *("positive_prompt", "prompts", "texts", "inputs", "content", "q", "search_query"),
    *("caption", "lyrics", "messages"),
)
# Objects that hold the whole request: {"input": {"prompt": …}}.
_WRAPPERS: Final = frozenset(
    {"input", "inputs", "data", "payload", "params", "parameters", "body", "request", "arguments", "args"}
)
_TEXTS: Final = frozenset({*PROMPTS, "transcript"})
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
    | {"save", "with", "add", "disable", "system", "negative", "neg"}
)
_NEGATIVE: Final = ({"negative", "prompt"}, {"neg", "prompt"}, {"n", "prompt"}, {"negative", "prompts"})
# Not what a lone file is for, as long as another field of its kind is there.
_SECONDARY: Final = frozenset({"mask", "last", "end", "tail", "control", "style", "target", "reference", "background"})
# URLs that a config holds for itself.
_NO_FILES: Final = frozenset(
    {"webhook", "callback", "base", "api", "endpoint", "proxy", "redirect", "site", "lora", "weights", "model"}
)
_URL: Final = re.compile(r"\s*(?:(?:https?|ftp|gs|s3|blob|file)://|data:[\w.+-]+[/;,]|www\.)", re.IGNORECASE)
_SCALARS: Final = frozenset({"integer", "number", "boolean"})
_HUMP: Final = re.compile(r"([a-z0-9])([A-Z])")
_WORD: Final = re.compile(r"[a-z0-9]+")


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
        return "uri" in formats or any(map(is_url, _several(self.sample)))

    @property
    def kind(self) -> Kind | None:
        """What content the field carries, null for a setting: by URL-ness and by name, never for numbers."""
        if self.type in _SCALARS or self.type == "object" or not self.free:
            return None
        named = kind_by_name(self.name)
        if not self.is_url:
            return named
        return named if named in MEDIA else self._kind_of_url()

    @property
    def negative(self) -> bool:
        """Whether it says what is not wanted (`negative_prompt`): text that is emptied and never missing."""
        return is_negative(self.name)

    @property
    def takes_files(self) -> bool:
        """Whether a file may go there: not to every URL a config holds (a webhook, weights)."""
        named = kind_by_name(self.name) == "file" and self._is_open
        return self.kind in MEDIA or named

    @property
    def needs_a_file(self) -> bool:
        """A required URL under a name that says nothing: only a guess would fill it."""
        return self.kind == "file" and self.required and self._is_open

    @property
    def distance(self) -> tuple[bool, int]:
        """How far the name is from the plain noun: image, then input_image, then mask and reference_image."""
        words = words_of(self.name)
        return bool(_SECONDARY & set(words)), len(words)

    @property
    def holds_turns(self) -> bool:
        """Whether it is a chat's list of `{role, content}` objects, by schema or sample."""
        items = self.facets.get("items")
        parts = items.get("properties") if isinstance(items, Mapping) else None
        shapes = [parts, *_several(self.sample)]
        return self.type == "array" and any(
            isinstance(one, Mapping) and {"role", "content"} <= one.keys() for one in shapes
        )

    @property
    def takes_text(self) -> bool:
        if self.is_url or not self.free:
            return False
        if self.type == "array":
            items = self.facets.get("items", {})
            texts = not isinstance(items, Mapping) or items.get("type", "string") == "string"
            samples = self.sample if isinstance(self.sample, list | tuple) else ()
            return self.holds_turns or (texts and all(isinstance(one, str) for one in samples))
        return self.type in ("string", None)

    @property
    def category(self) -> str:
        """`content`, `setting` or `hybrid`: text that steers rather than says (negative_prompt), objects."""
        if self.negative:
            return "hybrid"
        if self.kind is not None:
            return "content"
        return "hybrid" if self.name == "system_prompt" or self.type == "object" else "setting"

    @property
    def _is_open(self) -> bool:
        return not set(words_of(self.name)) & _NO_FILES

    def _kind_of_url(self) -> Kind:
        """Of URLs under a name that says less: by a word in it, else by the sample."""
        for word in words_of(self.name):
            if _NOUNS.get(word) in MEDIA:
                return _NOUNS[word]
        kinds = [kind(Attachment(one)) for one in _several(self.sample) if isinstance(one, str)]
        return kinds[0] if kinds and kinds[0] in MEDIA else "file"


def fields_of(root: JSON | None, example: Mapping[str, JSON] | None, node: JSON | None = None) -> dict[str, Field]:
    """Every field that schema (its part `node`) or example knows, by name: the schema's order, then the example's."""
    here = root if node is None else node
    parts, wanted, samples = schemas.properties(root, here), schemas.required(root, here), example or {}
    closed = schemas.facets(root, here).get("additionalProperties") is False
    extra = () if closed else tuple(samples)
    return {
        name: Field(name, schemas.facets(root, parts.get(name)), samples.get(name), name in samples, name in wanted)
        for name in dict.fromkeys((*parts, *extra))
    }


def effective_schema(schema: JSON | None, example: Mapping[str, JSON] | None) -> dict[str, JSON]:
    """What a payload is validated against: the schema given, else one derived from the example.

    A derived one gives each field the JSON type of its sample (null: any), requires the prompt
    (`minLength` 1) and allows fields that it does not name.
    """
    if schema is not None:
        return dict(schema)
    path = prompt_path(None, example)
    parts = {name: _derived(sample) for name, sample in (example or {}).items()}
    prompt = {"type": "string", "minLength": 1}
    if json_type((example or {}).get(path[0])) == "array":
        prompt = {"type": "array", "minItems": 1}
    for name in reversed(path[1:]):
        prompt = {"type": "object", "properties": {name: prompt}, "required": [name]}
    return {
        "type": "object",
        "properties": {path[0]: prompt, **{name: part for name, part in parts.items() if name != path[0]}},
        "required": [path[0]],
        "additionalProperties": True,
    }


def inner_fields(root: JSON | None, outer: Field) -> dict[str, Field]:
    """The fields inside an object."""
    sample = outer.sample if isinstance(outer.sample, Mapping) else None
    return fields_of(root, sample, outer.facets)


def prompt_path(schema: JSON | None, example: Mapping[str, JSON] | None) -> Path:
    """Where the prompt goes: the first known alias of schema, then example, or of an object that wraps the request."""
    fields = fields_of(schema, example)
    top = prompt_alias(fields)
    if top is not None:
        return (top,)
    for name, candidate in fields.items():
        inside = inner_fields(schema, candidate) if candidate.type == "object" else {}
        alias = prompt_alias(inside)
        if alias is not None and (name.lower() in _WRAPPERS or inside[alias].required):
            return (name, alias)
    return (DEFAULT_PROMPT,)


def prompt_alias(fields: Mapping[str, Field]) -> str | None:
    """The best known name for a prompt, those of the schema first; else the only required text."""
    known = {"_".join(_uncounted(name)): name for name in reversed(list(fields)) if fields[name].takes_text}
    ranked = [known[alias] for alias in PROMPTS if alias in known]
    in_schema = [name for name in ranked if fields[name].facets]
    texts = [name for name, one in fields.items() if one.required and one.kind == "text" and one.takes_text]
    return next(iter((*in_schema, *ranked, *(texts if len(texts) == 1 else ()))), None)


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


def is_url(value: JSON) -> bool:
    """Whether a text is a URL, `data:` and storage schemes included."""
    return isinstance(value, str) and bool(_URL.match(value))


def is_negative(name: str) -> bool:
    """Whether the name is that of a text that says what is not wanted."""
    return set(words_of(name)) in _NEGATIVE


def words_of(name: str) -> list[str]:
    """The words of a name in lower case, whatever joins them, numbers left out: `inputImage_2` → input, image."""
    snake = name if name.islower() else _HUMP.sub(r"\1_\2", name).lower()
    words = [word for word in _WORD.findall(snake) if not word.isdigit()]
    return [word.rstrip("0123456789") or word for word in words]


def kind_by_name(name: str) -> Kind | None:
    """By the noun the name ends in: `source_image_url` is an image, `image_size`, `context` are none."""
    words = _uncounted(name)
    while len(words) > 1 and words[-1] in _SUFFIXES and _carries(words[-2:]):
        words.pop()
    if not words or _COUNTS & set(words[:-1]):
        return None
    if words[-1] in _NOUNS:
        return _NOUNS[words[-1]]
    return "text" if "_".join(words) in _TEXTS else None


def _uncounted(name: str) -> list[str]:
    """The words without a last letter that counts: `prompt_a` and `prompt_b` are two prompts."""
    words = words_of(name)
    return words[:-1] if len(words) > 1 and len(words[-1]) == 1 else words


def _carries(pair: list[str]) -> bool:
    return pair[0] in _NOUNS or pair[0] in _SUFFIXES or pair[1] == "input"


def _derived(sample: JSON) -> dict[str, JSON]:
    named = json_type(sample)
    return {} if named is None else {"type": named}


def _several(value: JSON) -> Iterable[JSON]:
    return value if isinstance(value, list | tuple) else [value]
