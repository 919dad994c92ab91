"""What holds a secret shows none of it when it is printed: by a debugger, a traceback, an error tracker."""

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

import service
from service.domain.keyring import Keyring
from service.errors import HitlError, Invalid
from service.providers.config import checked
from service.providers.http import HttpConfig
from service.providers.openai import OpenAIProvider
from service.providers.replicate import ReplicateProvider
from service.providers.replicate_api import ReplicateApi
from service.runtime import Runtime
from service.settings import _SECRETS, Settings

CANARY = "c4nary-" * 6
NOT_SECRET = {"hitl_public_url", "replicate_base_url", "openai_base_url", "otel_exporter_otlp_endpoint"}
"""Settings whose names sound like a secret's and whose values stand in documents and links for all to see."""


@pytest.mark.parametrize("name", sorted(name.lower() for name in _SECRETS))
def test_whoever_prints_the_settings_prints_no_secret(name: str) -> None:
    settings = Settings.model_construct(None, **{name: CANARY})

    for shown in (repr(settings), str(settings), f"{settings!r:.9999}"):
        assert CANARY not in shown
        assert "hitl_port=8811" in shown


def test_a_setting_that_sounds_secret_is_one() -> None:
    sounds = {n for n in Settings.model_fields if any(w in n for w in ("key", "secret", "token", "url", "dsn", "pass"))}

    assert sounds - {name.lower() for name in _SECRETS} <= NOT_SECRET


def test_keyring_and_providers_show_nothing_of_what_they_hold() -> None:
    held: list[Any] = [
        Keyring(CANARY, CANARY + "previous"),
        OpenAIProvider(CANARY, "http://127.0.0.1:1/v1"),
        ReplicateApi(CANARY, "http://127.0.0.1:1"),
        ReplicateProvider(ReplicateApi(CANARY, "http://127.0.0.1:1"), webhook_secrets=("whsec_" + CANARY,)),
    ]

    for one in held:
        for shown in (repr(one), str(one)):
            assert CANARY not in shown
            assert CANARY.encode().hex() not in shown


SOUNDS = re.compile(r"secret|token|password|(^|_)key$|headers|nonce|signature|authorization|private")
NO_SECRET = {
    "approval_token": "the old name of an id",
    "fencing_token": "a number",
    "idempotency_key": "of ours, made for a provider",
    "Held.token": "a number",
    "Key.key": "a public key",
    "Seal.public_key": "a public key",
    "Seal.signature": "of an anchor, to be shown",
    "Reply.headers": "of an answer",
}


def held() -> Iterator[tuple[str, str, bool]]:
    """Class, field and whether its repr shows it, of every dataclass and model of the service."""
    for module in pkgutil.walk_packages(service.__path__, "service."):
        if "standins" in module.name:
            continue
        for name, kind in vars(importlib.import_module(module.name)).items():
            if not isinstance(kind, type) or kind.__module__ != module.name or kind is Settings:
                continue
            if dataclasses.is_dataclass(kind):
                yield from ((name, f.name, f.repr) for f in dataclasses.fields(kind))
            elif issubclass(kind, BaseModel):
                yield from ((name, field, about.repr) for field, about in kind.model_fields.items())


def test_a_field_that_sounds_secret_is_not_shown_by_its_class() -> None:
    shown = {f"{kind}.{name}" for kind, name, in_repr in held() if in_repr and SOUNDS.search(name)}

    assert {name for name in shown if name not in NO_SECRET and name.partition(".")[2] not in NO_SECRET} == set()


def test_a_config_shows_neither_its_headers_nor_does_what_went_wrong_with_it() -> None:
    assert CANARY not in repr(HttpConfig(url="http://h", headers={"X-Key": CANARY}))
    with pytest.raises(Invalid) as refused:
        checked(HttpConfig, {"url": "http://h", "headers": {"X-Key": 1, CANARY: CANARY + "\n"}}, tool="http-agent-tool")
    assert CANARY not in repr(refused.value)


def test_a_runtime_shows_neither_key_nor_password(empty: Runtime) -> None:
    secret = empty.settings.hitl_secret_key
    assert secret
    for one in (empty, empty.settings, empty.services, empty.services.db, empty.services.keyring, empty.redis):
        assert secret not in repr(one)


def test_an_error_shows_its_code_and_its_one_safe_line() -> None:
    @dataclass
    class Held:
        secret: str

    error = HitlError("a line", extra={"approval": Held(CANARY)}, errors=[{"pointer": "/x", "message": "is bad"}])

    for shown in (repr(error), str(error), str(error.args)):
        assert CANARY not in shown
