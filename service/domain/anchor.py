"""Anchors: signed hashes over the ends of chains, each bound to the one before, by a key that Postgres does not have.

Whoever rewrites a run whole, with hashes that fit, cannot make the anchor fit that saw it before.
"""

import base64
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from service.domain.canonical import canonical, sha256_hex
from service.domain.event import rfc3339
from service.domain.keyring import Keyring

PURPOSE: Final = "anchor"


@dataclass(frozen=True, slots=True)
class End:
    """Where a run's chain ended."""

    run_id: UUID
    tenant: str
    seq: int
    hash: str


@dataclass(frozen=True, slots=True)
class Seal:
    """A signature and whose it is. `public_key` is good only if somebody vouches for it."""

    key_id: str
    public_key: str
    signature: str


@dataclass(frozen=True, slots=True)
class Anchor:
    n: int
    at: datetime
    heads: int
    root: str
    prev_hash: str
    hash: str
    seal: Seal


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What a purge leaves of a run."""

    end: End
    at: datetime
    seal: Seal


class Signer:
    """Signs with the current secret's key."""

    def __init__(self, keyring: Keyring) -> None:
        self._key: Ed25519PrivateKey = keyring.signing_keys(PURPOSE)[0]
        self._public = public_text(self._key)

    def seal(self, digest: str) -> Seal:
        return Seal(key_id(self._public), self._public, _text(self._key.sign(_said(digest))))


def public_keys(keyring: Keyring) -> list[str]:
    """The public halves of the keys that this secret and the previous one sign with."""
    return [public_text(key) for key in keyring.signing_keys(PURPOSE)]


def public_text(key: Ed25519PrivateKey) -> str:
    return _text(key.public_key().public_bytes_raw())


def key_id(public_key: str) -> str:
    return sha256(public_key.encode()).hexdigest()[:16]


def is_public_key(text: str) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(_bytes(text))
    except ValueError:
        return False
    return True


def made(n: int, at: datetime, ends: Sequence[End], prev_hash: str, signer: Signer) -> Anchor:
    root = root_of(leaf(end) for end in ends)
    digest = anchor_hash(n, at, len(ends), root, prev_hash)
    return Anchor(n, at, len(ends), root, prev_hash, digest, signer.seal(digest))


def leaf(end: End) -> str:
    """One end as it goes into the root. It cannot be guessed: who is shown only leaves learns of no run."""
    return sha256_hex(canonical([str(end.run_id), end.tenant, end.seq, end.hash]))


def root_of(leaves: Iterable[str]) -> str:
    """SHA-256 over the leaves, in their own order."""
    return sha256_hex("".join(sorted(leaves)).encode())


def anchor_hash(n: int, at: datetime, heads: int, root: str, prev_hash: str) -> str:
    body = {"n": n, "at": rfc3339(at), "heads": heads, "root": root, "prev_hash": prev_hash}
    return sha256_hex(canonical(body))


def tombstone(end: End, at: datetime, signer: Signer) -> Tombstone:
    return Tombstone(end, at, signer.seal(_stone_hash(end, at)))


def stone_fault(stone: Tombstone, trusted: Collection[str]) -> str | None:
    return seal_fault(stone.seal, _stone_hash(stone.end, stone.at), trusted)


def seal_fault(seal: Seal, digest: str, trusted: Collection[str]) -> str | None:
    """What is wrong with a signature, if anything is."""
    if seal.public_key not in trusted:
        return f"is signed by the key {seal.key_id}, which nobody vouches for (--key)"
    try:
        Ed25519PublicKey.from_public_bytes(_bytes(seal.public_key)).verify(_bytes(seal.signature), _said(digest))
    except (InvalidSignature, ValueError):
        return "is not what was signed"
    return None


def fault(anchor: Anchor, before: Anchor | None, leaves: Iterable[str], trusted: Collection[str]) -> str | None:
    """What is wrong with an anchor, if anything is: its place, its heads, its hash or its signature."""
    if anchor.n != (before.n + 1 if before else 1) or anchor.prev_hash != (before.hash if before else ""):
        return "does not follow the anchor before it"
    if anchor.hash != anchor_hash(anchor.n, anchor.at, anchor.heads, anchor.root, anchor.prev_hash):
        return "was changed: its hash does not match"
    if root_of(leaves) != anchor.root:
        return "was changed: the ends of chains that it is over are not those that were signed"
    return seal_fault(anchor.seal, anchor.hash, trusted)


def moved(known: End, tenant: str | None, events: Sequence[Mapping[str, Any]]) -> str | None:
    """What an anchored end says against the chain as it is. `tenant` None: not known here."""
    if tenant is not None and tenant != known.tenant:
        return "belongs to another tenant than when it was anchored"
    there = events[known.seq - 1] if 0 < known.seq <= len(events) else None
    if there is None:
        return "is missing: it was anchored"
    if there["hash"] != known.hash:
        return "was rewritten since it was anchored"
    return None


def _stone_hash(end: End, at: datetime) -> str:
    return sha256_hex(canonical(["purged", str(end.run_id), end.tenant, end.seq, end.hash, rfc3339(at)]))


def _said(digest: str) -> bytes:
    return f"hitl:anchor:{digest}".encode()


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
