"""Domain objects for pure tests: one of each, with whatever the test cares about changed."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from service.domain.approval import Approval, ApprovalStatus
from service.domain.call import CallStatus, ProviderCall
from service.domain.canonical import payload_sha256
from service.domain.plan import Documents
from service.domain.policy import ANYONE, HitlConfig
from service.domain.principal import Principal
from service.domain.run import Run, RunStatus, Step

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
RUN_ID = UUID("01890000-0000-7000-8000-000000000001")
APPROVAL_ID = UUID("01890000-0000-7000-8000-000000000002")
SCHEMA = {
    "type": "object",
    "properties": {"prompt": {"type": "string", "minLength": 1}, "n": {"type": "integer", "maximum": 9}},
    "required": ["prompt"],
}
PAYLOAD = {"prompt": "a red fox", "n": 1}


def a_run(**changes: Any) -> Run:
    values: dict[str, Any] = {
        "id": RUN_ID, "tenant": "default", "status": RunStatus.QUEUED, "step": Step.INFORMATION_REVIEW, "version": 1,
        "fencing_token": 1, "lease_until": None, "worker_id": None, "due_at": NOW, "armed": False, "paused_at": None,
        "status_since": NOW, "woken_at": NOW, "claimed_at": None, "released_at": None, "event_seq": 0,
        "event_hash": "", "call_no": 1, "completed_steps": 0, "asked": {}, "payload_sha256": None,
        "provider": "echo", "tool": "echo-agent-tool", "submitter": "dev", "user_id": None, "session_id": None,
        "priority": 0, "queues": False, "created_at": NOW, "updated_at": NOW, "deadline_at": None,
        "finished_at": None, "queue_ms": 0, "human_ms": 0, "provider_ms": 0, "estimated_usd": None,
        "actual_usd": None, "error": None, "request_id": None, "traceparent": None,
    }  # fmt: skip
    return Run(**{**values, **changes})


def an_approval(**changes: Any) -> Approval:
    payload = changes.pop("payload", PAYLOAD)
    values: dict[str, Any] = {
        "id": APPROVAL_ID, "tenant": "default", "run_id": RUN_ID, "checkpoint_type": "payload_review",
        "status": ApprovalStatus.PENDING, "reasons": ["policy.require_human"], "message": "?",
        "context": {"payload": payload}, "schema": SCHEMA, "payload_sha256": payload_sha256(payload),
        "user_id": None, "session_id": None, "submitter": "dev", "reviewers": ANYONE, "on_timeout": "reject",
        "timeout_s": 60.0, "escalate_to": None, "escalated_at": None, "remind_after_s": None, "remind_at": None,
        "created_at": NOW, "expires_at": NOW + timedelta(seconds=60), "clock_stopped_at": None, "timer_no": 1,
        "armed": True, "edited": False, "claimed_by": None, "claimed_until": None, "decided_at": None,
        "callback_url": None, "version": 1,
    }  # fmt: skip
    return Approval(**{**values, **changes})


def a_call(status: CallStatus = CallStatus.INTENT, **changes: Any) -> ProviderCall:
    values: dict[str, Any] = {
        "run_id": RUN_ID, "number": 1, "tenant": "default", "idempotency_key": "k", "payload_sha256": "0" * 64,
        "status": status, "tries": 1, "provider_ref": None, "started_at": NOW, "finished_at": None,
        "deadline_at": NOW + timedelta(seconds=300), "output": None, "raw": None, "issues": None, "problem": None,
        "quality": None, "safety_flags": (), "cost_usd": None,
    }  # fmt: skip
    return ProviderCall(**{**values, **changes})


def documents(config: HitlConfig | None = None, **changes: Any) -> Documents:
    about = {"schema": SCHEMA, "baseline": {"prompt": "", "n": 1}, "origins": {}, "confidence": 1.0, "flag_words": {}}
    values: dict[str, Any] = {
        "run_input": {"prompt": "a red fox"}, "config": config or HitlConfig(policy="auto"), "tool_config": {},
        "sealed": None, "description": {**about, **changes.pop("about", {})}, "payload": PAYLOAD, "output": None,
        "raw_response": None, "result": None, "callback_url": None,
    }  # fmt: skip
    return Documents(**{**values, **changes})


def who(name: str, *groups: str) -> Principal:
    return Principal(name, "default", "reviewer", groups)
