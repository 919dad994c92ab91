"""The rules by which one answer wins."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.domain.approval import (
    TIMEOUT_ACTOR,
    Approval,
    ApprovalStatus,
    Decision,
    Order,
    Verdict,
    cancelled,
    check_open,
    check_payload,
    claimed,
    escalated,
    escalates,
    judge,
    let_go,
    may_decide,
    restarted,
    same_answer,
    silent_verdict,
    stopped,
)
from service.domain.canonical import payload_sha256
from service.domain.delegation import delegated
from service.domain.policy import Checkpoint, EscalateTo, Reviewers
from service.errors import (
    AlreadyDecided,
    ApprovalClaimed,
    ApprovalExpired,
    Conflict,
    Forbidden,
    HitlError,
    Invalid,
    InvalidPayload,
    NotAReviewer,
    PayloadChanged,
    SelfApproval,
)
from tests.domain.make import NOW, PAYLOAD, an_approval, who

S = ApprovalStatus
APPROVE, REJECT = Order("approve"), Order("reject", reason="no")
TWO = Reviewers(quorum=2)


def ruled(approval: Approval, order: Order, name: str = "ann", now: datetime = NOW) -> Verdict:
    return judge(approval, order, who(name), now=now, channel="http")


def edit(**patch: Any) -> Order:
    return Order("edit", edits=patch)


def refused(error: type[HitlError], approval: Approval, order: Order, name: str = "ann") -> HitlError:
    with pytest.raises(error) as refusal:
        ruled(approval, order, name)
    return refusal.value


def where(error: HitlError) -> list[str]:
    return [entry["pointer"] for entry in error.errors]


# Who


@pytest.mark.parametrize(
    ("reviewers", "principal", "allowed"),
    [
        (Reviewers(), who("anyone"), True),
        (Reviewers(users=["ann"]), who("ann"), True),
        (Reviewers(users=["ann"]), who("bob"), False),
        (Reviewers(users=["ann"]), who("bob", "ann"), False),
        (Reviewers(groups=["legal"]), who("bob", "legal", "x"), True),
        (Reviewers(groups=["legal"]), who("legal"), False),
        (Reviewers(users=["ann"], groups=["legal"]), who("bob", "legal"), True),
        (Reviewers(users=["ann"], groups=["legal"]), who("ann"), True),
        (Reviewers(users=["ann"]), replace(who("root"), role="admin"), False),
    ],
)
def test_a_list_of_reviewers_binds_everybody(reviewers: Reviewers, principal: Any, allowed: bool) -> None:
    approval = an_approval(reviewers=reviewers)
    if allowed:
        may_decide(approval, principal)
    else:
        with pytest.raises(NotAReviewer):
            may_decide(approval, principal)


@pytest.mark.parametrize(
    ("reviewers", "name", "allowed"),
    [
        (Reviewers(), "dev", True),
        (Reviewers(), "carol", True),
        (Reviewers(allow_self_approval=False), "dev", False),
        (Reviewers(allow_self_approval=False), "carol", False),
        (Reviewers(allow_self_approval=False), "ann", True),
        (TWO, "dev", False),
        (TWO, "carol", False),
        (Reviewers(quorum=2, allow_self_approval=True), "dev", True),
        (Reviewers(users=["dev"], allow_self_approval=False), "dev", False),
    ],
)
def test_the_ban_is_for_the_submitter_and_whom_it_is_for(reviewers: Reviewers, name: str, allowed: bool) -> None:
    approval = an_approval(reviewers=reviewers, user_id="carol")
    if allowed:
        may_decide(approval, who(name))
    else:
        with pytest.raises(SelfApproval):
            may_decide(approval, who(name))


# When


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({}, None),
        ({"expires_at": NOW + timedelta(microseconds=1)}, None),
        ({"expires_at": NOW}, ApprovalExpired),
        ({"expires_at": NOW - timedelta(days=1)}, ApprovalExpired),
        ({"expires_at": NOW, "clock_stopped_at": NOW}, None),
        ({"status": S.EXPIRED}, ApprovalExpired),
        *[({"status": s}, AlreadyDecided) for s in (S.APPROVED, S.EDITED, S.REJECTED, S.RETRIED, S.CANCELLED)],
    ],
)
def test_an_approval_is_open_until_its_time_is_out(changes: Any, error: Any) -> None:
    approval = an_approval(**changes)
    if error is None:
        check_open(approval, now=NOW)
        ruled(approval, APPROVE)
    else:
        with pytest.raises(error):
            check_open(approval, now=NOW)
        refused(error, approval, APPROVE)
        refused(error, approval, REJECT)


# What


@pytest.mark.parametrize(
    ("checkpoint", "run", "order", "pointer"),
    [
        ("payload_review", True, Order("reject"), "/reason"),
        ("payload_review", True, Order("reject", reason=" "), "/reason"),
        ("payload_review", True, Order("retry"), "/action"),
        ("information_review", True, Order("retry"), "/action"),
        ("response_review", False, Order("retry"), "/action"),
        ("payload_review", True, Order("edit"), "/edits"),
        ("payload_review", True, Order("edit", edits=[]), "/edits"),
        ("payload_review", True, Order("edit", edits="x"), "/edits"),
        ("payload_review", True, Order("approve", edits={"n": 2}), "/edits"),
        ("payload_review", True, Order("reject", reason="r", edits={"n": 2}), "/edits"),
        ("response_review", True, Order("edit", edits={"n": 2}), "/edits"),
        ("response_review", True, Order("edit", edits={"response": 1, "n": 2}), "/edits"),
        ("response_review", True, Order("approve", edits={"response": 1}), "/edits"),
        ("outcome_unknown", True, Order("approve"), "/edits/response"),
        ("outcome_unknown", True, Order("approve", edits={}), "/edits/response"),
        ("outcome_unknown", True, Order("approve", edits={"n": 2}), "/edits/response"),
        ("outcome_unknown", True, Order("retry", edits={"response": 1}), "/edits"),
    ],
)
def test_an_answer_that_does_not_fit_points_at_what_does_not(
    checkpoint: str, run: bool, order: Order, pointer: str
) -> None:
    approval = an_approval(checkpoint_type=checkpoint, **({} if run else {"run_id": None}))
    assert where(refused(Invalid, approval, order)) == [pointer]


@pytest.mark.parametrize(
    ("checkpoint", "order", "status"),
    [
        ("information_review", APPROVE, S.APPROVED),
        ("payload_review", edit(n=2), S.EDITED),
        ("payload_review", edit(), S.EDITED),
        ("payload_review", REJECT, S.REJECTED),
        ("response_review", Order("retry"), S.RETRIED),
        ("error_recovery", Order("retry"), S.RETRIED),
        ("outcome_unknown", Order("retry"), S.RETRIED),
        ("outcome_unknown", Order("approve", edits={"response": None}), S.APPROVED),
        ("response_review", Order("edit", edits={"response": None}), S.EDITED),
    ],
)
def test_an_answer_that_fits_wins(checkpoint: str, order: Order, status: ApprovalStatus) -> None:
    verdict = ruled(an_approval(checkpoint_type=checkpoint), order)
    assert (verdict.approval.status, verdict.approval.decided_at) == (status, NOW)
    assert verdict.approval.winner == verdict.decision
    assert verdict.approval.version == 2
    assert verdict.has_response == (isinstance(order.edits, dict) and "response" in order.edits)


def test_a_payload_that_lacks_something_is_refused_not_approved() -> None:
    for payload in ({}, {"prompt": ""}, {"prompt": "  "}, {"prompt": None}, {"n": 1}):
        error = refused(InvalidPayload, an_approval(payload=payload), APPROVE)
        assert where(error) == ["/prompt"]
        assert ruled(an_approval(payload=payload), edit(prompt="fox")).payload["prompt"] == "fox"
        assert ruled(an_approval(payload=payload), REJECT).approval.status is S.REJECTED


@pytest.mark.parametrize(
    ("payload", "pointer"),
    [({"prompt": "a", "n": 10}, "/n"), ({"prompt": "a", "n": "1"}, "/n"), ({"prompt": 1}, "/prompt"), ("x", "")],
)
def test_every_violation_has_its_pointer(payload: Any, pointer: str) -> None:
    with pytest.raises(InvalidPayload) as refusal:
        check_payload(payload, an_approval().schema)
    assert pointer in where(refusal.value)


def test_a_number_that_cannot_be_hashed_is_refused() -> None:
    refused(InvalidPayload, an_approval(schema=None), edit(prompt="x", seed=2**53))


def test_the_hash_that_is_approved_is_the_hash_that_was_shown() -> None:
    approval = an_approval()
    assert ruled(approval, Order("approve", payload_sha256=payload_sha256(PAYLOAD))).approval.status is S.APPROVED
    refused(PayloadChanged, approval, Order("approve", payload_sha256="0" * 64))
    refused(PayloadChanged, approval, Order("edit", edits={"n": 2}, payload_sha256="0" * 64))
    after = ruled(approval, edit(n=2)).approval
    assert after.payload_sha256 == payload_sha256(after.context["payload"]) == after.context["payload_sha256"]


@given(patch=st.dictionaries(st.sampled_from(["n", "x", "y"]), st.none() | st.integers(0, 9) | st.just({"a": 1})))
def test_an_edit_under_payload_is_the_edit_itself(patch: dict[str, Any]) -> None:
    approval = an_approval(schema=None)
    assert ruled(approval, Order("edit", edits={"payload": patch})).payload == ruled(approval, edit(**patch)).payload
    assert approval.context["payload"] == PAYLOAD


def test_a_field_of_the_payload_that_is_called_payload_is_patched_plainly() -> None:
    approval = an_approval(schema=None, payload={"prompt": "a", "payload": {"k": 1}})
    verdict = ruled(approval, Order("edit", edits={"payload": {"k": 2}}))
    assert verdict.payload == {"prompt": "a", "payload": {"k": 2}}


def test_a_programs_own_approval_is_held_to_its_schema_and_no_more() -> None:
    for checkpoint in (*Checkpoint, "deploy"):
        bare = an_approval(run_id=None, checkpoint_type=checkpoint, schema=None, payload={"any": ""})
        assert ruled(bare, APPROVE).approval.status is S.APPROVED
        assert ruled(bare, edit(any=None)).payload == {}
        held = replace(bare, schema={"required": ["env"]})
        refused(InvalidPayload, held, APPROVE)
        assert ruled(held, edit(env="prod")).approval.status is S.EDITED


# How many


def test_a_quorum_is_of_people() -> None:
    first = ruled(an_approval(reviewers=TWO), APPROVE, "ann").approval
    assert (first.status, first.decided_at) == (S.PENDING, None)
    assert same_answer(first, APPROVE, who("ann"))
    refused(Conflict, first, Order("approve", reason="again"), "ann")
    second = ruled(first, APPROVE, "bob").approval
    assert second.status is S.APPROVED
    refused(AlreadyDecided, second, APPROVE, "cem")


def test_an_edit_starts_the_count_anew_with_its_editor() -> None:
    approval = ruled(an_approval(reviewers=Reviewers(quorum=3)), APPROVE, "ann").approval
    approval = ruled(approval, APPROVE, "bob").approval
    approval = ruled(approval, edit(n=2), "cem").approval
    assert approval.status is S.PENDING
    assert not same_answer(approval, APPROVE, who("ann"))
    refused(Conflict, approval, APPROVE, "cem")
    approval = ruled(approval, APPROVE, "ann").approval
    assert approval.status is S.PENDING
    assert ruled(approval, APPROVE, "bob").approval.status is S.EDITED


def test_an_edit_there_and_back_does_not_count_the_votes_before() -> None:
    approval = ruled(an_approval(reviewers=TWO), APPROVE, "ann").approval
    approval = ruled(approval, edit(n=2), "bob").approval
    approval = ruled(approval, edit(n=1), "cem").approval
    assert approval.payload_sha256 == payload_sha256(PAYLOAD)
    assert approval.status is S.PENDING


def test_one_reject_rejects_also_of_who_approved() -> None:
    approval = ruled(an_approval(reviewers=Reviewers(quorum=9)), APPROVE, "ann").approval
    for name in ("ann", "bob"):
        assert ruled(approval, REJECT, name).approval.status is S.REJECTED
    after = ruled(approval, REJECT, "ann").approval
    assert not same_answer(after, APPROVE, who("ann"))
    assert same_answer(after, REJECT, who("ann"))


def test_the_response_of_an_earlier_reviewer_goes_through_with_the_last_vote() -> None:
    approval = an_approval(checkpoint_type="response_review", reviewers=TWO)
    approval = ruled(approval, Order("edit", edits={"response": {"a": 1}}), "ann").approval
    assert approval.context["output"] == {"a": 1}
    verdict = ruled(approval, APPROVE, "bob")
    assert (verdict.approval.status, verdict.response, verdict.has_response) == (S.EDITED, {"a": 1}, True)
    assert not ruled(approval, REJECT, "bob").has_response
    assert not ruled(approval, Order("retry"), "bob").has_response


def test_an_unknown_outcome_needs_two_who_say_the_same() -> None:
    approval = an_approval(checkpoint_type="outcome_unknown", reviewers=TWO)
    one, other = Order("approve", edits={"response": 1}), Order("approve", edits={"response": 2})
    approval = ruled(approval, one, "ann").approval
    differing = ruled(approval, other, "bob").approval
    assert differing.status is S.PENDING
    verdict = ruled(differing, other, "ann")
    assert (verdict.approval.status, verdict.response) == (S.APPROVED, 2)
    assert ruled(approval, one, "bob").response == 1


@pytest.mark.parametrize(
    ("order", "name", "same"),
    [
        (Order("edit", edits={"n": 2}, reason="r"), "ann", True),
        (Order("edit", edits={"n": 2.0}, reason="r"), "ann", True),
        (Order("edit", edits={"n": 2}, reason="r"), "bob", False),
        (Order("edit", edits={"n": 2}), "ann", False),
        (Order("edit", edits={"n": 3}, reason="r"), "ann", False),
        (Order("edit", edits={"n": "2"}, reason="r"), "ann", False),
        (Order("approve", reason="r"), "ann", False),
    ],
)
def test_a_repeat_is_the_same_in_everything(order: Order, name: str, same: bool) -> None:
    decided = ruled(an_approval(), Order("edit", edits={"n": 2}, reason="r"), "ann").approval
    assert same_answer(decided, order, who(name)) is same


def test_true_repeats_no_one() -> None:
    decided = ruled(an_approval(schema=None), edit(flag=True)).approval
    assert not same_answer(decided, edit(flag=1), who("ann"))


# Silence


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"on_timeout": "reject"}, S.EXPIRED),
        ({"on_timeout": "approve"}, S.APPROVED),
        ({"on_timeout": "escalate"}, S.EXPIRED),
        ({"on_timeout": "approve", "reasons": ["missing.image"]}, S.EXPIRED),
        ({"on_timeout": "approve", "payload": {"prompt": ""}}, S.EXPIRED),
        ({"on_timeout": "approve", "payload": {"prompt": "a", "n": 99}}, S.EXPIRED),
        ({"on_timeout": "approve", "checkpoint_type": "error_recovery"}, S.EXPIRED),
        ({"on_timeout": "approve", "checkpoint_type": "outcome_unknown"}, S.EXPIRED),
        ({"on_timeout": "approve", "checkpoint_type": "response_review"}, S.APPROVED),
        ({"on_timeout": "approve", "reviewers": Reviewers(quorum=5)}, S.APPROVED),
        ({"on_timeout": "approve", "run_id": None, "schema": {"required": ["env"]}}, S.EXPIRED),
        ({"on_timeout": "approve", "run_id": None, "schema": None}, S.APPROVED),
        ({"on_timeout": "approve", "run_id": None, "schema": None, "checkpoint_type": "outcome_unknown"}, S.APPROVED),
    ],
)
def test_silence_approves_only_what_is_whole(changes: Any, status: ApprovalStatus) -> None:
    verdict = silent_verdict(an_approval(**changes), now=NOW)
    assert (verdict.approval.status, verdict.approval.decided_at) == (status, NOW)
    assert [(d.actor, d.action, d.channel) for d in verdict.approval.decisions] == (
        [(TIMEOUT_ACTOR, "approve", "timeout")] if status is S.APPROVED else []
    )


def test_silence_keeps_the_response_that_was_given() -> None:
    approval = an_approval(checkpoint_type="response_review", reviewers=TWO, on_timeout="approve")
    approval = ruled(approval, Order("edit", edits={"response": 1}), "ann").approval
    assert silent_verdict(approval, now=NOW).response == 1


def test_silence_escalates_once_for_the_same_time_again() -> None:
    approval = an_approval(on_timeout="escalate", escalate_to=EscalateTo(users=["boss"]), reviewers=TWO)
    assert escalates(approval)
    later = NOW + timedelta(hours=1)
    after = escalated(approval, now=later)
    assert (after.id, after.status) == (approval.id, S.PENDING)
    assert (after.reviewers.users, after.reviewers.groups) == (["boss"], [])
    assert after.expires_at == later + timedelta(seconds=60)
    assert (after.timer_no, after.armed) == (2, False)
    assert not escalates(after)
    assert silent_verdict(after, now=later).approval.status is S.EXPIRED
    assert not escalates(an_approval(on_timeout="reject", escalate_to=EscalateTo(users=["boss"])))


@given(before=st.integers(0, 59), stood=st.integers(0, 10**7))
def test_a_pause_takes_nothing_of_the_time(before: int, stood: int) -> None:
    paused_at = NOW + timedelta(seconds=before)
    resumed_at = paused_at + timedelta(seconds=stood)
    approval = an_approval(remind_at=NOW + timedelta(seconds=59))

    after = restarted(stopped(approval, now=paused_at), now=resumed_at)

    assert after.expires_at - resumed_at == approval.expires_at - paused_at
    assert approval.remind_at is not None
    assert after.remind_at is not None
    assert after.remind_at - resumed_at == approval.remind_at - paused_at
    assert (after.timer_no, after.clock_stopped_at, after.armed) == (2, None, False)


# How many try again


def test_a_retry_needs_the_quorum_too() -> None:
    for checkpoint in ("response_review", "error_recovery", "outcome_unknown"):
        one = ruled(an_approval(checkpoint_type=checkpoint, reviewers=TWO), Order("retry"), "ann").approval
        assert (one.status, one.decided_at) == (S.PENDING, None)
        refused(Conflict, one, Order("retry", reason="really"), "ann")
        assert ruled(one, Order("retry"), "bob").approval.status is S.RETRIED


def test_letting_through_and_trying_again_are_counted_apart() -> None:
    approval = ruled(an_approval(checkpoint_type="response_review", reviewers=TWO), APPROVE, "ann").approval
    approval = ruled(approval, Order("retry"), "bob").approval
    assert approval.status is S.PENDING
    assert ruled(approval, APPROVE, "cem").approval.status is S.PENDING
    assert ruled(approval, Order("retry"), "ann").approval.status is S.RETRIED


def test_in_error_recovery_an_approve_is_a_retry() -> None:
    approval = ruled(an_approval(checkpoint_type="error_recovery", reviewers=TWO), APPROVE, "ann").approval
    assert ruled(approval, Order("retry"), "bob").approval.status is S.RETRIED


# For how long one keeps it


def test_whoever_has_answered_keeps_the_others_waiting_no_more() -> None:
    approval = claimed(an_approval(reviewers=TWO), who("ann"), now=NOW)
    refused(ApprovalClaimed, approval, APPROVE, "bob")
    approval = ruled(approval, APPROVE, "ann").approval
    assert (approval.status, approval.claimed_by, approval.claimed_until) == (S.PENDING, None, None)
    assert ruled(approval, APPROVE, "bob").approval.status is S.APPROVED


def test_a_claim_binds_nobody_after_an_escalation() -> None:
    waiting = an_approval(on_timeout="escalate", escalate_to=EscalateTo(users=["bob"]))
    after = escalated(claimed(waiting, who("ann"), now=NOW), now=NOW)
    assert (after.claimed_by, after.claimed_until) == (None, None)


# To whom it is handed on


ZOE = EscalateTo(users=["zoe"])


def test_an_approval_that_is_handed_on_is_for_the_others_alone() -> None:
    approval = claimed(an_approval(reviewers=Reviewers(users=["ann", "bob"])), who("ann"), now=NOW)
    with pytest.raises(ApprovalClaimed):
        delegated(approval, ZOE, who("bob"), now=NOW)
    after = delegated(approval, ZOE, who("ann"), now=NOW)
    assert (after.reviewers.users, after.reviewers.groups, after.claimed_by) == (["zoe"], [], None)
    assert (after.id, after.expires_at, after.status) == (approval.id, approval.expires_at, S.PENDING)
    for name in ("ann", "bob"):
        refused(NotAReviewer, after, APPROVE, name)
    assert ruled(after, APPROVE, "zoe").approval.status is S.APPROVED


def test_only_who_may_decide_may_hand_on() -> None:
    named = an_approval(reviewers=Reviewers(users=["ann"], allow_self_approval=False))
    with pytest.raises(NotAReviewer):
        delegated(named, ZOE, who("bob"), now=NOW)
    with pytest.raises(Forbidden):
        delegated(an_approval(), ZOE, replace(who("ann"), role="submitter"), now=NOW)
    with pytest.raises(SelfApproval):
        delegated(named, EscalateTo(users=["dev"]), who("ann"), now=NOW)
    with pytest.raises(ApprovalExpired):
        delegated(named, ZOE, who("ann"), now=named.expires_at)
    with pytest.raises(AlreadyDecided):
        delegated(ruled(named, APPROVE, "ann").approval, ZOE, who("ann"), now=NOW)


def test_a_quorum_stays_within_reach_of_whom_it_is_handed_to() -> None:
    approval = an_approval(reviewers=Reviewers(quorum=2))
    with pytest.raises(Invalid) as refusal:
        delegated(approval, ZOE, who("ann"), now=NOW)
    assert where(refusal.value) == ["/user"]
    assert delegated(approval, EscalateTo(groups=["legal"]), who("ann"), now=NOW).reviewers.quorum == 2
    voted = ruled(approval, APPROVE, "ann").approval
    with pytest.raises(Invalid):
        delegated(voted, EscalateTo(users=["ann"]), who("ann"), now=NOW)
    assert ruled(delegated(voted, ZOE, who("ann"), now=NOW), APPROVE, "zoe").approval.status is S.APPROVED


# Whatever the order


ORDERS = st.one_of(
    st.just(APPROVE),
    st.builds(Order, st.just("approve"), reason=st.sampled_from(["a", "b"])),
    st.just(REJECT),
    st.builds(edit, n=st.integers(0, 12)),
    st.builds(lambda text: edit(prompt=text), st.sampled_from(["", " ", "fox", "owl"])),
    st.just(Order("retry")),
    st.just(Order("edit")),
    st.builds(Order, st.just("approve"), payload_sha256=st.just("0" * 64)),
)
NAMES = st.sampled_from(["dev", "ann", "bob", "cem"])


class OneApproval(RuleBasedStateMachine):
    """Answers, timers, pauses and a cancel in any order, each as a use case does it under its lock."""

    @initialize(
        quorum=st.integers(1, 3),
        on_timeout=st.sampled_from(["reject", "approve", "escalate"]),
        checkpoint=st.sampled_from(["information_review", "payload_review", "error_recovery"]),
    )
    def ask(self, quorum: int, on_timeout: Any, checkpoint: str) -> None:
        self.now = NOW
        self.wins: list[str] = []
        self.final: Approval | None = None
        self.approval = an_approval(
            checkpoint_type=checkpoint,
            on_timeout=on_timeout,
            reviewers=Reviewers(quorum=quorum),
            escalate_to=EscalateTo(users=["ann", "bob", "cem"]) if on_timeout == "escalate" else None,
        )

    def become(self, after: Approval, by: str) -> None:
        assert self.approval.is_open, "an approval that is decided was changed"
        assert after.version == self.approval.version + 1
        self.approval = after
        if not after.is_open:
            self.wins.append(by)
            self.final = after

    @rule(order=ORDERS, name=NAMES)
    def decide(self, order: Order, name: str) -> None:
        before = self.approval
        if same_answer(before, order, who(name)):
            return
        try:
            verdict = judge(before, order, who(name), now=self.now, channel="http")
        except HitlError:
            assert self.approval is before
            return
        assert before.clock_stopped_at is not None or before.expires_at > self.now
        self.become(verdict.approval, name)

    @rule(name=NAMES, to=NAMES, change=st.sampled_from(["claim", "release", "delegate"]))
    def keep_or_hand_on(self, name: str, to: str, change: str) -> None:
        before, held = self.approval, self.approval.claimed_by
        try:
            if change == "delegate":
                after = delegated(before, EscalateTo(users=[to]), who(name), now=self.now)
            else:
                after = (claimed if change == "claim" else let_go)(before, who(name), now=self.now)
        except HitlError:
            assert self.approval is before
            return
        assert held in (None, name) or before.claimed_until is None or before.claimed_until <= self.now
        assert after.expires_at == before.expires_at
        assert after.decisions == before.decisions
        self.become(after, name)

    @rule(seconds=st.integers(0, 40))
    def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule()
    def time_out(self) -> None:
        current = self.approval
        if current.is_open and current.clock_stopped_at is None and current.expires_at <= self.now:
            after = (
                escalated(current, now=self.now)
                if escalates(current)
                else silent_verdict(current, now=self.now).approval
            )
            self.become(after, "time")

    @rule()
    def cancel(self) -> None:
        if self.approval.is_open:
            self.become(cancelled(self.approval, now=self.now), "cancel")

    @precondition(lambda self: self.approval.is_open)
    @rule()
    def pause_or_resume(self) -> None:
        change = stopped if self.approval.clock_stopped_at is None else restarted
        self.become(change(self.approval, now=self.now), "pause")

    @invariant()
    def at_most_one_wins(self) -> None:
        assert len(self.wins) <= 1
        assert self.final is None or self.approval is self.final

    @invariant()
    def the_row_is_consistent(self) -> None:
        approval = self.approval
        assert approval.is_open == (approval.decided_at is None)
        assert approval.payload_sha256 == payload_sha256(approval.context["payload"])

    @invariant()
    def nothing_is_let_through_without_its_quorum_or_with_a_gap(self) -> None:
        approval = self.approval
        if approval.status not in (S.APPROVED, S.EDITED):
            return
        check_payload(approval.context["payload"], approval.schema)
        if approval.decisions[-1].actor == TIMEOUT_ACTOR:
            assert approval.on_timeout == "approve"
            return
        last_edit = max((n for n, d in enumerate(approval.decisions) if d.action == "edit"), default=0)
        voters = [d.actor for d in approval.decisions[last_edit:]]
        assert len(voters) == len(set(voters)) == approval.reviewers.quorum
        assert approval.reviewers.quorum == 1 or "dev" not in voters

    @invariant()
    def a_decided_approval_says_no_to_everybody(self) -> None:
        if not self.approval.is_open:
            for order in (APPROVE, REJECT, edit(n=2)):
                asked = self.approval.reviewers.users
                refused(Conflict, self.approval, order, asked[-1] if asked else "ann")


TestOneApproval = OneApproval.TestCase
TestOneApproval.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)


def test_the_winner_is_the_last_decision_of_a_decided_approval() -> None:
    decision = Decision("ann", "approve", None, None, NOW, "http")
    assert an_approval(decisions=(decision,)).winner is None
    assert an_approval(decisions=(decision,), status=S.APPROVED).winner == decision
    assert an_approval(status=S.EXPIRED).winner is None
