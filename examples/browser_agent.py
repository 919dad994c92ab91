"""A browser agent that asks a human before it buys, and buys exactly what the human approved.

    python examples/browser_agent.py --item "desk lamp" --price 49.90 --quantity 2 --checkout https://shop.example/orders

HITL_URL and HITL_KEY name the service and the key (role `service`). Started again with the same --order it asks no
second time: it waits for the answer to its first question, and the shop sees one Idempotency-Key.
"""

import argparse
import os
import sys
import time
import uuid
from typing import Any

import httpx2

SCHEMA = {
    "type": "object",
    "properties": {
        "item": {"type": "string", "minLength": 1},
        "price": {"type": "number", "exclusiveMinimum": 0},
        "quantity": {"type": "integer", "minimum": 1, "maximum": 100},
    },
    "required": ["item", "price", "quantity"],
    "additionalProperties": False,
}
LONG_POLL_S = 60


def ask(hitl: httpx2.Client, purchase: dict[str, Any], order: str, session: str | None) -> dict[str, Any]:
    """The open approval. What the human may change is the payload, under the schema."""
    question = {
        "checkpoint_type": "purchase",
        "message": f"May I buy {purchase['quantity']} of {purchase['item']} at {purchase['price']}?",
        "context": {"payload": purchase},
        "schema": SCHEMA,
        "timeout_seconds": 3600,
        "on_timeout": "reject",
        "session_id": session,
    }
    answer = hitl.post("/hitl/approvals", json=question, headers={"Idempotency-Key": f"purchase-{order}"})
    answer.raise_for_status()
    approval: dict[str, Any] = answer.json()
    return approval


def wait(hitl: httpx2.Client, approval: dict[str, Any]) -> dict[str, Any]:
    """The approval once it is decided. The service may be restarted meanwhile: the question is kept."""
    while approval["status"] == "pending":
        try:
            answer = hitl.get(f"/hitl/approvals/{approval['approval_id']}", params={"wait": LONG_POLL_S})
        except httpx2.TransportError:
            time.sleep(1)
            continue
        if answer.status_code >= 500:
            time.sleep(1)
            continue
        answer.raise_for_status()
        approval = answer.json()
    return approval


def main() -> int:
    parser = argparse.ArgumentParser(description="Buy something, if a human agrees.")
    parser.add_argument("--item", required=True)
    parser.add_argument("--price", type=float, required=True)
    parser.add_argument("--quantity", type=int, default=1)
    parser.add_argument("--checkout", required=True, help="URL that takes the order as JSON")
    parser.add_argument("--order", default=uuid.uuid4().hex, help="name of this purchase, for starting again")
    parser.add_argument("--session", help="session_id, for the reviewers' inbox")
    given = parser.parse_args()

    key = os.environ.get("HITL_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    url = os.environ.get("HITL_URL", "http://127.0.0.1:8811")
    with httpx2.Client(base_url=url, headers=headers, timeout=LONG_POLL_S + 10) as hitl:
        purchase = {"item": given.item, "price": given.price, "quantity": given.quantity}
        asked = ask(hitl, purchase, given.order, given.session)
        print(f"asked: {asked['approval_id']}; if nobody answers: {asked['silence']}", flush=True)
        decided = wait(hitl, asked)

    if decided["status"] not in ("approved", "edited"):
        reason = decided["decisions"][-1]["reason"] if decided["decisions"] else "nobody answered"
        print(f"not bought: {decided['status']} ({reason})")
        return 1
    approved = decided["context"]["payload"]  # what the human let through, not what was asked for
    order = httpx2.post(given.checkout, json=approved, headers={"Idempotency-Key": given.order}, timeout=30)
    order.raise_for_status()
    print(f"bought: {approved['quantity']} of {approved['item']} at {approved['price']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
