"""What a conversation answers: `key: value` and `key=value` in the user's turns, and the files its turns name."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from service.domain import schema as schemas
from service.domain.attachments import urls_in
from service.domain.canonical import JSON
from service.domain.fields import Field, is_url, words_of

_BOOLEANS: Final = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


def answers(conversation: Iterable[Mapping[str, JSON]], fields: Mapping[str, Field]) -> dict[str, JSON]:
    """The values that the user's turns give to these fields, in the type of each; the last one wins."""
    known = {name: one for name, one in fields.items() if words_of(name)}
    if not known:
        return {}
    pattern = _answer_pattern(known)
    by_words = {"_".join(words_of(name)): name for name in known}
    found: dict[str, JSON] = {}
    for turn in conversation:
        if turn.get("role") in ("user", "human"):
            for words, value in _answers(turn_text(turn), pattern):
                name = words if words in known else by_words.get("_".join(words_of(words)), "")
                converted = _converted(value, known[name]) if name else None
                if converted is not None:
                    found[name] = converted
    return found


def turn_text(turn: Mapping[str, JSON]) -> str:
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in _turn_parts(turn)]
    return "\n".join(text for text in texts if isinstance(text, str))


def turn_files(turn: Mapping[str, JSON]) -> list[str]:
    parts = [part.get("image_url") for part in _turn_parts(turn) if isinstance(part, Mapping)]
    urls = [part.get("url") if isinstance(part, Mapping) else part for part in parts]
    return [url for url in urls if isinstance(url, str) and is_url(url)]


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
            if not plain or not any(map(str.isdigit, text)) or text[0] in "eE":
                return None
            whole = re.fullmatch(r"[+-]?[0-9]+", text) and not isinstance(candidate.sample, float)
            return int(text) if whole else float(text)
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
