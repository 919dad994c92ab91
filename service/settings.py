"""Floor 1: the environment, read once and checked; a bad value is one line and exit status 2."""

import ipaddress
import os
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_SECRETS = {"HITL_SECRET_KEY", "HITL_SECRET_KEY_PREVIOUS", "DATABASE_URL", "REDIS_URL", "DIRECT_DATABASE_URL"}


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
    hitl_public_url: str | None = None
    hitl_max_jobs: Annotated[int, Field(ge=1, le=10_000)] = 100
    hitl_poll_delay: Annotated[float, Field(gt=0, le=60)] = 0.5
    hitl_lease_seconds: Annotated[float, Field(ge=1, le=3600)] = 10
    hitl_sweep_seconds: Annotated[float, Field(ge=0.1, le=600)] = 2
    hitl_timer_horizon_seconds: Annotated[float, Field(ge=1, le=30 * 86_400)] = 3600
    hitl_drain_seconds: Annotated[int, Field(ge=1, le=3600)] = 25
    hitl_http_allow: Annotated[tuple[str, ...], NoDecode] | None = None
    hitl_pg_pooler: Literal["transaction"] | None = None
    hitl_metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["json", "console"] | None = None

    @field_validator("hitl_http_allow", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(host.strip().lower() for host in value.split(",") if host.strip())
        return value

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

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).scheme not in ("redis", "rediss", "unix"):
            raise ValueError("a URL that begins with redis:// or rediss://")
        return value

    @property
    def loopback(self) -> bool:
        """Whether the web listener is reachable from this machine only."""
        if self.hitl_host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.hitl_host).is_loopback
        except ValueError:
            return False

    @property
    def auth_required(self) -> bool:
        return (self.hitl_auth or ("off" if self.loopback else "required")) == "required"

    @property
    def public_url(self) -> str:
        """Base of the links and callback URLs that we hand out, without a trailing slash."""
        host = f"[{self.hitl_host}]" if ":" in self.hitl_host else self.hitl_host
        return (self.hitl_public_url or f"http://{host}:{self.hitl_port}").rstrip("/")

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
    return settings


def require(settings: Settings) -> Settings:
    """The settings of a process that talks to the servers: both URLs and the secret are there."""
    for name in ("DATABASE_URL", "REDIS_URL", "HITL_SECRET_KEY"):
        if not getattr(settings, name.lower()):
            allowed = "32 characters or more" if name == "HITL_SECRET_KEY" else "a URL"
            raise SettingsError(f"{name}: got nothing; allowed: {allowed} (`hitl up` starts embedded servers)")
    return settings


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


def _line(error: Any) -> str:
    name = str(error["loc"][0]).upper()
    given = "a value that is not shown" if name in _SECRETS else repr(error["input"])
    allowed = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{name}: got {given}; allowed: {allowed}"
