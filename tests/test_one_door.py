"""One place says who may do what, and every door goes through it: stated about the code, and tried at each door."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from service.commands.approvals import Question, ask, claim, decide, only_open
from service.commands.delegation import delegate
from service.commands.links import make_link
from service.commands.runs import cancel_run, pause_run, resume_run
from service.commands.tickets import issue
from service.commands.withdraw import withdraw
from service.domain.approval import Order
from service.domain.ids import uuid7
from service.domain.policy import EscalateTo
from service.domain.principal import Permission, Principal, Role, acting_for, demand, may
from service.errors import Forbidden
from service.runtime import Runtime

SERVICE: Final = Path(__file__).resolve().parents[1] / "service"
RULES: Final = {"demand", "may_decide"}
DOORS: Final = ("api", "cli", "console", "deliveries")
ASKS_NOTHING: Final = {
    "commands/principals.py check_still_good": "whether they are still who they were",
    "commands/seen.py note_seen": "writes down whom something was shown, by what they may",
}
SHOWS: Final = {"console/page.py"}
"""What a page offers follows what its reader may; the use case asks again."""
ASKED_AT_THE_DOOR: Final = {"api/operation.py", "console/page.py"}
"""Where a caller becomes a principal: the route table's own permission is demanded there, by the same function."""


def functions(folder: str) -> Iterator[tuple[str, ast.AsyncFunctionDef]]:
    for path in sorted((SERVICE / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.AsyncFunctionDef):
                yield path.relative_to(SERVICE).as_posix(), node


def calls(node: ast.AST) -> set[str]:
    called = {n.func for n in ast.walk(node) if isinstance(n, ast.Call)}
    return {f.id if isinstance(f, ast.Name) else f.attr for f in called if isinstance(f, ast.Name | ast.Attribute)}


def takes_principal(node: ast.AsyncFunctionDef) -> bool:
    arguments = [*node.args.args, *node.args.kwonlyargs]
    return any(isinstance(a.annotation, ast.Name) and a.annotation.id == "Principal" for a in arguments)


def test_every_use_case_that_acts_for_somebody_asks_whether_they_may_before_all_else() -> None:
    """The first thing that it does; a helper of one (it begins with `_`, or takes the transaction) need not."""
    found = {}
    for path, node in functions("commands"):
        inner = node.name.startswith("_") or any(a.arg == "conn" for a in node.args.args)
        if takes_principal(node) and not inner:
            first = node.body[1 if ast.get_docstring(node) else 0]
            found[f"{path} {node.name}"] = calls(first) & RULES

    assert len(found) >= 10
    assert [name for name, asked in found.items() if not asked and name not in ASKS_NOTHING] == []


def test_no_door_has_a_rule_of_its_own() -> None:
    """No door compares roles, reads the table of roles, or refuses by itself who may do something to an approval."""
    for folder in DOORS:
        for path in sorted((SERVICE / folder).rglob("*.py")) if (SERVICE / folder).is_dir() else ():
            name = path.relative_to(SERVICE).as_posix()
            tree = ast.parse(path.read_text())
            used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
            compared = {
                side.attr
                for n in ast.walk(tree)
                if isinstance(n, ast.Compare)
                for side in (n.left, *n.comparators)
                if isinstance(side, ast.Attribute)
            }
            assert not used & {"may", "_MAY", "may_decide"} or name in SHOWS, name
            assert "role" not in compared, name
            assert name in ASKED_AT_THE_DOOR or "demand" not in used, name


def test_only_one_place_reads_the_table_of_roles() -> None:
    readers = [p.name for p in SERVICE.rglob("*.py") if "_MAY[" in p.read_text()]

    assert readers == ["principal.py"]


@pytest.mark.parametrize("role", ["submitter", "reviewer", "service", "admin"])
async def test_what_the_role_may_not_is_refused_by_the_use_case_itself(empty: Runtime, role: Role) -> None:
    """Before anything is looked up: who may not, does not learn what there is either."""
    services, who, unknown = empty.services, Principal("p", "default", role), uuid7()
    question = Question("deploy", "May I?", {})
    acts = {
        "decide": (Permission.DECIDE, decide(services, unknown, Order("approve"), who)),
        "claim": (Permission.DECIDE, claim(services, unknown, who)),
        "only_open": (Permission.DECIDE, only_open(services, unknown, who)),
        "delegate": (Permission.DECIDE, delegate(services, unknown, EscalateTo(users=["a"]), who, reason=None)),
        "withdraw": (Permission.SUBMIT, withdraw(services, unknown, who, reason=None)),
        "pause": (Permission.SUBMIT, pause_run(services, unknown, who)),
        "resume": (Permission.SUBMIT, resume_run(services, unknown, who)),
        "cancel": (Permission.SUBMIT, cancel_run(services, unknown, who, reason=None)),
        "link": (Permission.ADMIN, make_link(services, unknown, "zoe", who, expires_in_s=None)),
        "ask": (Permission.ASK, ask(services, question, who)),
        "ticket": (Permission.READ, issue(services.db, who)),
    }
    for name, (permission, act) in acts.items():
        try:
            await act
            refused = False
        except Exception as error:
            refused = type(error) is Forbidden
        assert refused is not may(role, permission), name


@pytest.mark.parametrize("subject", ["system:timeout", "provider:echo"])
async def test_nobody_acts_under_a_name_of_the_services_own(empty: Runtime, subject: str) -> None:
    for permission in Permission:
        with pytest.raises(Forbidden):
            demand(Principal(subject, "default", "admin"), permission)
    with pytest.raises(Forbidden):
        await decide(empty.services, uuid7(), Order("approve"), Principal(subject, "default", "admin"), channel="cli")


@pytest.mark.parametrize("role", ["submitter", "reviewer", "service", "admin"])
def test_a_named_actor_gains_nothing_and_counts_from_service_keys_only(role: Role) -> None:
    key = Principal("bot", "t", role, ("g",), uuid7())
    named = acting_for(key, "ann")

    assert (named.role, named.tenant, named.groups, named.key_id) == (role, "t", ("g",), key.key_id)
    assert named.subject == ("ann" if role == "service" else "bot")
    assert acting_for(key, "") is key
