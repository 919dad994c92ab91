import time
from typing import Any

import pytest

from service.domain.detectors import DETECTORS, Detector, Finding, findings, flag_words, pii, register


@pytest.mark.parametrize(
    "value",
    [
        "write to jane.doe+x@example.co.uk.",
        "<a@b.de>",
        "mailto:müller@exämple.de",
        "https://x.example/unsubscribe?mail=jane@example.com",
        "https://x.example/?mail=jane%40example.com",
        "+49 170 1234567",
        "+4915112345678",
        "+1 (555) 123-4567",
        "+44 (0)20 7946 0958",
        "+33 6 12 34 56 78",
        "(555) 123-4567",
        "555-123-4567",
        "1-800-555-0199",
        "555.123.4567",
        "0049 170 1234567",
        "030 12345678",
        "(030) 123456789",
        "0171/1234567",
        "06 12 34 56 78",
        "020 7946 0958",
        "call me at 5551234567",
        "Tel: 0301234567",
        {"phone": "5551234567"},
        {"phone_number": "5551234567"},
        "4111111111111111",
        "my card is 4111 1111 1111 1111, thanks",
        "4242-4242-4242-4242.",
        "3782 822463 10005",
        "378282246310005",
        "5500005555555559",
        "DE89370400440532013000",
        "DE89 3704 0044 0532 0130 00 please pay",
        "iban:GB82 WEST 1234 5698 7654 32",
        "nl91abna0417164300",
        {"a": [{"b": "x@y.org"}]},
        {"x@y.org": 1},
        ["fine", ["a red fox", "x@y.org"]],
    ],
    ids=repr,
)
def test_personal_data_is_seen_wherever_it_stands(value: Any) -> None:
    assert pii(value)
    assert pii({"settings": {"deep": [value]}})


@pytest.mark.parametrize(
    "value",
    [
        "a red fox, watercolour, 8k, 1920x1080",
        "1234567890",
        "seed 4294967295",
        4111111111111111,
        4.111111111111111e15,
        {"seed": 4111111111111111, "flag": True, "none": None},
        "4111111111111112",
        "1700000000000",
        "1234567812345670",
        "DE89370400440532013001",
        "XX89370400440532013000",
        "550e8400-e29b-41d4-a716-446655440000",
        "12345678-1234-1234-1234-123456789012",
        "d41d8cd98f00b204e9800998ecf8427e",
        "sdxl:39ed52f2a78e934b3ba6e2a89f5b1c712de7dfea535525255b1aa35c5565e08b",
        "2024-01-15T10:30:00+01:00",
        "2024-01-15T10:30:00+0100",
        "2024-01-01 2025-12-31",
        "01-02-2024 10:30",
        "01/02/2024 1234",
        "09:30 - 10:45",
        "00:00:12.345",
        "v1.2.3",
        "192.168.100.200",
        "16:9",
        "3.14159265358979",
        "0.5 0.25 0.125",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16",
        "1.000.000.000",
        "ISBN 978-3-16-148410-0",
        "https://x.example/4111111111111111/555-123-4567.png?id=DE89370400440532013000",
        "data:image/png;base64,iVBORw0KGgo+12345678901/4111111111111111",
        "icon@2x.png",
        "react@18.2.0",
        "react@latest.js",
        "@handle",
        {"call_id": "5551234567"},
        {"version": "0171234567"},
    ],
    ids=repr,
)
def test_seeds_ids_hashes_dates_and_versions_are_no_personal_data(value: Any) -> None:
    assert not pii(value)


@pytest.mark.parametrize(
    "seed",
    [
        "a",
        "a@",
        "a.",
        "0 1",
        "01 23 ",
        "+1",
        "+1 (((",
        "1-",
        "DE89",
        "DE89 ",
        "tel ",
        "tel 1",
        "4111 ",
        "http://",
        "data:a/ ",
    ],
)
def test_a_scan_is_linear_in_the_text(seed: str) -> None:
    def cpu_s(size: int) -> float:
        text = seed * (size // len(seed))
        started = time.process_time()
        pii(text)
        return time.process_time() - started

    # four times the text: four times the work, where a quadratic scan would have sixteen times as much
    assert cpu_s(200_000) < 10 * max(cpu_s(50_000), 0.02)


def test_a_payload_that_holds_a_word_raises_its_flag_whatever_the_case() -> None:
    words = {"Nude": "nsfw", "mickey": "copyright", "unseen": "pii", "": "empty"}

    assert flag_words({"prompt": "a NUDE", "deep": [{"x": "MICKEY mouse"}]}, words) == {"nsfw", "copyright"}
    assert flag_words({"nude": 1}, words) == {"nsfw"}
    assert flag_words({"prompt": "a fox", "n": 4}, words) == frozenset()
    assert flag_words({"prompt": "a nude"}, {}) == frozenset()


# name → what it must see, and the nearest thing that it must not
EDGES: dict[str, tuple[str, str]] = {
    "mail": ("write to a@b.de", "write to a@b"),
    "phone": ("+4915112345678", "+491511"),
    "card": ("4111111111111111", "4111111111111112"),
    "iban": ("DE89370400440532013000", "DE89370400440532013001"),
}


@pytest.mark.parametrize("name", EDGES)
def test_each_detector_stands_on_one_side_of_its_edge(name: str) -> None:
    seen, unseen = EDGES[name]

    assert findings({"prompt": seen}, {}) == [Finding("pii", name, "prompt")]
    assert findings({"prompt": unseen}, {}) == []


def test_the_table_of_edges_has_every_detector() -> None:
    assert EDGES.keys() == DETECTORS.keys()


def test_findings_name_the_field_once_for_each_detector_and_word() -> None:
    payload = {"prompt": "nude, a@b.de and c@d.de", "n": 4, "deep": {"list": ["DE89370400440532013000"]}}

    assert findings(payload, {"nude": "nsfw"}) == [
        Finding("pii", "mail", "prompt"),
        Finding("nsfw", "word", "prompt"),
        Finding("pii", "iban", "deep"),
    ]


def test_a_detector_of_ones_own_raises_its_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.domain.detectors.DETECTORS", dict(DETECTORS))
    register(Detector("tiger", "wildlife", lambda text: "tiger" in text))

    assert findings({"prompt": "a tiger"}, {}) == [Finding("wildlife", "tiger", "prompt")]
    assert findings({"prompt": "a fox"}, {}) == []
