"""The providers of this process, by tool id."""

from collections.abc import Mapping, Sequence
from typing import Any

from service.errors import Invalid, NoProvider
from service.providers.config import config_of
from service.providers.protocol import Provider


class Registry:
    def __init__(self, providers: Sequence[Provider]) -> None:
        self._by_tool = {provider.tool: provider for provider in providers}

    def all(self) -> list[Provider]:
        return list(self._by_tool.values())

    def by_tool(self, tool: str) -> Provider:
        """Raises `NoProvider` for a tool that this release does not know."""
        try:
            return self._by_tool[tool]
        except KeyError:
            raise NoProvider(f"no provider for the tool {tool[:100]!r}") from None

    def choose(self, agent_tool_config: Mapping[str, Any] | None) -> tuple[Provider, Mapping[str, Any]]:
        """The provider that a request names, and its checked config. Raises `NoProvider`, `Invalid`."""
        known = [tool for tool in agent_tool_config or {} if tool in self._by_tool]
        if not known:
            raise NoProvider(
                "agent_tool_config names no known tool",
                errors=[_at("", "one of: " + ", ".join(self._by_tool))],
            )
        if len(known) > 1:
            raise Invalid("agent_tool_config names more than one tool", errors=[_at("", "name one tool")])
        assert agent_tool_config is not None
        provider = self._by_tool[known[0]]
        entry = agent_tool_config[known[0]]
        if not isinstance(entry, Mapping):
            raise Invalid("the tool's config is not valid", errors=[_at(f"/{known[0]}", "must be an object")])
        return provider, _checked(provider, entry)


def _checked(provider: Provider, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config as the provider keeps it; a member that is null is one that was left out."""
    config = config_of(entry)
    try:
        return provider.check({name: value for name, value in config.items() if value is not None})
    except Invalid as refusal:
        if config is not entry:  # point into the request as it was sent
            ours = f"/run_input/agent_tool_config/{provider.tool}"
            refusal.errors = tuple(
                {**error, "pointer": f"{ours}/data{error['pointer'].removeprefix(ours)}"} for error in refusal.errors
            )
        raise


def _at(pointer: str, message: str) -> dict[str, str]:
    return {"pointer": f"/run_input/agent_tool_config{pointer}", "message": message}
