"""What a payload must not hold unseen: personal data by checked patterns, and words that raise flags."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from service.domain.canonical import JSON

# Every quantifier is bounded or anchored by what may stand before it, so a scan is linear in the text.
_URL: Final = re.compile(r"(?:https?|ftp|wss?|s3|gs)://\S+|data:[\w.+-]{0,60}/[^\s]+", re.IGNORECASE)
_MAIL: Final = re.compile(
    r"(?<![\w.+'-])[\w.+'-]{1,64}(?:@|%40)((?:[\w-]{1,63}\.){1,8}(?:[^\W\d_]{2,24}|xn--[\w-]{1,59}))(?![\w-])",
    re.IGNORECASE,
)
_DIGIT: Final = re.compile(r"[0-9]")  # most texts hold none, and so no number of any kind
# icon@2x.png, react@latest.js
_FILE_ENDINGS: Final = """
    png jpg jpeg gif webp svg bmp ico pdf js ts css json html htm mjs py txt md mp4 mp3 wav zip gz safetensors
"""
_NO_DOMAINS: Final = frozenset(_FILE_ENDINGS.split())
_BEFORE: Final = r"(?<![\w.,+/=-])"
_AFTER: Final = r"(?![\w]|[.,:/-][0-9])"
_INTERNATIONAL: Final = re.compile(r"(?<![\w+])\+[1-9](?:[ ()./\u2010-\u2015-]{0,3}[0-9]){7,14}" + _AFTER)
_PREFIXED: Final = re.compile(_BEFORE + r"00[1-9][0-9]{0,2}[ ./-](?:[ ()./-]{0,3}[0-9]){6,12}" + _AFTER)
_NORTH_AMERICAN: Final = re.compile(
    r"(?<![\w.,/=-])(?:1[ .-])?(?:\([2-9][0-9]{2}\)[ .-]?[0-9]{3}[ .-][0-9]{4}"
    r"|[2-9][0-9]{2}([ .-])[0-9]{3}\1[0-9]{4})" + _AFTER
)
_NATIONAL: Final = re.compile(
    _BEFORE + r"\(?0(?:[1-9][0-9]{1,4}|[1-9])\)?(?: ?[/-] ?| )[0-9]{2,9}(?:[ -][0-9]{2,9}){0,4}" + _AFTER
)
_DATE: Final = re.compile(r"0[0-9][ /-][0-9]{1,2}[ /-][0-9]{4}")
_ANNOUNCED: Final = re.compile(
    r"(?<![a-z])(?:phone|telephone|tel|mobile|cell|cellphone|fax|whatsapp|telefon|handy|my number"
    r"|call (?:me|us|him|her|them))(?![a-z])[^0-9+\n,;.]{0,20}"
    r"[+(]{0,2}[0-9](?:[ ()./-]{0,3}[0-9]){6,14}(?![\w])",
    re.IGNORECASE,
)
_CARD: Final = re.compile(
    r"(?<![\w+-])(?<![0-9][.,])(?:[2-6][0-9]{12,18}"
    r"|[2-6][0-9]{3}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{1,4}(?:\1[0-9]{1,3})?"
    r"|3[0-9]{3}([ -])[0-9]{6}\2[0-9]{4,5})(?!\w|[.,-][0-9])"
)
_IBAN_START: Final = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?=[ -]?[A-Za-z0-9])")
# Lengths by country: the SWIFT IBAN registry.
_IBAN_LENGTHS: Final[Mapping[str, int]] = {
    country: int(length)
    for length, countries in {
        "15": "NO", "16": "BE", "18": "DK FK FI FO GL NL SD", "19": "MK SI", "20": "AT BA EE KZ LT LU MN XK",
        "21": "CH HR LI LV", "22": "BG BH CR DE GB GE IE ME RS VA", "23": "AE GI IL IQ OM SO TL",
        "24": "AD CZ DZ ES MD PK RO SA SE SK TN VG", "25": "LY PT ST", "26": "IS TR",
        "27": "BI DJ FR GR IT MC MR SM", "28": "AL AZ BY CY DO GT HU LB NI PL SV", "29": "BR EG PS QA UA",
        "30": "JO KW MU YE", "31": "MT SC", "32": "LC", "33": "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Detector:
    """`finds` looks at one text and raises `flag` where it says so. It is pure, quick and never raises."""

    name: str
    flag: str
    finds: Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Finding:
    """What raised a flag: the detector, or `word`, and the payload's field that it was found in."""

    flag: str
    detector: str
    field: str


def findings(payload: Mapping[str, JSON], words: Mapping[str, str]) -> list[Finding]:
    """Everything that `DETECTORS` and those `words` (word → flag) find in a payload, field by field."""
    found: dict[Finding, None] = {}
    for name, value in payload.items():
        member = {name: value}
        for one in DETECTORS.values():
            if any(map(one.finds, _texts(member))):
                found[Finding(one.flag, one.name, name)] = None
        for flag in sorted(flag_words(member, words)):
            found[Finding(flag, "word", name)] = None
    return list(found)


def register(detector: Detector) -> None:
    """Look with this one too, from now on; in place of one of the same name."""
    DETECTORS[detector.name] = detector


def pii(value: JSON) -> bool:
    """Whether any string in `value` (keys too) holds a mail address, phone number, card number or IBAN.

    Cards count by issuer range, length and Luhn's sum, IBANs by country, length and mod 97 (ISO 13616).
    Numbers are not looked at. Inside a URL only a mail address counts: its digits are ids.
    """
    return any(one.finds(text) for text in _texts(value) for one in _PII)


def flag_words(value: JSON, words: Mapping[str, str]) -> frozenset[str]:
    """The flags of those `words` (word → flag) that a string or key in `value` holds, whatever the case."""
    texts = [text.casefold() for text in _texts(value)] if words else []
    return frozenset(flag for word, flag in words.items() if word and any(word.casefold() in text for text in texts))


def _texts(value: JSON, name: str = "") -> Iterator[str]:
    """Every string of a JSON value; that of a member with its name before it, which may announce it."""
    if isinstance(value, str):
        yield f"{name}: {value}" if name else value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _texts(item, key)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, name)


def _has_mail(text: str) -> bool:
    return any(match.group(1).rpartition(".")[2].lower() not in _NO_DOMAINS for match in _MAIL.finditer(text))


def _outside_urls(text: str) -> str:
    return _URL.sub(" ", text)


def _has_phone(text: str) -> bool:
    if not _DIGIT.search(text):
        return False
    text = _outside_urls(text)
    if _INTERNATIONAL.search(text) or _PREFIXED.search(text) or _NORTH_AMERICAN.search(text):
        return True
    return bool(_ANNOUNCED.search(text)) or any(
        9 <= len(_digits(match.group())) <= 12 and not _DATE.match(match.group()) for match in _NATIONAL.finditer(text)
    )


def _has_card(text: str) -> bool:
    if not _DIGIT.search(text):
        return False
    numbers = (_digits(match.group()) for match in _CARD.finditer(_outside_urls(text)))
    return any(_issued(number) and _luhn(number) for number in numbers)


def _issued(number: str) -> bool:
    """Whether an issuer gives out such numbers (ISO/IEC 7812 ranges): spares most ids a wrong alarm."""
    size, two, four = len(number), int(number[:2]), int(number[:4])
    return (
        (number[0] == "4" and size in (13, 16, 19))
        or ((51 <= two <= 55 or 2221 <= four <= 2720) and size == 16)
        or (two in (34, 37) and size == 15)
        or ((300 <= four // 10 <= 305 or two in (36, 38, 39)) and 14 <= size <= 19)
        or ((four == 6011 or 644 <= four // 10 <= 649 or two in (65, 62)) and 16 <= size <= 19)
        or (3528 <= four <= 3589 and 16 <= size <= 19)
        or (two in (50, 56, 57, 58, 60, 63, 67) and size in (16, 18, 19))
    )


def _luhn(number: str) -> bool:
    doubled = (int(digit) * 2 for digit in number[-2::-2])
    total = sum(int(digit) for digit in number[::-2]) + sum(two // 10 + two % 10 for two in doubled)
    return total % 10 == 0


def _has_iban(text: str) -> bool:
    if not _DIGIT.search(text):
        return False
    text = _outside_urls(text)
    return any(_iban_at(text, match.start()) for match in _IBAN_START.finditer(text))


def _iban_at(text: str, start: int) -> bool:
    size = _IBAN_LENGTHS.get(text[start : start + 2].upper())
    if size is None:
        return False
    found, at = "", start
    while len(found) < size and at < len(text):
        separator = found != "" and text[at] in " -" and text[at - 1] not in " -"
        if not separator and not (text[at].isascii() and text[at].isalnum()):
            return False
        found += "" if separator else text[at]
        at += 1
    whole = len(found) == size and not (at < len(text) and text[at].isalnum())
    return whole and _mod97(found.upper()) == 1


def _mod97(iban: str) -> int:
    return int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97


def _digits(text: str) -> str:
    return "".join(char for char in text if "0" <= char <= "9")


_PII: Final = tuple(
    Detector(name, "pii", finds)
    for name, finds in (("mail", _has_mail), ("phone", _has_phone), ("card", _has_card), ("iban", _has_iban))
)
DETECTORS: Final[dict[str, Detector]] = {one.name: one for one in _PII}
"""By name. A package adds its own by an entry point of the group `hitl.detectors` (docs/policies.md)."""
