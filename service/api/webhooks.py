"""The doors of providers that call us: each webhook is checked byte for byte, and is a hint to look again."""

from service.api.models import Received, WebhookQuery
from service.api.operation import Call, Operation, Reply
from service.commands.notices import Webhook, take_webhook


async def take_replicate_webhook(call: Call) -> Reply:
    """A webhook of Replicate about a prediction. Repeats, and unknown or finished runs, change nothing."""
    query: WebhookQuery = call.query
    given = Webhook(call.path["run_id"], query.call, query.signature, call.request.headers, call.raw_body)
    await take_webhook(call.services, "replicate-agent-tool", given)
    return Reply({"received": True})


OPERATIONS = (
    Operation(
        "POST", "/hitl/webhooks/replicate/{run_id}", take_replicate_webhook, Received, None, query=WebhookQuery,
        signed_body=True, problems=(401, 413, 422), tag="webhooks",
    ),
)  # fmt: skip
