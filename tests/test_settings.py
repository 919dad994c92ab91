"""A bad value stops the process with one line that names the variable, what was given and what is allowed."""

import pytest

from service.settings import SettingsError, load_settings, may_embed, require


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.chdir(str(tmp_path))
    for name in ("DATABASE_URL", "REDIS_URL", "HITL_SECRET_KEY", "HITL_HOST", "HITL_AUTH", "HITL_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("HITL_PORT", "eighty", "integer"),
        ("HITL_PORT", "99999", "65535"),
        ("HITL_MAX_JOBS", "0", "greater than or equal to 1"),
        ("HITL_AUTH", "maybe", "'required' or 'off'"),
        ("HITL_LEASE_SECONDS", "-1", "greater"),
        ("LOG_LEVEL", "LOUD", "'DEBUG'"),
        ("LOG_FORMAT", "xml", "'json'"),
        ("HITL_PG_POOLER", "session", "'transaction'"),
        ("REDIS_URL", "http://here", "redis://"),
        ("DATABASE_URL", "mysql://here", "postgresql://"),
        ("REPLICATE_BASE_URL", "api.replicate.com", "https://"),
        ("REPLICATE_API_TOKEN", "two words", "pattern"),
        ("REPLICATE_WEBHOOK_SECRET", "whsec_YQ== odd", "whsec_"),
        ("OPENAI_BASE_URL", "api.example.com/v1", "https://"),
        ("OPENAI_BASE_URL", "http://here:99999/v1", "0-65535"),
        ("OPENAI_API_KEY", "two words", "ASCII"),
        ("HITL_OIDC_ISSUER", "http://id.example.com", "https://"),
        ("HITL_OIDC_ISSUER", "id.example.com", "https://"),
        ("HITL_OIDC_ISSUER", "https://id.example.com?x=1", "without a query"),
        ("HITL_OIDC_CLAIMS", "{", "JSON object"),
        ("HITL_OIDC_CLAIMS", '["sub"]', "JSON object"),
        ("HITL_OIDC_CLAIMS", '{"user": "sub"}', "subject, tenant, role, groups"),
        ("HITL_OIDC_CLAIMS", '{"role": 1}', "JSON object"),
    ],
)
def test_a_bad_value_is_one_line_with_name_value_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, allowed: str
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError) as caught:
        load_settings()

    line = str(caught.value)
    assert line.startswith(f"{name}: got ")
    assert allowed in line
    assert "\n" not in line


def test_a_short_secret_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HITL_SECRET_KEY", "short-secret")

    with pytest.raises(SettingsError, match="32 characters") as caught:
        load_settings()

    assert "short-secret" not in str(caught.value)


def test_several_webhook_secrets_may_be_given_and_a_bad_one_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLICATE_WEBHOOK_SECRET", "whsec_YQ==, whsec_Yg")
    assert load_settings().replicate_webhook_secret == ("whsec_YQ==", "whsec_Yg")

    monkeypatch.setenv("REPLICATE_WEBHOOK_SECRET", "whsec_my!secret")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "my!secret" not in str(caught.value)


def test_a_key_is_neither_repeated_nor_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-good")
    assert "sk-good" not in repr(load_settings())

    monkeypatch.setenv("OPENAI_API_KEY", "sk-bad key")
    with pytest.raises(SettingsError) as caught:
        load_settings()

    assert "sk-bad" not in str(caught.value)


def test_auth_off_is_refused_unless_the_listener_is_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HITL_AUTH", "off")
    monkeypatch.setenv("HITL_HOST", "0.0.0.0")

    with pytest.raises(SettingsError, match="HITL_AUTH"):
        load_settings()


@pytest.mark.parametrize(
    ("host", "required"), [("127.0.0.1", False), ("::1", False), ("localhost", False), ("::", True)]
)
def test_auth_is_required_wherever_others_can_reach(monkeypatch: pytest.MonkeyPatch, host: str, required: bool) -> None:
    monkeypatch.setenv("HITL_HOST", host)

    assert load_settings().auth_required is required
    assert load_settings().http_allow == (frozenset() if required else {"loopback"})


def test_the_environment_wins_over_the_env_file(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    with open(f"{tmp_path}/.env", "w") as env_file:
        env_file.write("HITL_PORT=7001\nHITL_MAX_JOBS=7\n")
    monkeypatch.setenv("HITL_PORT", "7002")

    assert (load_settings().hitl_port, load_settings().hitl_max_jobs) == (7002, 7)


def test_issuer_and_audience_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value, other in (
        ("HITL_OIDC_ISSUER", "https://id.example.com/", "HITL_OIDC_AUDIENCE"),
        ("HITL_OIDC_AUDIENCE", "hitl", "HITL_OIDC_ISSUER"),
    ):
        with monkeypatch.context() as env:
            env.setenv(name, value)
            with pytest.raises(SettingsError, match=f"^{other}: got nothing; allowed: "):
                load_settings()


def test_plain_http_is_for_an_issuer_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HITL_OIDC_ISSUER", "http://127.0.0.1:9000/realm")
    monkeypatch.setenv("HITL_OIDC_AUDIENCE", "hitl")
    monkeypatch.setenv("HITL_OIDC_CLAIMS", '{"role": "realm_access.role"}')

    settings = load_settings()

    assert settings.hitl_oidc_issuer == "http://127.0.0.1:9000/realm"
    assert settings.hitl_oidc_claims == {"role": "realm_access.role"}


def test_a_process_without_urls_says_which_is_missing() -> None:
    with pytest.raises(SettingsError, match="DATABASE_URL: got nothing"):
        require(load_settings())


def test_nothing_is_embedded_on_fly() -> None:
    assert may_embed({}) is True
    assert may_embed({"FLY_APP_NAME": "x"}) is False


def test_a_client_of_the_console_needs_its_issuer_and_a_secret_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HITL_OIDC_CLIENT_SECRET", "a secret of the client")
    with pytest.raises(SettingsError, match=r"^HITL_OIDC_CLIENT_ID: got nothing; allowed: ") as caught:
        load_settings()
    assert "a secret" not in str(caught.value)

    monkeypatch.setenv("HITL_OIDC_CLIENT_ID", "console")
    with pytest.raises(SettingsError, match=r"^HITL_OIDC_ISSUER: got nothing; allowed: "):
        load_settings()
