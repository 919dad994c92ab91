"""`hitl audit`: whether the record was changed since, and the record itself."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final
from uuid import UUID

import click

from service.cli.audit_files import anchor_line, as_csv, jsonl, stone_line
from service.cli.audit_offline import verify_files
from service.cli.embed import operate
from service.cli.output import json_option, show
from service.commands.audit import Audited, BrokenAnchor, Findings, Wanted, audited, verify
from service.domain.anchor import End, is_public_key, key_id, public_keys
from service.domain.audit import Broken
from service.domain.keyring import Keyring
from service.domain.record import decisions_in, records
from service.runtime import Runtime
from service.settings import load_settings
from service.store import anchors
from service.store.database import EVERY, Conn

BESIDE: Final = ("tenant", "spelt", "erased")  # for verifying here, no part of the event

tenant_option = click.option("--tenant", help="Only of this tenant.")
run_option = click.option("--run", "run_id", type=click.UUID, metavar="ID", help="Only of this run.")
_file = click.Path(exists=True, dir_okay=False, path_type=Path)


def _public(_: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    for key in given:
        if not is_public_key(key):
            raise click.BadParameter("is no public key of `hitl audit key`", param=parameter)
    return given


@click.group("audit")
def audit_group() -> None:
    """The record of events: verified, exported."""


@audit_group.command("verify")
@click.argument("file", required=False, type=_file)
@click.option("--anchors", "beside", type=_file, help="The anchors that were exported with FILE.")
@click.option("--key", "keys", multiple=True, callback=_public, help="A public key of old to trust. May be repeated.")
@click.option("--anchored", multiple=True, metavar="HASH", help="Of an audit.anchored line: it must be there.")
@tenant_option
@run_option
@json_option
def audit_verify(
    file: Path | None,
    beside: Path | None,
    keys: tuple[str, ...],
    anchored: tuple[str, ...],
    tenant: str | None,
    run_id: UUID | None,
    as_json: bool,
) -> int:
    """Recompute every chain, of the database or of an export's FILE, and name the first broken link of each.

    Anchors say whether a run was rewritten whole or taken away. Their keys derive from HITL_SECRET_KEY and
    HITL_SECRET_KEY_PREVIOUS; whoever has neither gives --key.
    """
    if file is None and beside is not None:
        raise click.UsageError("--anchors goes with FILE")
    if file is not None and beside is None and anchored:
        raise click.UsageError("--anchored goes with the database, or with --anchors")
    if file is not None and tenant is not None:
        raise click.UsageError("--tenant is for the database: an export holds no tenants")
    if file is not None:
        found = verify_files(file, beside, run_id, [*keys, *(_own_keys() if beside else [])], anchored)
    else:

        async def work(runtime: Runtime) -> Findings:
            trusted = [*keys, *public_keys(runtime.services.keyring)]
            return await verify(runtime.services, Wanted(tenant, run_id), trusted, anchored=anchored)

        found = operate(work)
    return _told(found, as_json=as_json)


def _own_keys() -> list[str]:
    settings = load_settings()
    if settings.hitl_secret_key is None:
        return []
    return public_keys(Keyring(settings.hitl_secret_key, settings.hitl_secret_key_previous))


def _told(found: Findings, *, as_json: bool) -> int:
    """Print what was found; the exit status."""
    chains = [link for link in found.broken if isinstance(link, Broken)]
    others = [link for link in found.broken if isinstance(link, BrokenAnchor)]
    if as_json:
        show([_shown(link) for link in found.broken], [], as_json=True)
    else:
        for broken in others:
            click.echo(f"anchor {broken.n}: {broken.problem}")
        for link in chains:
            click.echo(f"run {link.run_id}: event {link.seq} {link.problem}")
    if found.broken:
        words = [f"{len(chains)} of {found.counts['runs']} chains"] if chains or not others else []
        words += [f"{len(others)} of {found.counts['anchors']} anchors"] if others else []
        click.echo(f"hitl: {' and '.join(words)} are broken", err=True)
        return 1
    if not as_json:
        more = [f"{found.counts[name]} {name}" for name in ("anchors", "purged") if found.counts[name]]
        counted = ", ".join([f"{found.counts['runs']} runs", f"{found.counts['events']} events", *more])
        click.echo(f"{counted}: every chain holds")
    return 0


def _shown(link: Broken | BrokenAnchor) -> dict[str, Any]:
    if isinstance(link, BrokenAnchor):
        return {"run_id": None, "seq": None, "anchor": link.n, "problem": link.problem}
    return {"run_id": link.run_id, "seq": link.seq, "problem": link.problem}


@audit_group.command("export")
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="A file; default: standard output.")
@click.option(
    "--anchors", "beside", type=click.Path(dir_okay=False, path_type=Path), help="A file for the anchors over it."
)
@click.option("--with-content", is_flag=True, help="Also what edits changed, with its values.")
@tenant_option
@run_option
def audit_export(
    form: str, out: Path | None, beside: Path | None, with_content: bool, tenant: str | None, run_id: UUID | None
) -> None:
    """Every event whole, a line each, in the order of runs and `seq`; `of` says how many its run has.

    Decisions, questions and calls also have a `record`: who, how authenticated, what was shown, when first seen and
    decided, the fields changed, the reason, the vote's place, what was then sent.
    """
    wanted = Wanted(tenant, run_id)

    async def work(runtime: Runtime) -> None:
        with _sink(out) as sink:
            write = jsonl(sink) if form == "jsonl" else as_csv(sink)
            async with runtime.services.db.reading(EVERY) as conn:
                async for one in audited(conn, wanted):
                    _write_chain(one, write, with_content=with_content)
                if beside is not None:
                    with _sink(beside) as other:
                        await _write_anchors(conn, jsonl(other), wanted)

    operate(work)


def _write_chain(one: Audited, write: Any, *, with_content: bool) -> None:
    found = records(one.events)
    for approval_id, seqs in decisions_in(one.events).items():
        kept = (one.decisions or {}).get(approval_id, ())
        for seq, decision in zip(seqs, kept, strict=False):  # verify names what lacks
            record = found[seq]
            record |= {"reason": decision.reason, "nonce": decision.nonce}
            record |= {"edits": decision.edits} if with_content else {}
            if record.get("authenticated_by") in ("api_key", "actor"):
                record["key_prefix"] = one.prefixes.get(str(record["credential"]))
    for event in one.events:
        line = {name: value for name, value in event.items() if name not in BESIDE}
        more = {"record": found[event["seq"]]} if event["seq"] in found else {}
        write({**line, "of": one.head.seq, **more})


async def _write_anchors(conn: Conn, write: Any, wanted: Wanted) -> None:
    """All anchors: each is bound to the one before. Of runs that are not exported no more than a hash is shown."""

    def shown(end: End) -> bool:
        return wanted.tenant in (None, end.tenant) and wanted.run_id in (None, end.run_id)

    write({"export": {"whole": wanted == Wanted()}})
    for anchor in await anchors.all_anchors(conn):
        write(anchor_line(anchor, await anchors.ends_of(conn, anchor.n), shown))
    async for stone in anchors.tombstones(conn, tenant=wanted.tenant, run_id=wanted.run_id):
        write(stone_line(stone))


@audit_group.command("key")
@json_option
def audit_key(as_json: bool) -> None:
    """The public keys that anchors are signed with: give them to whoever verifies without the secret."""
    own = operate(_public_keys)
    rows = [{"id": key_id(key), "public_key": key, "current": n == 0} for n, key in enumerate(own)]
    show(rows, ("id", "current", "public_key"), as_json=as_json)


async def _public_keys(runtime: Runtime) -> list[str]:
    return public_keys(runtime.services.keyring)


@contextmanager
def _sink(out: Path | None) -> Iterator[IO[str]]:
    if out is None:
        yield sys.stdout
        return
    with out.open("w", encoding="utf-8", newline="") as sink:
        yield sink
