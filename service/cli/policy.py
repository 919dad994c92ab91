"""`hitl policy try`: what a hitl_config would have done to past runs, beside what was done."""

import re
from collections import Counter
from datetime import timedelta
from typing import Any, BinaryIO, Final

import click
from pydantic import ValidationError

from service.api.operation import pointers
from service.border.body import parse
from service.cli.embed import operate
from service.cli.operate import tenant_option
from service.cli.output import dumps, json_option, show
from service.commands.policies import try_policy
from service.domain.policy import ALL_REVIEWS, HitlConfig
from service.domain.replay import Trial
from service.errors import Invalid
from service.runtime import Runtime

_UNITS: Final = {"d": "days", "h": "hours", "m": "minutes"}
_LONGEST: Final = timedelta(days=3660)


def _window(_: click.Context, parameter: click.Parameter, value: str) -> timedelta:
    match = re.fullmatch(r"([1-9][0-9]{0,5})([dhm])", value)
    window = timedelta(**{_UNITS[match.group(2)]: int(match.group(1))}) if match else None
    if window is None or window > _LONGEST:
        raise click.BadParameter("must be a length like 7d, 12h or 30m, ten years at most", param=parameter)
    return window


@click.group("policy")
def policy_group() -> None:
    """Policies: try one before it is used."""


@policy_group.command("try")
@click.argument("file", type=click.File("rb"))
@click.option("--since", "window", default="7d", show_default=True, callback=_window, help="7d, 12h, 30m.")
@tenant_option
@json_option
def policy_try(file: BinaryIO, window: timedelta, tenant: str | None, as_json: bool) -> None:
    """How many past runs the hitl_config in FILE (- for standard input) would have stopped, where and why.

    It is asked by the functions that stop a live run, of what is stored of each: payload, flags, cost, quality.
    Nothing is changed. FILE may also hold a whole start request.
    """
    config = _config(parse(file.read()))

    async def work(runtime: Runtime) -> Trial:
        return await try_policy(runtime.services, config, window=window, tenant=tenant, progress=_progress)

    trial = operate(work)
    if as_json:
        click.echo(dumps(_document(trial)))
        return
    click.echo(f"{trial.runs} runs: {trial.stopped_would} would have stopped, {trial.stopped_did} did")
    show(_rows(trial), ("checkpoint", "reason", "would", "did"), as_json=False)


def _config(document: Any) -> HitlConfig:
    whole = isinstance(document, dict) and "run_input" in document
    try:
        return HitlConfig.model_validate(document.get("hitl_config", {}) if whole else document)
    except ValidationError as error:
        raise Invalid("the hitl_config is not valid", errors=pointers(error)) from None


def _progress(runs: int) -> None:
    click.echo(f"{runs} runs so far", err=True)


def _rows(trial: Trial) -> list[dict[str, Any]]:
    """For each checkpoint the runs that stopped, and beneath it those of each reason."""
    rows: list[dict[str, Any]] = []
    for step in ALL_REVIEWS:
        would, did = trial.would[step], trial.did[step]
        rows.append({"checkpoint": step, "reason": "any", "would": would.runs, "did": did.runs})
        for reason in sorted(would.reasons.keys() | did.reasons.keys()):
            counts = {"would": would.reasons[reason], "did": did.reasons[reason]}
            rows.append({"checkpoint": "", "reason": reason, **counts})
    return rows


def _document(trial: Trial) -> dict[str, Any]:
    def told(runs: int, reasons: Counter[str]) -> dict[str, Any]:
        return {"runs": runs, "reasons": dict(sorted(reasons.items()))}

    return {
        "runs": trial.runs,
        "stopped": {"would": trial.stopped_would, "did": trial.stopped_did},
        "checkpoints": {
            step: {
                "would": told(trial.would[step].runs, trial.would[step].reasons),
                "did": told(trial.did[step].runs, trial.did[step].reasons),
            }
            for step in ALL_REVIEWS
        },
    }
