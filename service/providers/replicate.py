"""`replicate-agent-tool`: the approved payload as the `input` of one prediction at Replicate.

A create has no idempotency key there, so one that was sent and never answered is not sent again: its webhook
may claim it, else a human is asked. What a webhook says is a hint; the prediction itself is looked at.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final
from urllib.parse import quote

import orjson
from pydantic import BeforeValidator, Field

from service.domain.call import (
    Description,
    InvalidInput,
    Outcome,
    OutcomeUnknown,
    ProviderFailed,
    Rejected,
    Unreachable,
)
from service.domain.canonical import JSON, sha256_hex
from service.domain.standard_webhooks import is_secret
from service.errors import Invalid
from service.providers.config import Cost, ToolConfig, checked
from service.providers.protocol import Provider, Request
from service.providers.replicate_api import TOKENLESS, ReplicateApi, Reply, Silence, refusal
from service.providers.replicate_prediction import outcome
from service.providers.replicate_schema import example_input, faults, input_schema
from service.providers.shelf import Shelf

CREATE_TIMEOUT_S: Final = 60.0
SECRET_TIMEOUT_S: Final = 3.0  # a webhook waits for it
CALL_TIMEOUT_S: Final = 7200.0  # half an hour of run time at most, after a queue of unknown length
MIN_CANCEL_AFTER_S: Final = 5
UNSURE_WAIT_S: Final = 5.0
KEPT_MODELS: Final = 256
MODEL_LIFE_S: Final = 3600.0
RELEASE_LIFE_S: Final = 60.0
SECRET_LIFE_S: Final = 300.0
_NAME: Final = r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"


def _version_id(value: Any) -> Any:
    """An id, whether it is given bare, as `owner/name:id`, or as Replicate's own version object."""
    found = value.get("id") if isinstance(value, Mapping) else value
    return (found.rpartition(":")[2] or None) if isinstance(found, str) else found


class ReplicateConfig(ToolConfig):
    name: Annotated[str, Field(max_length=300, pattern=_NAME + r"(:[\w.-]+)?$")] | None = None
    latest_version: Annotated[
        Annotated[str, Field(max_length=200, pattern=r"^[\w.-]+$")] | None, BeforeValidator(_version_id)
    ] = None
    deployment: Annotated[str, Field(max_length=300, pattern=_NAME + "$")] | None = None
    timeout_seconds: float = Field(default=CALL_TIMEOUT_S, gt=0, le=7 * 86_400)
    estimated_cost_usd: Cost | None = None
    cost_per_second_usd: Cost | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """What is to run: a deployment, else a model, in a version where one is named."""

    model: str
    version: str | None = None
    deployment: str | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Target":
        known = ReplicateConfig.model_validate(config)
        name, _, version = (known.name or "").partition(":")
        return cls(name, version or known.latest_version, known.deployment)

    @property
    def path(self) -> str:
        return f"/v1/deployments/{self.deployment}" if self.deployment else f"/v1/models/{self.model}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a prediction is created, and in which version where the address does not say."""

    path: str
    version: str | None


@dataclass(frozen=True, slots=True)
class Model:
    """What is kept of a model in one version. `official` None: Replicate does not say."""

    version: str | None
    official: bool | None
    schema: JSON
    example: Mapping[str, JSON] | None


@dataclass(frozen=True, slots=True)
class Secret:
    """The account's webhook secret, or that there is none to be had."""

    key: str | None = field(repr=False)


class ReplicateProvider(Provider):
    """Without a token it is listed, and each run with it is told so."""

    name = "replicate"
    tool = "replicate-agent-tool"
    capabilities: tuple[str, ...] = ("schema", "webhook", "poll", "cancel", "files")
    repeatable = False
    poll_s = 30.0
    adopt_s = 30.0

    def __init__(
        self, api: ReplicateApi, *, webhook_secrets: Sequence[str] = (), create_timeout_s: float = CREATE_TIMEOUT_S
    ) -> None:
        self._api = api
        self._webhook_secrets = tuple(webhook_secrets)
        self._create_timeout_s = create_timeout_s
        self._models = Shelf(Model, size=KEPT_MODELS, life_s=MODEL_LIFE_S)
        self._releases = Shelf(Target, size=KEPT_MODELS, life_s=RELEASE_LIFE_S)
        self._secrets = Shelf(Secret, size=1, life_s=SECRET_LIFE_S)

    async def aclose(self) -> None:
        await self._models.aclose()
        await self._releases.aclose()
        await self._secrets.aclose()
        await self._api.aclose()

    def check(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        known = checked(ReplicateConfig, config, tool=self.tool)
        if not known.name and not known.deployment:
            at = f"/run_input/agent_tool_config/{self.tool}/name"
            raise Invalid("the tool's config is not valid", errors=[{"pointer": at, "message": "is required"}])
        return config

    def timeout_s(self, config: Mapping[str, Any]) -> float:
        return ReplicateConfig.model_validate(config).timeout_seconds

    async def describe(self, config: Mapping[str, Any]) -> Description | Unreachable | Rejected:
        model = await self._model(Target.of(config))
        if not isinstance(model, Model):
            return model
        return Description(
            schema=model.schema,
            example=config.get("example_input") or model.example,
            estimated_cost_usd=config.get("estimated_cost_usd"),
        )

    async def call(self, request: Request) -> Outcome:
        if sha256_hex(request.body) != request.payload_sha256:
            raise RuntimeError("the payload is not the one that was let through")
        place = await self._place(Target.of(request.config))
        if not isinstance(place, Place):
            return place
        headers = {}
        if request.run_left_s is not None:
            headers["Cancel-After"] = f"{max(MIN_CANCEL_AFTER_S, int(request.run_left_s))}s"
        timeout_s = min(request.timeout_s, self._create_timeout_s)
        answer = await self._api.create(place.path, self._order(request, place), headers, timeout_s=timeout_s)
        return self._created(answer, request.config)

    async def poll(self, request: Request, provider_ref: str) -> Outcome:
        answer = await self._api.look(f"/v1/predictions/{quote(provider_ref, safe='')}")
        if isinstance(answer, Reply) and answer.status in (404, 410):
            return ProviderFailed("Replicate does not know the prediction any more", raw=answer.body)
        if isinstance(answer, Reply) and answer.ok and answer.object.get("id"):
            return outcome(answer.object, request.config, host=self._api.host)
        return refusal(answer)

    async def cancel(self, config: Mapping[str, Any], secrets: Mapping[str, Any], provider_ref: str) -> bool:
        answer = await self._api.stop(f"/v1/predictions/{quote(provider_ref, safe='')}/cancel")
        return isinstance(answer, Reply) and answer.status < 500 and answer.status != 429

    async def webhook_secrets(self) -> Sequence[str]:
        """Whose signature a webhook must bear; none where none can be had."""
        if self._webhook_secrets or not self._api.token:
            return self._webhook_secrets
        found = await self._secrets.get("default", self._fetch_secret)
        return (found.key,) if found.key else ()

    # what is known of a model

    async def _model(self, target: Target) -> Model | Unreachable | Rejected:
        if not self._api.token:
            return Rejected(TOKENLESS)
        release: Target | Unreachable | Rejected = target
        if target.deployment:
            release = await self._releases.get(target.deployment, lambda: self._fetch_release(target.path))
        if not isinstance(release, Target):
            return release
        return await self._models.get(f"{release.model}:{release.version or ''}", lambda: self._fetch_model(release))

    async def _fetch_release(self, path: str) -> Target | Unreachable | Rejected:
        answer = await self._api.look(path)
        if not (isinstance(answer, Reply) and answer.ok):
            return refusal(answer)
        release = answer.object.get("current_release")
        model = release.get("model") if isinstance(release, Mapping) else None
        if not isinstance(release, Mapping) or not isinstance(model, str) or not re.fullmatch(_NAME, model):
            return Rejected("the deployment has no release")
        return Target(model, _version_id(release.get("version")))

    async def _fetch_model(self, target: Target) -> Model | Unreachable | Rejected:
        answer = await self._api.look(target.path)
        if not (isinstance(answer, Reply) and answer.ok and answer.object):
            return refusal(answer)
        model = answer.object
        latest = model.get("latest_version")
        version: Mapping[str, JSON] = latest if isinstance(latest, Mapping) else {}
        if target.version and version.get("id") != target.version:
            answer = await self._api.look(f"{target.path}/versions/{target.version}")
            if not (isinstance(answer, Reply) and answer.ok and answer.object):
                return refusal(answer)
            version = answer.object
        schema = input_schema(version)
        return Model(_version_id(version), model.get("is_official"), schema, example_input(model, schema))

    async def _fetch_secret(self) -> Secret:
        answer = await self._api.look("/v1/webhooks/default/secret", timeout_s=SECRET_TIMEOUT_S)
        key = answer.object.get("key") if isinstance(answer, Reply) and answer.ok else None
        return Secret(key if isinstance(key, str) and is_secret(key) else None)

    # the create

    async def _place(self, target: Target) -> Place | Unreachable | Rejected:
        """Where the prediction is created: a deployment's own, a version's, or an official model's."""
        if not self._api.token:
            return Rejected(TOKENLESS)
        if target.deployment or target.version:
            return Place(f"{target.path}/predictions" if target.deployment else "/v1/predictions", target.version)
        model = await self._model(target)
        if not isinstance(model, Model):
            return model
        if model.official is False and model.version:  # only official models are run by name alone
            return Place("/v1/predictions", model.version)
        return Place(f"{target.path}/predictions", None)

    def _order(self, request: Request, place: Place) -> bytes:
        """The body of a create: around the approved bytes, just as they were hashed."""
        about: dict[str, Any] = {} if place.version is None else {"version": place.version}
        # Replicate itself calls back https addresses only: a service without one polls
        if request.callback_url.startswith("https://") or self._api.base_url.startswith("http://"):
            about |= {"webhook": request.callback_url, "webhook_events_filter": ["start", "completed"]}
        rest = orjson.dumps(about)[1:]
        return b'{"input":' + request.body + (b"," if about else b"") + rest

    def _created(self, answer: Reply | Silence, config: Mapping[str, Any]) -> Outcome:
        if isinstance(answer, Silence):
            return OutcomeUnknown(answer.problem) if answer.sent else refusal(answer)
        if answer.ok:
            return outcome(answer.object, config, host=self._api.host)
        if answer.status == 422:
            return InvalidInput(faults(answer.body), raw=answer.body)
        if answer.status in (502, 504):
            # a gateway's word: the create may stand. Its webhook, which comes within moments, then claims the
            # call before the next try; so that try waits longer than usual
            return Unreachable(f"Replicate answered {answer.status}", max(answer.reset_s or 0, UNSURE_WAIT_S))
        return refusal(answer)
