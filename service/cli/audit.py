"""`hitl audit`: whether the record was changed since, and the record itself."""

import csv
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final
from uuid import UUID

import click
import orjson

from service.cli.embed import operate
from service.cli.output import json_option, show
from service.domain.audit import Broken, Head, by_run, check
from service.domain.event import wire
from service.runtime import Runtime
from service.store import audit
from service.store.database import EVERY

COLUMNS: Final = ("run_id", "seq", "type", "at", "actor", "data", "prev_hash", "hash", "of")
csv.field_size_limit(2**31 - 1)

tenant_option = click.option("--tenant", help="Only of this tenant.")
run_option = click.option("--run", "run_id", type=click.UUID, metavar="ID", help="Only of this run.")


@click.group("audit")
def audit_group() -> None:
    """The record of events: verified, exported."""


@audit_group.command("verify")
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@tenant_option
@run_option
@json_option
def audit_verify(file: Path | None, tenant: str | None, run_id: UUID | None, as_json: bool) -> int:
    """Recompute every chain, of the database or of an export's FILE, and name the first broken link of each."""
    if file is not None:
        chains = [(head, events) for head, events in _of_file(file) if _wanted(head, events, tenant, run_id)]
        broken = [found for head, events in chains if (found := check(head, events))]
        counted = len(chains), sum(len(events) for _, events in chains)
    else:
        broken, counted = operate(lambda runtime: _verified(runtime, tenant, run_id))
    if as_json:
        show([_shown(link) for link in broken], [], as_json=True)
    else:
        for link in broken:
            click.echo(f"run {link.run_id}: event {link.seq} {link.problem}")
    if broken:
        click.echo(f"hitl: {len(broken)} of {counted[0]} chains are broken", err=True)
        return 1
    if not as_json:
        click.echo(f"{counted[0]} runs, {counted[1]} events: every chain holds")
    return 0


@audit_group.command("export")
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="A file; default: standard output.")
@tenant_option
@run_option
def audit_export(form: str, out: Path | None, tenant: str | None, run_id: UUID | None) -> None:
    """Every event whole, a line each, in the order of runs and `seq`; `of` says how many its run has."""

    async def work(runtime: Runtime) -> None:
        with _sink(out) as sink:
            write = _jsonl(sink) if form == "jsonl" else _csv(sink)
            async for head, events in _chains(runtime, tenant, run_id):
                for event in events:
                    write({**event, "of": head.seq})

    operate(work)


async def _chains(
    runtime: Runtime, tenant: str | None, run_id: UUID | None
) -> AsyncIterator[tuple[Head, list[dict[str, Any]]]]:
    async with runtime.services.db.reading(EVERY) as conn:
        async for head, events in audit.chains(conn, tenant=tenant, run_id=run_id):
            yield head, [wire(event) for event in events]


async def _verified(runtime: Runtime, tenant: str | None, run_id: UUID | None) -> tuple[list[Broken], tuple[int, int]]:
    broken, runs, events = [], 0, 0
    async for head, found in _chains(runtime, tenant, run_id):
        runs, events = runs + 1, events + len(found)
        if (link := check(head, found)) is not None:
            broken.append(link)
    return broken, (runs, events)


def _shown(link: Broken) -> dict[str, Any]:
    return {"run_id": link.run_id, "seq": link.seq, "problem": link.problem}


def _wanted(head: Head, events: list[Mapping[str, Any]], tenant: str | None, run_id: UUID | None) -> bool:
    if tenant is not None:
        raise click.UsageError("--tenant is for the database: an export holds no tenants")
    return run_id is None or head.run_id == str(run_id)


@contextmanager
def _sink(out: Path | None) -> Iterator[IO[str]]:
    if out is None:
        yield sys.stdout
        return
    with out.open("w", encoding="utf-8", newline="") as sink:
        yield sink


def _jsonl(sink: IO[str]) -> Any:
    return lambda line: sink.write(orjson.dumps(line).decode() + "\n")


def _csv(sink: IO[str]) -> Any:
    writer = csv.DictWriter(sink, COLUMNS, lineterminator="\n")
    writer.writeheader()
    return lambda line: writer.writerow({**line, "data": orjson.dumps(line["data"]).decode()})


def _of_file(file: Path) -> Iterator[tuple[Head, list[Mapping[str, Any]]]]:
    """The chains of an export in either form. Raises `ClickException` with the line."""
    with file.open(encoding="utf-8", newline="") as source:
        lines = _read_csv(source) if source.read(1) not in ("{", "") else _read_jsonl(source)
        source.seek(0)
        yield from by_run(lines)


def _read_jsonl(source: IO[str]) -> Iterator[Mapping[str, Any]]:
    for number, text in enumerate(source, 1):
        try:
            line = orjson.loads(text)
            yield {name: line[name] for name in COLUMNS}
        except (ValueError, KeyError, TypeError):
            raise click.ClickException(f"line {number} is not an event of an export") from None


def _read_csv(source: IO[str]) -> Iterator[Mapping[str, Any]]:
    rows = csv.DictReader(source)
    if not set(COLUMNS).issubset(rows.fieldnames or ()):
        raise click.ClickException("line 1 is not an event of an export")
    for number, row in enumerate(rows, 2):
        try:
            line: dict[str, Any] = {name: row[name] for name in COLUMNS}
            yield {**line, "seq": int(row["seq"]), "of": int(row["of"]), "data": orjson.loads(row["data"])}
        except (ValueError, KeyError, TypeError):
            raise click.ClickException(f"line {number} is not an event of an export") from None
