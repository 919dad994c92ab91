"""Text of others, made safe to judge by: what would turn or hide it is made visible."""

import json
import unicodedata


def visible(text: str) -> str:
    """With every character that is not seen, or that turns the text around, spelled out."""
    if text.isprintable():  # nearly all text is, and pages have much of it
        return text
    return "".join(f"⟨U+{ord(c):04X}⟩" if _hidden(c) else c for c in text)


def visible_json(text: str) -> str:
    """The same JSON, with such characters in its strings escaped."""
    if text.isprintable():
        return text
    return "".join(json.dumps(c)[1:-1] if _hidden(c) else c for c in text)


def _hidden(char: str) -> bool:
    return char not in "\n\t\r\u200d" and unicodedata.category(char) in ("Cc", "Cf")
