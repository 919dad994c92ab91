"""Use case of showing who one is: an API key, or a bearer token of the OIDC provider."""

from service.commands import keys
from service.commands.context import Services
from service.domain.principal import Principal
from service.errors import Unauthenticated
from service.store import keys as rows


async def authenticate(services: Services, credential: str) -> Principal:
    """Whose credential it is. Raises `Unauthenticated`, `IssuerUnavailable`, `Unavailable`."""
    if services.issuer is not None and credential.count(".") == 2:  # a JWS; our own keys have no dot
        return await services.issuer.principal(credential)
    return await keys.authenticate(services.db, services.keyring, credential)


async def check_still_good(services: Services, principal: Principal) -> None:
    """Raises `Unauthenticated` where the key was revoked, or key or token ended, since the request came."""
    over = principal.until is not None and principal.until <= services.db.now()
    if principal.key_id is not None:
        async with services.db.connection(principal.tenant) as conn:
            over = over or not await rows.valid(conn, [principal.key_id])
    if over:
        raise Unauthenticated("the key is unknown, expired or revoked")
