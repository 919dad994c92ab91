"""Use case of showing who one is: an API key, or a bearer token of the OIDC provider."""

from service.commands import keys
from service.commands.context import Services
from service.domain.principal import Principal


async def authenticate(services: Services, credential: str) -> Principal:
    """Whose credential it is. Raises `Unauthenticated`, `IssuerUnavailable`, `Unavailable`."""
    if services.issuer is not None and credential.count(".") == 2:  # a JWS; our own keys have no dot
        return await services.issuer.principal(credential)
    return await keys.authenticate(services.db, services.keyring, credential)
