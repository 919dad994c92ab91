"""The page behind a signed link: HTML that is whole on the server, no script, fit for a phone."""

import base64
import html
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

import orjson

from service.commands.links import Shown
from service.domain import approval as rules
from service.domain.approval import Approval, ApprovalStatus
from service.domain.policy import Checkpoint
from service.domain.text import visible

_STYLE: Final = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:42rem;margin:0 auto;padding:1rem;overflow-wrap:anywhere}
h1{font-size:1.3rem}h2{font-size:1rem;margin:1.5rem 0 .3rem}
dt{font-weight:600;margin-top:.6rem}dd{margin:0}
pre{white-space:pre-wrap;margin:.2rem 0;padding:.6rem;border:1px solid #8886;border-radius:.4rem;
max-height:60vh;overflow:auto;font-size:.9rem;unicode-bidi:isolate}
.note{padding:.6rem;border-left:.3rem solid #c60;margin:1rem 0}
del{color:#b00}ins{color:#070;text-decoration:none}
textarea{width:100%;box-sizing:border-box;font:inherit;padding:.5rem;min-height:5rem}
button{font:inherit;font-weight:600;padding:.8rem 1.2rem;margin:.6rem .6rem 0 0;border-radius:.4rem;
border:1px solid #8888;min-width:8rem;cursor:pointer}
"""
_STYLE_HASH: Final = base64.b64encode(sha256(_STYLE.encode()).digest()).decode()
CSP: Final = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_ACTIONS: Final = {"approve": "Approve", "retry": "Try again", "reject": "Reject"}
_STATES: Final = {
    ApprovalStatus.PENDING: "It waits for more reviewers.",
    ApprovalStatus.APPROVED: "It is approved.",
    ApprovalStatus.EDITED: "It is approved with changes.",
    ApprovalStatus.REJECTED: "It is rejected.",
    ApprovalStatus.RETRIED: "It is tried again.",
    ApprovalStatus.EXPIRED: "It has expired.",
    ApprovalStatus.CANCELLED: "It was cancelled.",
}


def approval_page(shown: Shown, *, now: datetime, problems: Iterable[str] = ()) -> str:
    """The approval as it stands, with the form where it can be answered; `problems` say what was wrong with one."""
    approval = shown.approval
    parts = [f"<h1>{_text(approval.message or 'What was asked was erased')}</h1>"]
    parts += [f'<p class="note" role="alert">{_text(problem)}</p>' for problem in problems]
    closed = _why_closed(shown, now)
    if closed:
        parts.append(f'<p class="note">{_text(closed)}</p>')
    parts += [_facts(shown), *_content(approval)]
    if not closed:
        parts.append(_form(approval, shown.nonce))
    return _page("Approval", parts)


def done_page(approval: Approval) -> str:
    """What became of an answer."""
    return _page("Thank you", ["<h1>Thank you</h1>", f"<p>Your answer was taken. {_STATES[approval.status]}</p>"])


def refusal_page(title: str, detail: str) -> str:
    """Why a link cannot be used, for a person."""
    return _page(title, [f"<h1>{_text(title)}</h1>", f"<p>{_text(detail)}</p>"])


def actions(approval: Approval) -> list[str]:
    """What the form can say here: what came of a call is more than it can hold."""
    own = approval.run_id is None
    found = [] if approval.checkpoint_type == Checkpoint.OUTCOME_UNKNOWN and not own else ["approve"]
    return [*found, *(["retry"] if rules.may_retry(approval) else []), "reject"]


def _why_closed(shown: Shown, now: datetime) -> str | None:
    approval = shown.approval
    if not approval.is_open:
        return _STATES[approval.status]
    if shown.link.used_at is not None:
        return f"This link was used. {_STATES[approval.status]}"
    if approval.clock_stopped_at is not None:
        return "The run is paused: it can be answered once it goes on."
    claimed = approval.claimed_until is not None and approval.claimed_until > now
    if claimed and approval.claimed_by != shown.link.reviewer:
        return f"{approval.claimed_by} is looking at it until {_time(approval.claimed_until)}."
    return None


def _facts(shown: Shown) -> str:
    a = shown.approval
    counted = len({d.actor for d in rules.standing(a)}) if a.decisions else 0
    facts = {
        "You are asked as": shown.link.reviewer,
        "Why it stopped": ", ".join(a.reasons),
        "At": a.checkpoint_type.replace("_", " "),
        "Answer by": _time(a.expires_at) if a.is_open else None,
        "If nobody answers": _silence(a) if a.is_open else None,
        "Reviewers needed": f"{a.reviewers.quorum}, so far {counted}" if a.reviewers.quorum > 1 else None,
        "Run": str(a.run_id) if a.run_id else None,
    }
    return _list((name, f"{_text(value)}") for name, value in facts.items() if value)


def _silence(approval: Approval) -> str:
    """What happens at the deadline, as the rules have it now."""
    if rules.escalates(approval):
        target = approval.escalate_to
        names = [*target.users, *target.groups] if target else []
        return f"{', '.join(names)} will be asked"
    verdict = rules.silent_verdict(approval, now=approval.expires_at)
    return "it counts as approved" if verdict.approval.status is ApprovalStatus.APPROVED else "it counts as rejected"


def _content(approval: Approval) -> list[str]:
    """What is under review. A program's own question is shown as it was put, whatever its fields are called."""
    context = approval.context
    parts = []
    if approval.run_id is not None:
        parts += _issues(_objects(context.get("validation_issues")))
    for title, name in (("Output", "output"), ("Payload", "payload")):
        if context.get(name) is not None:
            parts += [f"<h2>{title}</h2>", _value(context[name])]
    if approval.run_id is not None:
        return parts + _changes(_objects(context.get("diff"))) + _cost(context.get("estimated_cost_usd"))
    more = {name: value for name, value in context.items() if name not in ("output", "payload")}
    return [*parts, "<h2>More</h2>", _value(more)] if more else parts


def _issues(issues: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = [f"<li>{_text(str(issue.get('field')) + ': ' + str(issue.get('issue')))}</li>" for issue in issues]
    return ["<h2>To be looked at</h2>", "<ul>", *lines, "</ul>"] if lines else []


def _changes(changes: list[Mapping[str, Any]]) -> list[str]:
    return ["<h2>What differs from the example</h2>", _list(_change(change) for change in changes)] if changes else []


def _cost(usd: Any) -> list[str]:
    return ["<h2>Estimated cost</h2>", f"<p>{_text(str(usd))} USD</p>"] if usd is not None else []


def _change(change: Mapping[str, Any]) -> tuple[str, str]:
    before = f"<del>{_text(_json(change['from']))}</del> " if change.get("from") is not None else ""
    after = f"<ins>{_text(_json(change['value']))}</ins>" if change.get("value") is not None else ""
    return str(change.get("path", "")), f"<pre>{before}{after}</pre>"


def _form(approval: Approval, nonce: str) -> str:
    buttons = "".join(f'<button name="action" value="{name}">{_ACTIONS[name]}</button>' for name in actions(approval))
    return (
        '<form method="post" accept-charset="utf-8">'
        f'<input type="hidden" name="nonce" value="{html.escape(nonce)}">'
        '<h2><label for="reason">Reason (needed to reject)</label></h2>'
        '<textarea id="reason" name="reason" maxlength="10000"></textarea>'
        f"<div>{buttons}</div></form>"
    )


def _page(title: str, parts: Iterable[str]) -> str:
    """`same-origin`: with the header's `no-referrer` a browser would send its form with `Origin: null`, which is
    refused. The page leads nowhere else, so that nobody else learns its address."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="same-origin"><meta name="robots" content="noindex">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>"
    )


def _value(value: Any) -> str:
    """An object field by field, anything else as it is."""
    if isinstance(value, Mapping) and value:
        return _list((name, f"<pre>{_text(_json(item))}</pre>") for name, item in value.items())
    return f"<pre>{_text(_json(value))}</pre>"


def _list(entries: Iterable[tuple[str, str]]) -> str:
    """`(name, HTML)` pairs as a list of definitions."""
    return "<dl>" + "".join(f"<dt>{_text(name)}</dt><dd>{content}</dd>" for name, content in entries) + "</dl>"


def _json(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def _text(text: str) -> str:
    """Escaped, and with what would turn or hide text made visible: a reviewer must see what is sent."""
    return html.escape(visible(text))


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _time(at: datetime | None) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if at else ""
