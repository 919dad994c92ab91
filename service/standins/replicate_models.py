"""The models that the stand-in of Replicate knows, and how it checks an input: in Replicate's own words."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

Json = dict[str, Any]
PNG: Final = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000" + "1f15c4890000000d49444154789c6360f8cfc0"
    "000003010100c9fe92ef0000000049454e44ae426082"
)
FLUX_VERSION: Final = "c846a69991daf4c0e5d016514849d14ee5b2e6846ce6b9d6f21369e564cfe51e"
FLUX_INPUT: Final[Json] = {
    "type": "object",
    "title": "Input",
    "required": ["prompt"],
    "properties": {
        "seed": {"type": "integer", "title": "Seed", "x-order": 3, "description": "For a result that can be had again"},
        "prompt": {"type": "string", "title": "Prompt", "x-order": 0, "description": "What the image shows"},
        "num_outputs": {
            "type": "integer",
            "title": "Num Outputs",
            "default": 1,
            "minimum": 1,
            "maximum": 4,
            "x-order": 2,
        },
        "aspect_ratio": {
            "allOf": [{"$ref": "#/components/schemas/aspect_ratio"}],
            "default": "1:1",
            "x-order": 1,
        },
    },
}
ASPECT_RATIO: Final[Json] = {"type": "string", "title": "aspect_ratio", "enum": ["1:1", "16:9", "9:16"]}


def images(order: Mapping[str, Any], file_url: Callable[[str], str]) -> Any:
    """As many files as the input asks for."""
    return [file_url(f"out-{n}.png") for n in range(int(order.get("num_outputs", 1)))]


@dataclass(frozen=True, slots=True)
class Model:
    """`answer` gets the input, and makes the URL of a file of the prediction by its name."""

    name: str
    input_schema: Mapping[str, Any]
    version: str = FLUX_VERSION
    official: bool = True
    enums: Mapping[str, Any] = field(default_factory=dict)
    example: Mapping[str, Any] | None = None
    answer: Callable[[Mapping[str, Any], Callable[[str], str]], Any] = images

    def openapi(self) -> Json:
        schemas = {"Input": dict(self.input_schema), **self.enums}
        return {"openapi": "3.0.2", "info": {"title": "Cog", "version": "0.1.0"}, "components": {"schemas": schemas}}

    def wire_version(self) -> Json:
        return {
            "id": self.version,
            "created_at": "2024-05-03T14:38:44.903159Z",
            "cog_version": "0.9.7",
            "openapi_schema": self.openapi(),
        }

    def wire(self) -> Json:
        owner, _, name = self.name.partition("/")
        example = {"id": "example0", "status": "succeeded", "input": dict(self.example or {})}
        return {
            "url": f"https://replicate.com/{self.name}",
            "owner": owner,
            "name": name,
            "description": "stands in for a model",
            "visibility": "public",
            "is_official": self.official,
            "run_count": 1,
            "default_example": example if self.example is not None else None,
            "latest_version": self.wire_version(),
        }

    def faults(self, order: Mapping[str, Any]) -> list[Json]:
        """What is wrong with an input, as `invalid_fields` says it."""
        absent = [name for name in self.input_schema.get("required", ()) if name not in order]
        found: list[Json] = [
            {"type": "required", "field": "input", "description": f"{name} is required"} for name in absent
        ]
        for name, node in self.input_schema.get("properties", {}).items():
            if name in order:
                for kind, text in _faults(name, order[name], self._whole(node)):
                    found.append({"type": kind, "field": f"input.{name}", "description": text})
        return found

    def _whole(self, node: Mapping[str, Any]) -> Json:
        refs = [part["$ref"].rsplit("/", 1)[-1] for part in node.get("allOf", ())]
        return {**{key: value for ref in refs for key, value in self.enums[ref].items()}, **node}


_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


def _faults(name: str, value: Any, node: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    wanted = node.get("type", "")
    fits = isinstance(value, _TYPES.get(wanted, (object,))) and (wanted == "boolean" or not isinstance(value, bool))
    if not fits:
        yield "invalid_type", f"Invalid type. Expected: {wanted}, given: {type(value).__name__}"
        return
    if "enum" in node and value not in node["enum"]:
        allowed = ", ".join(f'"{one}"' for one in node["enum"])
        yield "enum", f"{name} must be one of the following: {allowed}"
    if "maximum" in node and value > node["maximum"]:
        yield "number_lte", f"Must be less than or equal to {node['maximum']}"
    if "minimum" in node and value < node["minimum"]:
        yield "number_gte", f"Must be greater than or equal to {node['minimum']}"


FLUX: Final = Model(
    "black-forest-labs/flux-schnell",
    FLUX_INPUT,
    enums={"aspect_ratio": ASPECT_RATIO},
    example={"prompt": "a tiny astronaut hatching from an egg", "num_outputs": 1, "aspect_ratio": "1:1"},
)
