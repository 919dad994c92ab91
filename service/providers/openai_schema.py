"""What a payload of the `openai` provider may hold: the settings of a chat completion, and no tools."""

from collections.abc import Mapping
from typing import Final

from service.domain.canonical import JSON

# What the call itself is made of: the config says it, or we do, and a payload may not.
OURS: Final = ("model", "messages", "stream", "stream_options")
# A tool call would ask somebody to act: nobody here would.
TOOLS: Final = ("tools", "tool_choice", "functions", "function_call", "parallel_tool_calls")

SCHEMA: Final[Mapping[str, JSON]] = {
    "type": "object",
    "required": ["prompt"],
    "properties": {
        "prompt": {"type": "string", "minLength": 1, "description": "Sent as the user's message."},
        "temperature": {"type": "number", "minimum": 0, "maximum": 2},
        "top_p": {"type": "number", "minimum": 0, "maximum": 1},
        "max_tokens": {"type": "integer", "minimum": 1},
        "max_completion_tokens": {"type": "integer", "minimum": 1},
        "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2},
        "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2},
        "seed": {"type": "integer"},
        "reasoning_effort": {"enum": ["none", "minimal", "low", "medium", "high", "xhigh", "max"]},
        "verbosity": {"enum": ["low", "medium", "high"]},
        "response_format": {
            "type": "object",
            "required": ["type"],
            "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}},
        },
        "logit_bias": {"type": "object", "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}},
        "logprobs": {"type": "boolean"},
        "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
    },
    # Checked where they are given, but neither asked for in a form nor found in a conversation, where
    # "stop:" and "n:" are words of the language.
    "patternProperties": {
        "^n$": {"type": "integer", "minimum": 1, "maximum": 1},
        "^stop$": {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "maxItems": 4},
            ]
        },
        f"^({'|'.join((*OURS, *TOOLS))})$": False,
    },
}
