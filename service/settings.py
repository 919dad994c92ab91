"""Floor 1: the environment, read once and checked; a bad value is one line and exit status 2."""

import base64
import ipaddress
import json
import os
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_SECRETS = {"HITL_SECRET_KEY", "HITL_SECRET_KEY_PREVIOUS", "DATABASE_URL", "REDIS_URL", "DIRECT_DATABASE_URL"}
_SECRETS |= {"REPLICATE_API_TOKEN", "REPLICATE_WEBHOOK_SECRET", "OPENAI_API_KEY"}
_SECRETS |= {"HITL_OIDC_CLIENT_SECRET"}
_SECRETS |= {"WEBSOCKET_URL", "WEBSOCKET_API_KEY", "SENTRY_DSN"}  # a relay's URL may carry a token
_EXTRAS = {
    "OTEL_EXPORTER_OTLP_ENDPOINT": ("otel", "opentelemetry.exporter.otlp.proto.http"),
    "SENTRY_DSN": ("sentry", "sentry_sdk"),
}


class SettingsError(Exception):
    """One line that names the variable, what was given and what is allowed."""


class Settings(BaseSettings):
    """All settings; field names are the environment's, lower case. Times in seconds."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True)

    database_url: str | None = None
    direct_database_url: str | None = None
    redis_url: str | None = None
    hitl_data_dir: str = ".data"
    hitl_host: str = "127.0.0.1"
    hitl_port: Annotated[int, Field(ge=0, le=65535)] = 8811
    hitl_auth: Literal["required", "off"] | None = None
    hitl_secret_key: Annotated[str, Field(min_length=32)] | None = None
    hitl_secret_key_previous: Annotated[str, Field(min_length=32)] | None = None
    hitl_oidc_issuer: str | None = None
    hitl_oidc_audience: str | None = None
    hitl_oidc_claims: Annotated[dict[str, str], NoDecode] | None = None
    hitl_oidc_client_id: Annotated[str, Field(max_length=500)] | None = None
    hitl_oidc_client_secret: str | None = Field(default=None, repr=False)
    hitl_public_url: str | None = None
    hitl_max_jobs: Annotated[int, Field(ge=1, le=10_000)] = 100
    hitl_poll_delay: Annotated[float, Field(gt=0, le=60)] = 0.5
    hitl_lease_seconds: Annotated[float, Field(ge=1, le=3600)] = 10
    hitl_sweep_seconds: Annotated[float, Field(ge=0.1, le=600)] = 2
    hitl_anchor_seconds: Annotated[float, Field(ge=1, le=30 * 86_400)] = 3600
    hitl_timer_horizon_seconds: Annotated[float, Field(ge=1, le=30 * 86_400)] = 3600
    hitl_drain_seconds: Annotated[int, Field(ge=1, le=3600)] = 25
    hitl_http_allow: Annotated[tuple[str, ...], NoDecode] | None = None
    replicate_api_token: Annotated[str, Field(pattern=r"^[!-~]+$")] | None = None
    replicate_base_url: str = "https://api.replicate.com"
    replicate_webhook_secret: Annotated[tuple[str, ...], NoDecode] = ()
    hitl_files: str | None = None
    hitl_files_endpoint: str | None = None
    hitl_file_max_bytes: Annotated[int, Field(ge=1, le=2**40)] = 256 * 1024 * 1024
    websocket_url: str | None = None
    websocket_api_key: Annotated[str, Field(pattern=r"^[!-~]+$")] | None = None
    hitl_pg_pooler: Literal["transaction"] | None = None
    openai_api_key: str | None = None
    openai_base_url: str = "https://api.openai.com/v1"
    hitl_metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    otel_exporter_otlp_endpoint: str | None = None
    sentry_dsn: str | None = None
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["json", "console"] | None = None

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Whoever prints the settings, in a traceback or a debugger, prints no secret."""
        for name, value in super().__repr_args__():
            yield name, "…" if value and (name or "").upper() in _SECRETS else value

    @field_validator("hitl_http_allow", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(host.strip().lower() for host in value.split(",") if host.strip())
        return value

    @field_validator("hitl_oidc_issuer")
    @classmethod
    def _issuer(cls, value: str | None) -> str | None:
        if value is None:
            return None
        url = urlsplit(value)
        plain = url.scheme == "http" and _is_loopback(url.hostname or "")
        if not url.hostname or not (url.scheme == "https" or plain) or url.query or url.fragment or url.username:
            raise ValueError("an https:// URL without a query, or an http:// URL of this machine")
        return value

    @field_validator("hitl_oidc_claims", mode="before")
    @classmethod
    def _claims(cls, value: Any) -> Any:
        """JSON from our names to the claims'."""
        try:
            found = json.loads(value) if isinstance(value, str) else value
        except ValueError:
            found = ()
        ours = isinstance(found, dict) and set(found) <= {"subject", "tenant", "role", "groups"}
        if found is not None and not (ours and all(isinstance(name, str) and name for name in found.values())):
            raise ValueError("a JSON object with names of claims under any of subject, tenant, role, groups")
        return found

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("database_url", "direct_database_url")
    @classmethod
    def _postgres(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).scheme not in ("postgres", "postgresql"):
            raise ValueError("a URL that begins with postgresql://")
        return value

    @field_validator("otel_exporter_otlp_endpoint")
    @classmethod
    def _collector(cls, value: str | None) -> str | None:
        if value is not None and (urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname):
            raise ValueError("a URL that begins with http:// or https://: OTLP over HTTP")
        return value

    @field_validator("sentry_dsn")
    @classmethod
    def _dsn(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "")
        project = parts.path.rpartition("/")[2]
        if value is not None and not (
            parts.scheme in ("http", "https") and parts.hostname and parts.username and project
        ):
            raise ValueError("a DSN as Sentry shows it, https://KEY@HOST/PROJECT")
        return value

    @field_validator("hitl_files")
    @classmethod
    def _files(cls, value: str | None) -> str | None:
        if value is not None and "://" in value and (urlsplit(value).scheme != "s3" or not urlsplit(value).netloc):
            raise ValueError("a folder, or s3://bucket/prefix")
        return value

    @field_validator("hitl_files_endpoint")
    @classmethod
    def _endpoint(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).scheme not in ("http", "https"):
            raise ValueError("a URL that begins with http:// or https://")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).scheme not in ("redis", "rediss", "unix"):
            raise ValueError("a URL that begins with redis:// or rediss://")
        return value

    @field_validator("replicate_base_url", "openai_base_url")
    @classmethod
    def _http(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:  # or it raises
            raise ValueError("a URL that begins with https:// or http://")
        return value

    @field_validator("replicate_webhook_secret", mode="before")
    @classmethod
    def _secrets(cls, value: Any) -> Any:
        return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value

    @field_validator("replicate_webhook_secret")
    @classmethod
    def _standard(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_is_webhook_secret(secret) for secret in value):
            raise ValueError("whsec_ and base64; several separated by blanks")
        return value

    @field_validator("openai_api_key")
    @classmethod
    def _header(cls, value: str | None) -> str | None:
        if value is not None and not (value.isascii() and value.isprintable() and " " not in value):
            raise ValueError("printable ASCII without blanks, as a header carries it")
        return value

    @field_validator("websocket_url")
    @classmethod
    def _relay(cls, value: str | None) -> str | None:
        if value is not None and (
            urlsplit(value).scheme not in ("ws", "wss", "http", "https") or not urlsplit(value).hostname
        ):
            raise ValueError("a URL that begins with wss://, ws://, https:// or http://")
        return value

    @property
    def loopback(self) -> bool:
        """Whether the web listener is reachable from this machine only."""
        return _is_loopback(self.hitl_host)

    @property
    def auth_required(self) -> bool:
        return (self.hitl_auth or ("off" if self.loopback else "required")) == "required"

    @property
    def public_url(self) -> str:
        """Base of the links and callback URLs that we hand out, without a trailing slash."""
        host = f"[{self.hitl_host}]" if ":" in self.hitl_host else self.hitl_host
        return (self.hitl_public_url or f"http://{host}:{self.hitl_port}").rstrip("/")

    @property
    def files(self) -> str:
        """Where output files lie: a folder, or `s3://bucket/prefix`."""
        return self.hitl_files or os.path.join(self.hitl_data_dir, "files")

    @property
    def http_allow(self) -> frozenset[str]:
        """Hosts that may be reached although they are private; `loopback` stands for all of them."""
        if self.hitl_http_allow is not None:
            return frozenset(self.hitl_http_allow)
        return frozenset() if self.auth_required else frozenset({"loopback"})


def load_settings(**overrides: Any) -> Settings:
    """The settings of this process. Raises `SettingsError` with one line for the first bad value."""
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        raise SettingsError(_line(error.errors()[0])) from None
    if settings.hitl_auth == "off" and not settings.loopback:
        raise SettingsError(
            f"HITL_AUTH: got 'off' with HITL_HOST={settings.hitl_host!r}; "
            "allowed: 'required', or 'off' with a loopback address"
        )
    oidc = {"HITL_OIDC_ISSUER": settings.hitl_oidc_issuer, "HITL_OIDC_AUDIENCE": settings.hitl_oidc_audience}
    for missing in [name for name, value in oidc.items() if any(oidc.values()) and value is None]:
        raise SettingsError(f"{missing}: got nothing; allowed: a value, since the other of {' and '.join(oidc)} is set")
    if settings.hitl_oidc_client_id is not None and settings.hitl_oidc_issuer is None:
        raise SettingsError("HITL_OIDC_ISSUER: got nothing; allowed: a URL, since HITL_OIDC_CLIENT_ID is set")
    if settings.hitl_oidc_client_secret is not None and settings.hitl_oidc_client_id is None:
        raise SettingsError("HITL_OIDC_CLIENT_ID: got nothing; allowed: a name, since HITL_OIDC_CLIENT_SECRET is set")
    return settings


def require(settings: Settings) -> Settings:
    """The settings of a process that talks to the servers: both URLs and the secret are there."""
    for name in ("DATABASE_URL", "REDIS_URL", "HITL_SECRET_KEY"):
        if not getattr(settings, name.lower()):
            allowed = "32 characters or more" if name == "HITL_SECRET_KEY" else "a URL"
            raise SettingsError(f"{name}: got nothing; allowed: {allowed} (`hitl up` starts embedded servers)")
    for name, (extra, module) in _EXTRAS.items():
        if getattr(settings, name.lower()) and not _installed(module):
            raise SettingsError(f"{name}: got a value; allowed: one with the extra `{extra}` installed, or none")
    return settings


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package above it
        return False


def load_or_exit(**overrides: Any) -> Settings:
    """The settings, or one line on standard error and exit status 2."""
    try:
        return load_settings(**overrides)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None


def require_or_exit(settings: Settings) -> Settings:
    try:
        return require(settings)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None


def may_embed(environ: Mapping[str, str] = os.environ) -> bool:
    """Never on Fly.io: a machine's disk there is not the place for the truth."""
    return "FLY_APP_NAME" not in environ


def _is_webhook_secret(text: str) -> bool:
    encoded = text.removeprefix("whsec_")
    try:
        return text != encoded and bool(base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True))
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _line(error: Any) -> str:
    name = str(error["loc"][0]).upper()
    given = "a value that is not shown" if name in _SECRETS else repr(error["input"])
    allowed = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{name}: got {given}; allowed: {allowed}"
