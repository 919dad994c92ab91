"""An approval as the JSON of the contract, the same in answers, frames and messages to the outside."""

from datetime import datetime
from typing import Any

from service.domain import silence
from service.domain.approval import Approval
from service.domain.event import rfc3339


def when(at: datetime | None) -> str | None:
    return rfc3339(at) if at else None


def approval_view(a: Approval) -> dict[str, Any]:
    return {
        "approval_id": str(a.id),
        "run_id": str(a.run_id) if a.run_id else None,
        "tenant": a.tenant,
        "checkpoint_type": a.checkpoint_type,
        "status": a.status.value,
        "reasons": list(a.reasons),
        "message": None if a.erased_at else a.message,
        "user_id": a.user_id,
        "session_id": a.session_id,
        "context": None if a.erased_at else dict(a.context),
        "schema": a.schema,
        "payload_sha256": a.payload_sha256,
        "created_at": when(a.created_at),
        "expires_at": when(a.expires_at),
        "on_timeout": a.on_timeout,
        "silence": silence.in_words(a),
        "reviewers": {"users": a.reviewers.users, "groups": a.reviewers.groups, "quorum": a.reviewers.quorum},
        "claimed_by": a.claimed_by,
        "claimed_until": when(a.claimed_until),
        "decisions": [
            {
                "actor": d.actor,
                "action": d.action,
                "reason": d.reason,
                "edits": d.edits,
                "at": when(d.at),
                "channel": d.channel,
            }
            for d in a.decisions
        ],
        "decided_at": when(a.decided_at),
        "content_erased_at": when(a.erased_at),
    }
