"""Floor 8: the command `hitl`. Errors are one line on standard error; exit status 0, 1 or 2."""

import os
import sys
from collections.abc import Sequence
from typing import Final

import click
import structlog

from service import __version__, logs
from service.cli import audit, checks, completion, demo, erase, operate, payload, policy, processes, purge, tenants
from service.cli import webhooks as webhooks_cli
from service.errors import HitlError
from service.settings import SettingsError

FAILED: Final = 1
WRONG_USAGE: Final = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="hitl")
def hitl() -> None:
    """Runs of AI providers that stop where a human must look."""


for command in (
    processes.up, demo.demo, checks.migrate_command, processes.web, processes.worker, operate.keys_group,
    operate.runs_group, operate.approvals_group, operate.queue, payload.payload_group, policy.policy_group,
    audit.audit_group, webhooks_cli.webhooks_group, tenants.tenants_group, purge.purge, erase.erase, checks.openapi,
    checks.doctor, completion.completion,
):  # fmt: skip
    hitl.add_command(command)


def main() -> None:
    """The console script."""
    debug = os.environ.get("LOG_LEVEL", "").upper() == "DEBUG"
    logs.configure(process="cli", level="DEBUG" if debug else "CRITICAL")
    # standard output belongs to what the command prints
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(file=sys.stderr))
    sys.exit(run(sys.argv[1:], debug=debug))


def run(arguments: Sequence[str], *, debug: bool = False) -> int:
    """The exit status of one command line."""
    try:
        status = hitl.main(list(arguments), prog_name="hitl", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return _fail("a command is missing", WRONG_USAGE)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "hitl"
        return _fail(f"{error.format_message()} (see {where} --help)", WRONG_USAGE)
    except SettingsError as error:
        return _fail(str(error), WRONG_USAGE)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", FAILED)
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:  # the door
        if debug:
            raise
        return _fail(_line(error), FAILED)
    return status if isinstance(status, int) else 0


def _line(error: Exception) -> str:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    match error:
        case click.ClickException():
            return error.format_message()
        case HitlError():
            faults = "; ".join(f"{fault['pointer']} {fault['message']}" for fault in error.errors)
            return f"{error.detail}: {faults}" if faults else error.detail
        case _:
            return str(error) or type(error).__name__


def _fail(message: str, status: int) -> int:
    click.echo("hitl: " + " ".join(message.split()), err=True)
    return status
