"""The claims of a bearer token as a principal: which of them say who, of which tenant, in which role."""

from collections.abc import Mapping
from typing import Any, Final, cast, get_args

from service.domain.principal import Principal, Role, reserved
from service.errors import Unauthenticated

CLAIMS: Final[Mapping[str, str]] = {"subject": "sub", "tenant": "tenant", "role": "role", "groups": "groups"}
MAX_NAME: Final = 200


def principal_of(claims: Mapping[str, Any], names: Mapping[str, str]) -> Principal:
    """Raises `Unauthenticated`. `names` goes from our names to the claims' and stands above `CLAIMS`.

    A token without a tenant is of `default` as long as nobody said which claim names the tenant.
    """
    wanted = {**CLAIMS, **names}
    tenant = _claim(claims, wanted["tenant"])
    if tenant is None and "tenant" not in names:
        tenant = "default"
    return Principal(
        _name(_claim(claims, wanted["subject"]), "subject"),
        _name(tenant, "tenant"),
        _role(_claim(claims, wanted["role"])),
        _groups(_claim(claims, wanted["groups"])),
    )


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name, which may be a URL, else by its path: `realm_access.role`."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    return found


def _name(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_NAME or not value.isprintable():
        raise Unauthenticated(f"the token has no usable {what}")
    if what == "subject" and reserved(value):
        raise Unauthenticated("the token's subject is a name of the service's own")
    return value


def _role(value: Any) -> Role:
    """One of our roles: alone, or as the only one of ours in a list."""
    ours = [role for role in (value if isinstance(value, list) else [value]) if role in get_args(Role)]
    if len(ours) != 1:
        raise Unauthenticated("the token names no role of the service")
    return cast("Role", ours[0])


def _groups(value: Any) -> tuple[str, ...]:
    given = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not all(isinstance(group, str) for group in given):
        raise Unauthenticated("the token's groups are no list of names")
    return tuple(given)
