"""What a chat server says, read: chunks put together, errors told apart. Pure, and without the SDK.

Shapes: the API reference of OpenAI's chat completions, and what servers that speak it do besides.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from service.domain import form
from service.domain.call import Answered, InvalidInput, Outcome, OutcomeUnknown, ProviderFailed, Rejected, Unreachable
from service.domain.canonical import JSON
from service.providers.http import issues_of, retry_after_s

# Text that comes in pieces; what else a delta holds is kept as it last was.
_JOINED: Final = ("content", "refusal", "reasoning_content", "reasoning")
_FILTERED: Final = ("content_filter", "content_policy_violation")  # looked up with whatever came
# Fields of a request that no edit of the payload mends.
_NOT_THE_PAYLOADS: Final = frozenset({"model", "stream", "stream_options"})
_LISTS: Final = ("errors", "detail", "details", "issues", "invalid_fields")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h|d)")
_WAIT_IN_TEXT: Final = re.compile(r"try again in ((?:\d{1,9}(?:\.\d{1,9})?(?:ms|s|m|h|d))+)", re.IGNORECASE)
MAX_LEVELS: Final = 100
_LONE: Final = re.compile("[\ud800-\udfff]")


@dataclass(slots=True)
class Answer:
    """A completion in the making. `size` counts what is kept of it, in bytes; `done`: the server said that it ended."""

    head: dict[str, JSON] = field(default_factory=dict)
    choice: dict[str, JSON] = field(default_factory=dict)
    message: dict[str, JSON] = field(default_factory=dict)
    pieces: dict[str, list[str]] = field(default_factory=dict)
    logprobs: dict[str, list[JSON]] = field(default_factory=dict)
    size: int = 0
    done: bool = False

    @property
    def text(self) -> str:
        return repaired("".join(self.pieces.get("content", ())))

    @property
    def refusal(self) -> str:
        return repaired("".join(self.pieces.get("refusal", ())))

    @property
    def whole(self) -> bool:
        """Whether the server said that it stopped, or why: else the stream was cut."""
        return self.done or self.choice.get("finish_reason") is not None

    def add(self, chunk: Mapping[str, JSON]) -> bool:
        """Take one chunk, or a whole completion. Whether the text grew."""
        _keep(self.head, chunk, but=("choices", "object", "obfuscation"))
        before = len(self.pieces.get("content", ()))
        for choice in _listed(chunk.get("choices")):
            if isinstance(choice, Mapping) and not choice.get("index"):
                self._add_choice(choice)
        return len(self.pieces.get("content", ())) > before

    def _add_choice(self, choice: Mapping[str, JSON]) -> None:
        _keep(self.choice, choice, but=("index", "delta", "message", "logprobs"))
        said = choice.get("delta") or choice.get("message")
        if isinstance(said, Mapping):
            _keep(self.message, said, but=_JOINED)
            for name in _JOINED:
                if piece := _text(said.get(name)):
                    self.pieces.setdefault(name, []).append(piece)
                    self.size += len(piece.encode("utf-8", "surrogatepass"))
        if isinstance(choice.get("logprobs"), Mapping):
            for name, entries in choice["logprobs"].items():
                self.logprobs.setdefault(name, []).extend(_listed(entries))
                self.size += len(orjson.dumps(storable(entries)))

    def completion(self) -> dict[str, JSON]:
        """The answer in the shape in which it comes when it is not streamed."""
        joined = {name: "".join(pieces) for name, pieces in self.pieces.items()}
        message = {"role": "assistant", "content": None, "refusal": None, **self.message, **joined}
        choice = {"index": 0, "finish_reason": None, **self.choice, "message": message}
        if self.logprobs:
            choice["logprobs"] = self.logprobs
        found: dict[str, JSON] = storable({**self.head, "object": "chat.completion", "choices": [choice]})
        return found

    def answered(self, prices: Mapping[str, float] | None, *, raw: JSON = None, filtered: bool = False) -> Answered:
        """`filtered`: an error said so, and not the finish reason."""
        flags = ["refusal"] if self.refusal else []
        if filtered or self.choice.get("finish_reason") in _FILTERED:
            flags.append("content_filter")
        ref = self.head.get("id")
        return Answered(
            output=self.text or self.refusal,
            raw=self.completion() if raw is None else storable(raw),
            provider_ref=repaired(ref).replace("\0", "") or None if isinstance(ref, str) else None,
            safety_flags=flags,
            cost_usd=cost_usd(self.head.get("usage"), prices),
        )


def read(body: JSON, prices: Mapping[str, float] | None) -> Outcome:
    """The answer of a server that does not stream."""
    answer = Answer()
    if isinstance(body, Mapping) and body.get("error"):
        return broken_off(body["error"], answer, prices)
    if isinstance(body, Mapping):
        answer.add(body)
    if not answer.choice and not answer.message and not answer.pieces:
        return ProviderFailed("the provider's answer holds no choice", raw=storable(body))
    return answer.answered(prices, raw=body)


def broken_off(error: JSON, answer: Answer, prices: Mapping[str, float] | None) -> Outcome:
    """An error after the answer began. What the provider's filter stopped is an answer for a human to see."""
    raw = {**answer.completion(), "error": error}
    if _code(error) in _FILTERED:
        return answer.answered(prices, raw=raw, filtered=True)
    code = f" ({_code(error)})" if re.fullmatch(r"[A-Za-z0-9_.-]{1,60}", _code(error)) else ""
    return ProviderFailed(f"the provider broke off its answer{code}", raw=storable(raw))


def refused(
    status: int, headers: Mapping[str, str], body: JSON, *, payload: Mapping[str, JSON], schema: JSON
) -> Outcome:
    """What an error before any byte of an answer means."""
    raw = storable(body)
    error = raw.get("error", raw) if isinstance(raw, Mapping) else raw
    if _code(error) in _FILTERED:
        return Answered(output="", raw=raw, safety_flags=["content_filter"])
    match status:
        case 400 | 422:
            return _invalid(status, error, raw, form.form(payload, schema, {}, title="")["fields"])
        case 401 | 403:  # no raw: the text may repeat the key
            return Rejected(f"the provider refused the API key, or its rights ({status})")
        case 404:
            return Rejected("the provider does not know the model, or the URL (404)", raw=raw)
        case 408:
            return OutcomeUnknown("the provider gave up waiting (408)")
        case 429:
            what = "the quota is used up" if _code(error) == "insufficient_quota" else "too many requests"
            return Unreachable(f"{what} (429)", wait_s(headers, error))
        case _ if status >= 500:
            return Unreachable(f"the provider answered {status}", retry_after_s(headers.get("retry-after")))
        case _:
            return Rejected(f"the provider answered {status}", raw=raw)


def wait_s(headers: Mapping[str, str], error: JSON) -> float | None:
    """Seconds until the next try makes sense: the header for it, else the limits' resets, else the text."""
    asked = retry_after_s(headers.get("retry-after"))
    if asked is not None:
        return asked
    resets = {kind: _duration(headers.get(f"x-ratelimit-reset-{kind}")) for kind in ("requests", "tokens")}
    used_up = [wait for kind, wait in resets.items() if headers.get(f"x-ratelimit-remaining-{kind}") == "0"]
    known = [wait for wait in used_up or resets.values() if wait is not None]
    said = _WAIT_IN_TEXT.search(_message(error))
    return max(known) if known else _duration(said.group(1)) if said else None


def cost_usd(usage: JSON, prices: Mapping[str, float] | None) -> float | None:
    """By the configured prices; null without them or without the count."""
    if prices is None or not isinstance(usage, Mapping):
        return None
    sent, made = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not isinstance(sent, int) or not isinstance(made, int):
        return None
    return (sent * prices["input_per_million_usd"] + made * prices["output_per_million_usd"]) / 1_000_000


def repaired(text: str) -> str:
    """Halves of a character that came in two pieces put together; no lone half is left, as UTF-8 has none."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if _LONE.search(text) else text


def storable(value: Any, levels: int = MAX_LEVELS) -> Any:
    """The value as it can be stored: strings `repaired`, integers within 64 bit, null for what is nested deeper."""
    match value:
        case str():
            return repaired(value)
        case bool():
            return value
        case int():
            return value if -(2**63) <= value < 2**63 else float(value) if abs(value) < 10**300 else None
        case Mapping() if levels:
            return {repaired(str(name)): storable(inner, levels - 1) for name, inner in value.items()}
        case list() | tuple() if levels:
            return [storable(inner, levels - 1) for inner in value]
        case Mapping() | list() | tuple():
            return None
        case _:
            return value


def _invalid(status: int, error: JSON, raw: JSON, rows: Sequence[Mapping[str, JSON]]) -> Outcome:
    faults = _faults(raw, error)
    named = [fault for fault in faults if fault["field"]]
    if any(fault["field"].partition(".")[0] in _NOT_THE_PAYLOADS for fault in named) or (status == 400 and not named):
        return Rejected(f"the provider answered {status}", raw=raw)
    hints = {row["name"]: row["hint"] or None for row in rows}
    told = [{**fault, "suggested_fix": fault["suggested_fix"] or hints.get(fault["field"])} for fault in faults]
    return InvalidInput(told, raw=raw)


def _faults(body: JSON, error: JSON) -> list[dict[str, Any]]:
    """Every field that the error names: OpenAI's `param`, and the lists of other servers."""
    found: list[dict[str, Any]] = []
    if isinstance(error, Mapping) and error.get("param"):
        params = error["param"] if isinstance(error["param"], list) else [error["param"]]
        found = issues_of([{"param": _dotted(param), "message": _message(error)} for param in params])
    for holder in (error, body) if error is not body else (error,):
        listed = next((holder[key] for key in _LISTS if holder.get(key)), None) if isinstance(holder, Mapping) else None
        found += issues_of({"errors": listed}) if listed else []
    named = {fault["field"]: fault for fault in reversed([{**one, "field": _field(one["field"])} for one in found])}
    if len(named) > 1:
        named.pop("", None)
    return list(reversed(named.values())) or issues_of({"errors": [{"message": _message(error) or None}]})


def _dotted(param: JSON) -> str:
    return re.sub(r"\[(\w+)\]", r".\1", param if isinstance(param, str) else "")


def _field(name: str) -> str:
    """The payload's name for a field of the request: the prompt is what the messages are made of."""
    name = name.removeprefix("extra_body.")
    return "prompt" if name.partition(".")[0] == "messages" else name


def _code(error: JSON) -> str:
    if not isinstance(error, Mapping):
        return ""
    code = error.get("code") or error.get("type")
    return code if isinstance(code, str) else ""


def _message(error: JSON) -> str:
    said = error.get("message") if isinstance(error, Mapping) else error
    return said if isinstance(said, str) else ""


def _duration(text: str | None) -> float | None:
    """Seconds of `6m0s`, `20ms`, `1.5s`, or a bare number of seconds."""
    if not text or not (_DURATION.match(text) or re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text)):
        return None
    parts = _DURATION.findall(text)
    return sum(float(number) * _SECONDS[unit] for number, unit in parts) if parts else float(text)


def _text(value: JSON) -> str:
    """A piece of text, plain or as a list of parts."""
    if isinstance(value, str):
        return value
    parts = [part.get("text") for part in _listed(value) if isinstance(part, Mapping)]
    return "".join(part for part in parts if isinstance(part, str))


def _keep(into: dict[str, JSON], new: Mapping[str, JSON], *, but: Iterable[str]) -> None:
    into |= {name: value for name, value in new.items() if value is not None and name not in but}


def _listed(value: JSON) -> list[JSON]:
    return value if isinstance(value, list) else []
