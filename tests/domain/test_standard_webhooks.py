"""Standard Webhooks: our signatures hold for the reference library and the other way round; nothing hostile raises."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook

from service.domain.standard_webhooks import TOLERANCE_S, sign, verify

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
BODY = b'{"test": 2432232314, "who": "\xc3\xa9"}'


def headers(*signatures: str, at: int, message_id: str = "msg_1") -> dict[str, str]:
    return {"webhook-id": message_id, "webhook-timestamp": str(at), "webhook-signature": " ".join(signatures)}


def test_the_documented_example_has_its_documented_signature() -> None:
    made = sign(SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_reference_library_takes_what_we_sign() -> None:
    at = int(datetime.now(UTC).timestamp())
    assert Webhook(SECRET).verify(BODY, headers(sign(SECRET, "msg_1", at, BODY), at=at))


def test_we_take_what_the_reference_library_signs() -> None:
    at = datetime.now(UTC)
    made = Webhook(SECRET).sign("msg_1", at, BODY.decode())
    assert verify([SECRET], headers(made, at=int(at.timestamp())), BODY, now=at.timestamp())


def test_any_of_several_secrets_and_signatures_is_enough() -> None:
    signatures = ["v1,nonsense", "v2,x", sign(OTHER, "msg_1", 1000, BODY)]
    assert verify([SECRET, OTHER], headers(*signatures, at=1000), BODY, now=1000)
    assert not verify([SECRET], headers(*signatures, at=1000), BODY, now=1000)
    assert not verify([], headers(*signatures, at=1000), BODY, now=1000)


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({}, True),
        ({"webhook-id": "msg_2"}, False),
        ({"webhook-id": ""}, False),
        ({"webhook-timestamp": "1001"}, False),
        ({"webhook-timestamp": "+1000"}, False),
        ({"webhook-timestamp": "1000.0"}, False),
        ({"webhook-timestamp": "\u0661\u0660\u0660\u0660"}, False),
        ({"webhook-timestamp": "9" * 5000}, False),
        ({"webhook-signature": ""}, False),
        ({"webhook-signature": "v1"}, False),
        ({"webhook-signature": "v1,\x00 ,, é"}, False),
    ],
)
def test_only_exactly_what_was_signed_holds(change: dict[str, str], holds: bool) -> None:
    given_headers = {**headers(sign(SECRET, "msg_1", 1000, BODY), at=1000), **change}
    assert verify([SECRET], given_headers, BODY, now=1000) is holds
    assert not verify([SECRET], given_headers, BODY + b" ", now=1000)


@pytest.mark.parametrize(("late_s", "holds"), [(0, True), (TOLERANCE_S, True), (TOLERANCE_S + 1, False)])
@pytest.mark.parametrize("sign_of", [1, -1])
def test_five_minutes_either_way_are_near_enough(late_s: int, holds: bool, sign_of: int) -> None:
    given_headers = headers(sign(SECRET, "msg_1", 100_000, BODY), at=100_000)
    assert verify([SECRET], given_headers, BODY, now=100_000 + sign_of * late_s) is holds


@pytest.mark.parametrize("secret", ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_ä", "whsec_a b"])
def test_what_is_no_secret_is_refused(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_"):
        sign(secret, "msg_1", 1000, BODY)


@given(st.text(), st.text(), st.text(), st.binary())
def test_no_header_makes_it_raise(message_id: str, timestamp: str, signature: str, body: bytes) -> None:
    hostile = {"webhook-id": message_id, "webhook-timestamp": timestamp, "webhook-signature": signature}
    assert verify([SECRET], hostile, body, now=1000) is False
