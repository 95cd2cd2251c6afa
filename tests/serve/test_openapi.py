"""What the server publishes of its interface is what it does."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.serve.conftest import Running, Serve

_EXAMPLES = 12


def test_every_route_is_published_with_its_errors(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    operations = {
        path: each for path, methods in document["paths"].items() for each in methods.values()
    }
    assert {"/v1/models", "/v1/completions", "/v1/chat/completions", "/health"} <= set(operations)
    for path in ("/v1/completions", "/v1/chat/completions"):
        assert {"400", "401", "429", "503"} <= set(operations[path]["responses"])
    assert "security" not in document


def test_a_key_is_published_and_the_document_open(serve: Serve) -> None:
    with serve(key="k" * 20) as running, running.client() as client:
        document = client.get("/openapi.json").json()
        assert document["security"] == [{"key": []}]
        assert client.get("/v1/models").status_code == 401


def test_answers_to_made_up_requests_are_as_published(server: Running) -> None:
    """Bodies that fit the document and bodies that do not; none is a failure of the server."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        negative_data_rejection,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
        negative_data_rejection,
    ]
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    fitting, others = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
    quick = settings(
        max_examples=_EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    answered = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (fitting, others) if operation.body else (fitting,):

            @quick
            @given(case=operation.as_strategy(generation_mode=mode))
            def law(case: Any) -> None:
                response = case.call(timeout=20)
                answered.add((case.path, response.status_code))
                case.validate_response(response, checks=checks)

            law()
    for path in ("/v1/completions", "/v1/chat/completions"):
        assert {(path, 200), (path, 400)} <= answered
