"""The description of the API at /openapi.json: request bodies from serving/schema.py, errors for every path."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from serving.schema import ChatRequest, CompletionRequest

REFERENCE = "#/components/schemas/{model}"
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
MODEL = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
        "parent": {"type": ["string", "null"]},
        "max_model_len": {"type": "integer"},
    },
}


def json_content(schema: dict[str, Any]) -> dict[str, Any]:
    """A body of JSON."""
    return {"application/json": {"schema": schema}}


def creating(name: str, kind: str) -> dict[str, Any]:
    """A path that takes a body of a schema and answers with JSON of a kind, or with events."""
    response = {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "usage"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": kind},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "system_fingerprint": {"type": "string"},
            "choices": {"type": "array", "items": {"type": "object"}},
            "usage": {"type": "object"},
        },
    }
    content = {**json_content(response), "text/event-stream": {"schema": {"type": "string"}}}
    return {
        "requestBody": {"required": True, "content": json_content({"$ref": REFERENCE.format(model=name)})},
        "responses": {"200": {"description": "The answers.", "content": content}},
    }


CHAT = creating("ChatRequest", "chat.completion")
COMPLETION = creating("CompletionRequest", "text_completion")
JSON_MODEL = {"responses": {"200": {"description": "The model.", "content": json_content(MODEL)}}}
MODEL_LIST = {
    "responses": {
        "200": {
            "description": "All models.",
            "content": json_content(
                {
                    "type": "object",
                    "required": ["object", "data"],
                    "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": MODEL}},
                }
            ),
        }
    }
}


def describe(app: FastAPI) -> dict[str, Any]:
    """The description of an application, with what FastAPI does not see."""
    description = get_openapi(title=app.title, version="1", routes=app.routes)
    _, schemas = models_json_schema(
        [(ChatRequest, "validation"), (CompletionRequest, "validation")], ref_template=REFERENCE
    )
    description["components"] = {"schemas": schemas["$defs"]}
    for operations in description["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = {"description": "An error.", "content": json_content(ERROR)}
    return description
