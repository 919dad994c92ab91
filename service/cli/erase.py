"""`hitl erase`: one person's content, for good; the record of what was decided stays."""

import sys
from uuid import UUID

import click

from service.cli.embed import operate
from service.cli.output import json_option, show
from service.commands.erasure import count
from service.commands.erasure import erase as erase_all
from service.domain.erasure import Erasure
from service.domain.ids import uuid7
from service.runtime import Runtime


@click.command()
@click.option("--user", "user_id", required=True, help="Whose: who began the runs, or whom they are for.")
@click.option("--tenant", default="default", show_default=True)
@click.option("--run", "run_ids", type=click.UUID, multiple=True, metavar="ID", help="Only this run; may be repeated.")
@click.option("--by", "actor", default="cli", show_default=True, help="Who asked for it, for the record.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def erase(user_id: str, tenant: str, run_ids: tuple[UUID, ...], actor: str, yes: bool, as_json: bool) -> None:
    """Delete the keys of a person's content, and with them what they, their reviewers and the providers wrote: prompts,
    payloads, answers, reasons, edits, files. What is live of it is cancelled first. Who decided what, when and by
    which hash stays, and every chain of events still verifies."""
    asked = Erasure(uuid7(), tenant, user_id, actor, list(run_ids) or None)
    found = operate(lambda runtime: count(runtime.services, asked))
    if not yes and found["runs"] + found["questions"]:
        told = "{runs} runs and {questions} questions, {live} of them live".format(**found)
        click.confirm(f"Erase the content of {told}? It cannot be undone", abort=True, err=True)

    async def work(runtime: Runtime) -> dict[str, int]:
        with click.progressbar(length=found["runs"] + found["questions"], label=tenant, file=sys.stderr) as bar:
            return await erase_all(runtime.services, asked, told=bar.update)

    row = {"id": asked.id, "tenant": tenant, "user": user_id, **operate(work)}
    show([row], ("id", "tenant", "runs", "questions", "files"), as_json=as_json)
