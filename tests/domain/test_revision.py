"""The payloads that a run has had: each edit upon the one before, and only what was let through is the run's."""

from typing import Any

import pytest

from service.domain.approval import Approval, ApprovalStatus, Decision
from service.domain.canonical import payload_sha256
from service.domain.revision import revisions, standing
from tests.domain.make import NOW, PAYLOAD, an_approval, documents


def edit(edits: Any, by: str = "ann") -> Decision:
    return Decision(by, "edit", None, edits, NOW, "http")


def question(status: ApprovalStatus, *decisions: Decision, **more: Any) -> Approval:
    return an_approval(status=status, decisions=decisions, **more)


def test_what_nobody_changed_has_one_revision() -> None:
    (only,) = revisions(documents(), [question(ApprovalStatus.APPROVED)])

    assert (only.payload, only.sha256, only.edit) == (PAYLOAD, payload_sha256(PAYLOAD), None)


def test_each_edit_stands_upon_the_one_before() -> None:
    docs = documents(about={"built": {"prompt": "", "n": 1}}, payload={"prompt": "b", "n": 2})
    first = question(ApprovalStatus.EDITED, edit({"prompt": "a"}), edit({"prompt": "b"}, "bob"))
    second = question(ApprovalStatus.EDITED, edit({"payload": {"n": 2}}))

    found = revisions(docs, [first, second])

    assert [one.payload for one in found] == [
        {"prompt": "", "n": 1}, {"prompt": "a", "n": 1}, {"prompt": "b", "n": 1}, {"prompt": "b", "n": 2},
    ]  # fmt: skip
    assert [one.edit.actor if one.edit else None for one in found] == [None, "ann", "bob", "ann"]
    assert found[2].changes == [{"op": "replace", "path": "/prompt", "from": "a", "value": "b"}]
    assert found[-1].payload == docs.payload


@pytest.mark.parametrize("status", [ApprovalStatus.REJECTED, ApprovalStatus.EXPIRED, ApprovalStatus.CANCELLED])
def test_an_edit_that_was_refused_is_told_and_does_not_stand(status: ApprovalStatus) -> None:
    refused = question(status, edit({"n": 5}))
    taken = question(ApprovalStatus.EDITED, edit({"prompt": "b"}))

    found = revisions(documents(), [refused, taken])

    assert [(one.payload["n"], one.taken) for one in found] == [(1, True), (5, False), (1, True)]


def test_an_edit_that_still_needs_others_is_only_proposed() -> None:
    assert [one.taken for one in revisions(documents(), [question(ApprovalStatus.PENDING, edit({"n": 5}))])] == [
        True, None,
    ]  # fmt: skip


def test_the_edit_of_an_output_is_no_revision_of_the_payload() -> None:
    output = question(ApprovalStatus.EDITED, edit({"response": "x"}), checkpoint_type="response_review")

    assert len(revisions(documents(), [output])) == 1


def test_what_was_erased_has_none() -> None:
    docs = documents(payload=None)

    assert revisions(docs, [question(ApprovalStatus.EDITED, edit(None))]) == []
    assert standing(docs) == []
