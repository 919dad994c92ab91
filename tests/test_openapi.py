"""The document describes what is served: same table, same models, valid OpenAPI 3.1."""

import re
from pathlib import Path

import httpx2
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from service import errors
from service.api.openapi import document
from service.api.routes import TABLE
from service.domain.event import EventType
from service.settings import Settings

ROOT = Path(__file__).parent.parent


def test_the_document_is_valid_openapi() -> None:
    assert list(OpenAPIV31SpecValidator(document()).iter_errors()) == []


def test_every_operation_is_described_with_its_problems() -> None:
    paths = document()["paths"]

    for op in TABLE:
        described = paths[op.path][op.method.lower()]
        assert described["summary"], op.path
        assert {str(op.status), *map(str, op.problems)} <= described["responses"].keys(), op.path
    assert sum(len(methods) for methods in paths.values()) == len(TABLE)


def test_operation_ids_are_unique() -> None:
    ids = [op["operationId"] for methods in document()["paths"].values() for op in methods.values()]

    assert len(set(ids)) == len(ids)


async def test_the_document_that_is_served_is_the_one_of_the_code(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/openapi.json")).json() == document()


async def test_the_docs_page_loads_nothing_from_elsewhere(client: httpx2.AsyncClient) -> None:
    page = await client.get("/docs")
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)

    assert page.status_code == 200
    assert len(assets) == 3
    for asset in assets:
        assert asset.startswith("/"), asset
        assert (await client.get(asset)).status_code == 200, asset
    assert "default-src 'none'" in page.headers["content-security-policy"]


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_stands_in_the_docs(name: str) -> None:
    assert name.upper() in (ROOT / "README.md").read_text() + (ROOT / "docs" / "settings.md").read_text()


def test_every_error_code_is_one_of_a_kind() -> None:
    codes = [c.code for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.HitlError)]

    assert len(set(codes)) == len(codes)


def test_every_error_code_and_event_type_stands_in_the_docs() -> None:
    reference = (ROOT / "docs" / "reference.md").read_text()
    codes = [c.code for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.HitlError)]

    assert [code for code in codes if f"`{code}`" not in reference] == []
    assert [e for e in EventType if f"`{e}`" not in reference] == []
