"""Sealed content opens with its key, at its place, unchanged; and not otherwise."""

import base64
import secrets
import zlib
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from service.domain import content, packing
from service.domain.delivery import url_host
from service.domain.keyring import Keyring

KEY = content.new_key()
PLACE = "run/run_documents.payload"
json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8"), max_size=2000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


@given(json)
def test_what_is_sealed_opens_as_it_was(value: object) -> None:
    sealed = content.seal(KEY, PLACE, value)
    assert content.is_sealed(sealed)
    assert content.opened(KEY, PLACE, sealed) == value


@given(json)
def test_it_opens_with_no_other_key_and_at_no_other_place(value: object) -> None:
    sealed = content.seal(KEY, PLACE, value)
    for key, place in (
        (content.new_key(), PLACE),
        (KEY, "run/run_documents.output"),
        (KEY, "other/run_documents.payload"),
    ):
        with pytest.raises(content.Unreadable):
            content.opened(key, place, sealed)


@given(st.binary(min_size=1, max_size=3000), st.data())
def test_a_changed_byte_is_found(raw: bytes, data: st.DataObject) -> None:
    sealed = bytearray(content.seal_bytes(KEY, PLACE, raw))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(content.Unreadable):
        content.open_bytes(KEY, PLACE, bytes(sealed))


def test_nothing_of_it_shows_and_twice_is_not_the_same() -> None:
    sealed = content.seal(KEY, PLACE, {"prompt": "a red fox"})
    assert b"red fox" not in base64.b64decode(sealed.removeprefix(content.MARK))
    assert sealed != content.seal(KEY, PLACE, {"prompt": "a red fox"})


def test_what_is_large_is_packed_before() -> None:
    assert len(content.seal_bytes(KEY, PLACE, b'{"name": "value"}' * 500)) < 500


def test_what_is_small_is_packed_too_where_that_helps() -> None:
    known, unknown = b'{"description":{"schema":{"type":"object","properties":{"prompt":', secrets.token_bytes(64)
    assert len(content.seal_bytes(KEY, PLACE, known)) < len(known)
    assert len(content.seal_bytes(KEY, PLACE, unknown)) == len(unknown) + 29


@given(st.binary(max_size=50) | st.sampled_from([packing.WORDS, packing.WORDS[:8192]]), st.integers(1, 400))
def test_what_is_packed_comes_back_whatever_its_size(raw: bytes, times: int) -> None:
    assert packing.unpacked(packing.packed(raw * times)) == raw * times


def test_the_words_are_those_that_stored_content_was_packed_with() -> None:
    """Other words would open none of it: they would be another kind."""
    assert sha256(packing.WORDS).hexdigest() == "ce032d529b6a3b98f45bcbbf25abc1374bf9d9569c6acb7360cc5148d7f8d70c"


@pytest.mark.parametrize("kind", [b"\x01", b"\x02"])
def test_what_a_release_of_before_sealed_opens(kind: bytes) -> None:
    raw, nonce = b'{"prompt":"a red fox"}', secrets.token_bytes(12)
    body = zlib.compress(raw, 1) if kind == b"\x02" else raw
    sealed = kind + nonce + AESGCM(KEY).encrypt(nonce, body, kind + PLACE.encode())
    assert content.are_sealed(sealed)
    assert content.open_bytes(KEY, PLACE, sealed) == raw


@pytest.mark.parametrize("text", ["", "hitl-sealed:", "hitl-sealed:!", "hitl-sealed:QUJD", "plain"])
def test_what_was_never_sealed_does_not_open(text: str) -> None:
    with pytest.raises(content.Unreadable):
        content.opened(KEY, PLACE, text)


@pytest.mark.parametrize("url", ["https://user:pw@Example.com:8443/a?b#c", "http://127.0.0.1:9/x", "http://[::1]:80"])
def test_of_a_sealed_url_only_the_host_is_left(url: str) -> None:
    host = url_host(url)
    assert host
    sealed = content.seal_url(KEY, PLACE, url, host)
    assert url_host(sealed) == host
    assert content.opened_url(KEY, PLACE, sealed) == url
    assert "pw" not in sealed.removeprefix("sealed://").partition("/")[0]


def test_a_wrapped_key_is_good_for_its_subject_and_for_the_secret_before() -> None:
    old, new, newest = "o" * 32, "n" * 32, "m" * 32
    wrapped = Keyring(old).wrap(KEY, b"run")
    assert Keyring(new, old).unwrap(wrapped, b"run") == KEY
    assert Keyring(new, old).unwrap(wrapped, b"other") is None
    assert Keyring(newest, new).unwrap(wrapped, b"run") is None
    assert Keyring(new, old).unwrap(wrapped[:-1] + bytes([wrapped[-1] ^ 1]), b"run") is None
