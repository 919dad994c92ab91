"""The parts of a tool's config that several providers share, checked at the door."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from service.domain import schema as schemas
from service.domain.patch import pointer
from service.errors import Invalid


def _checked(value: Any) -> Any:
    schemas.check(value)
    return value


Schema = Annotated[dict[str, Any], AfterValidator(_checked)]
T = TypeVar("T", bound="ToolConfig")
Cost = Annotated[float, Field(ge=0)]


class ToolConfig(BaseModel):
    """Clients send whole catalogue entries: what is not named here is kept and ignored."""

    model_config = ConfigDict(extra="allow", strict=True)
    example_input: dict[str, Any] | None = None


def config_of(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool's config out of its catalogue entry: a `data` that is not empty wins over what stands beside it."""
    nested = entry.get("data")
    return nested if isinstance(nested, Mapping) and nested else entry


def checked(model: type[T], config: Mapping[str, Any], *, tool: str) -> T:
    """The config as its model. Raises `Invalid` with pointers into the request."""
    try:
        return model.model_validate(config)
    except ValidationError as error:
        at = f"/run_input/agent_tool_config/{tool}"
        raise Invalid(
            "the tool's config is not valid",
            errors=[
                {"pointer": at + pointer(e["loc"]), "message": e["msg"].removeprefix("Value error, ")}
                for e in error.errors(include_url=False, include_input=False, include_context=False)
            ],
        ) from None
