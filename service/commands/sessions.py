"""Use cases of the console's sessions: sign in by a key or by the OIDC provider, be recognised, sign out."""

import secrets
from datetime import timedelta
from typing import Final

from service.commands import principals
from service.commands.context import Services
from service.domain.principal import Principal, Proof
from service.errors import NotFound, Unauthenticated
from service.store import sessions
from service.store.database import EVERY
from service.store.sessions import Session

LASTS: Final = timedelta(hours=12)
SESSION: Final = "console-session"
_STATE, _NONCE, _VERIFIER = "console-state", "console-nonce", "console-verifier"


async def sign_in(services: Services, credential: str) -> tuple[str, Session]:
    """The token of a new session, and the session. Raises `Unauthenticated`, `Unavailable`."""
    principal = await principals.authenticate(services, credential)
    if principal.key_id is None:
        raise Unauthenticated("give an API key; with an account of the provider, sign in there")
    return await _open(services, Session(principal, services.db.now() + LASTS))


async def provider_url(services: Services, started: str, callback: str) -> str:
    """Where the OIDC provider asks the person. `started` is the secret of this attempt, which the browser keeps:
    state, nonce and the verifier derive from it. Raises `NotFound`, `IssuerUnavailable`."""
    if services.sign_on is None:
        raise NotFound("no provider is configured to sign in at")
    sign = services.keyring.sign
    return await services.sign_on.authorization_url(
        callback, state=sign(_STATE, started), nonce=sign(_NONCE, started), verifier=sign(_VERIFIER, started)
    )


async def sign_in_by_code(
    services: Services, started: str, callback: str, *, code: str, state: str, issuer: str | None
) -> tuple[str, Session]:
    """The session of whom the provider names for this code; it ends when its token does.

    Raises `NotFound`, `Unauthenticated`, `IssuerUnavailable`.
    """
    if services.sign_on is None:
        raise NotFound("no provider is configured to sign in at")
    if not started or not services.keyring.verify(_STATE, started, state):
        raise Unauthenticated("this sign-in was not begun in this browser, or too long ago")
    if issuer is not None and not services.sign_on.is_of(issuer):
        raise Unauthenticated("the answer comes from another provider")
    sign = services.keyring.sign
    principal, until = await services.sign_on.redeem(
        code, callback, verifier=sign(_VERIFIER, started), nonce=sign(_NONCE, started)
    )
    return await _open(services, Session(principal, until))


async def recognise(services: Services, token: str) -> Session | None:
    """The session of the cookie. Nothing is remembered in between: what is over is refused at once."""
    async with services.db.connection(EVERY) as conn:
        return await sessions.find(conn, services.keyring.hashes(SESSION, token))


async def sign_out(services: Services, token: str) -> None:
    async with services.db.transaction(EVERY) as conn:
        await sessions.delete(conn, services.keyring.hashes(SESSION, token))


def developer() -> Principal:
    """Who everybody is while authentication is off."""
    return Principal("dev", "default", "admin", shown=Proof("off"))


async def _open(services: Services, session: Session) -> tuple[str, Session]:
    token = secrets.token_urlsafe(32)
    async with services.db.transaction(EVERY) as conn:
        await sessions.insert(conn, services.keyring.hashes(SESSION, token)[0], session)
    return token, session
