"""What a prediction of Replicate means for a call: pure, the same for a create, a look and a webhook's hint."""

import re
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import urlsplit

from service.domain.call import Accepted, Answered, Outcome, OutcomeUnknown, ProviderFailed
from service.domain.canonical import JSON

DELIVERY: Final = ("replicate.delivery", "replicate.com")
_MAX_TOLD: Final = 300
# a model whose safety checker blackens an image succeeds, and says so in its logs or beside the output only
_UNSAFE_LOG: Final = re.compile(
    r"NSFW (?:content|concepts?|images?)\s+(?:was |were |has been )?detected", re.IGNORECASE
)
_UNSAFE_KEYS: Final = ("nsfw_content_detected", "has_nsfw_concept", "has_nsfw_concepts", "nsfw_detected")


def outcome(prediction: Mapping[str, JSON], config: Mapping[str, JSON], *, host: str) -> Outcome:
    """`host` is the API's own: what it serves is a file too."""
    ref = prediction.get("id")
    if not isinstance(ref, str) or not ref:
        return OutcomeUnknown("Replicate's answer names no prediction")
    match prediction.get("status"):
        case "succeeded":
            return _succeeded(prediction, ref, config, host)
        case "failed" | "canceled" | "aborted" as status:
            return ProviderFailed(f"the prediction {_TOLD[status]}{_cause(prediction)}", raw=dict(prediction))
        case _:
            return Accepted(ref)


_TOLD: Final = {"failed": "failed", "canceled": "was canceled", "aborted": "was aborted before it started"}


def _succeeded(prediction: Mapping[str, JSON], ref: str, config: Mapping[str, JSON], host: str) -> Outcome:
    output = prediction.get("output")
    if output is None and prediction.get("data_removed"):
        return ProviderFailed("the prediction's output was deleted before it was read", raw=dict(prediction))
    return Answered(
        output=output,
        raw=dict(prediction),
        provider_ref=ref,
        safety_flags=("nsfw",) if _is_unsafe(prediction) else (),
        cost_usd=_cost_usd(prediction, config),
        files=tuple(dict.fromkeys(url for url in _texts(output) if is_file(url, host))),
    )


def is_file(text: str, host: str) -> bool:
    """Whether the whole text is a URL of a file that Replicate serves, and will delete, or a file in itself."""
    if text.startswith("data:"):
        return ";base64," in text[:200]
    if not text.startswith(("http://", "https://")) or any(c.isspace() for c in text):
        return False
    try:
        served_by = urlsplit(text).hostname or ""
    except ValueError:
        return False
    return served_by == host or any(served_by == name or served_by.endswith(f".{name}") for name in DELIVERY)


def _cause(prediction: Mapping[str, JSON]) -> str:
    error = prediction.get("error")
    return f": {' '.join(error.split())[:_MAX_TOLD]}" if isinstance(error, str) and error.strip() else ""


def _is_unsafe(prediction: Mapping[str, JSON]) -> bool:
    logs, output = prediction.get("logs"), prediction.get("output")
    if isinstance(logs, str) and _UNSAFE_LOG.search(logs):
        return True
    return isinstance(output, Mapping) and any(_says_yes(output.get(key)) for key in _UNSAFE_KEYS)


def _says_yes(value: JSON) -> bool:
    return any(value) if isinstance(value, list) else value is True


def _cost_usd(prediction: Mapping[str, JSON], config: Mapping[str, JSON]) -> float | None:
    """By the second where the config has such a price, else the price of one call, else unknown."""
    metrics = prediction.get("metrics")
    seconds = metrics.get("predict_time") if isinstance(metrics, Mapping) else None
    price = config.get("cost_per_second_usd")
    if price is not None and isinstance(seconds, int | float):
        return float(price) * float(seconds)
    fixed = config.get("estimated_cost_usd")
    return float(fixed) if fixed is not None else None


def _texts(value: JSON) -> Iterator[str]:
    """Every string in it, in order."""
    left = [value]
    while left:
        match left.pop():
            case str() as text:
                yield text
            case list() as items:
                left += reversed(items)
            case Mapping() as members:
                left += reversed(list(members.values()))
            case _:
                pass
