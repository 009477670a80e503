"""The interface of the server, for programs (OpenAPI 3.1) and as a page for people."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from typing import Any

from adray.runtime.server_input import Limits

_REGION = {
    "x0": "first column",
    "y0": "first row",
    "x1": "column behind the last",
    "y1": "row below the last",
    "area": "number of pixels",
    "peak": "highest value of the map",
    "centroid_x": "mean column",
    "centroid_y": "mean row",
}
_ROW = {
    "time": ("string", "UTC"),
    "image": ("string", "name of the image"),
    "sha256": ("string", "of its bytes"),
    "verdict": (
        "string",
        "normal, anomalous, or unreadable where there is no score; reject on both of these",
    ),
    "pred_score": ("number", "higher is more anomalous; null where unreadable"),
    "p_value": ("number", "part of normal images that score as high, or null"),
    "threshold": ("number", "scores at or above it are anomalous"),
    "reason": ("string", "why there is no score"),
    "model": ("string", "sha256 of the bundle"),
    "request": ("string", "Idempotency-Key and number of the image, where one was sent"),
}


def api_of(limits: Limits) -> dict[str, Any]:
    """Describe the interface. JSON.

    Args:
        limits: of a request.
    """
    megabytes = limits.most_bytes / 2**20
    refusals = {
        "400": "the request cannot be meant",
        "401": "the token is missing or wrong",
        "403": "the request comes from a page of another site",
        "406": "a map alone was asked for, and there is no one map",
        "409": "the Idempotency-Key came with another image before",
        "413": f"the body is larger than {megabytes:g} MiB",
        "415": "the body is of no kind that can be an image",
        "422": "the one image is unreadable; the body is as for 200",
        "429": "too many requests wait; try again after a second",
        "503": f"no answer within {limits.seconds:g} s, or too many connections",
        "507": "the result cannot be logged, so none is given",
    }
    result = {
        "description": "a verdict for each image",
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/Answer"}},
            "image/png": {"schema": {"type": "string", "format": "binary"}},
        },
    }
    responses: dict[str, Any] = {"200": result}
    for status, text in refusals.items():
        responses[status] = {"description": text, "content": _error_content()}
    binary = {"schema": {"type": "string", "format": "binary"}}
    form = {"type": "object", "additionalProperties": {"type": "string", "format": "binary"}}
    predict = {
        "summary": f"Judge an image, or up to {limits.most_images} as the files of a form",
        "parameters": [
            _parameter("map", "boolean", "give the anomaly map as a 16-bit PNG in base64, too"),
            _parameter("regions", "boolean", "give the regions of the map (default: true)"),
            _parameter("name", "string", "what the log calls an image that is the body itself"),
            _parameter("shape", "string", "height,width,channels where the body is raw numbers"),
            _parameter(
                "Idempotency-Key",
                "string",
                "name of the request, which gets its logged result when it is sent again",
                "header",
            ),
            _parameter("Accept", "string", "image/png for the map of one image alone", "header"),
        ],
        "requestBody": {
            "required": True,
            "content": {
                "image/png": binary,
                "image/jpeg": binary,
                "image/bmp": binary,
                "image/tiff": binary,
                "application/octet-stream": binary,
                "multipart/form-data": {"schema": form},
            },
        },
        "responses": responses,
        "security": [{"token": []}],
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "adray serve", "version": "1"},
        "paths": {
            "/predict": {"post": predict},
            "/health": {"get": _plain("Say which model is in use", "application/json")},
            "/metrics": {"get": _plain("Give counts for Prometheus", "text/plain")},
        },
        "components": {
            "schemas": {"Answer": _answer_schema()},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _answer_schema() -> dict[str, Any]:
    """Describe what a request gets."""
    row: dict[str, Any] = {}
    for name, (kind, text) in _ROW.items():
        types: Any = kind if kind == "string" else [kind, "null"]
        row[name] = {"type": types, "description": text}
    region = {}
    for name, text in _REGION.items():
        region[name] = {"type": "number", "description": text}
    row["regions"] = {"type": "array", "items": {"type": "object", "properties": region}}
    map_figures = {"png": {"type": "string"}, "low": {"type": "number"}, "high": {"type": "number"}}
    row["map"] = {"type": ["object", "null"], "properties": map_figures}
    rows = {"type": "array", "items": {"type": "object", "properties": row}}
    return {"type": "object", "properties": {"model": {"type": "object"}, "results": rows}}


def _error_content() -> dict[str, Any]:
    """Describe the sentence of a refusal."""
    error = {"type": "object", "properties": {"error": {"type": "string"}}}
    return {"application/json": {"schema": error}}


def _parameter(name: str, kind: str, text: str, place: str = "query") -> dict[str, Any]:
    """Describe a parameter."""
    return {"name": name, "in": place, "schema": {"type": kind}, "description": text}


def _plain(summary: str, kind: str) -> dict[str, Any]:
    """Describe a path that takes nothing."""
    return {"summary": summary, "responses": {"200": {"description": "it", "content": {kind: {}}}}}


def api_page(api: Mapping[str, Any]) -> str:
    """Write the page for people, which has no script.

    Args:
        api: of `api_of`.
    """
    parts = list(_sections(api))
    schema = html.escape(json.dumps(api["components"]["schemas"]["Answer"], indent=2))
    body = "\n".join(parts)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>adray serve</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }}
td, th {{ text-align: left; padding: 2px 1.5rem 2px 0; vertical-align: top; }}
pre {{ background: #f4f4f4; padding: 1rem; overflow: auto; }}
</style></head><body><h1>adray serve</h1>
<p><a href="openapi.json">openapi.json</a></p>
{body}
<h2>The answer</h2><pre>{schema}</pre></body></html>
"""


def _sections(api: Mapping[str, Any]) -> Iterator[str]:
    """Write each path."""
    for path, methods in api["paths"].items():
        for method, about in methods.items():
            yield f"<h2>{method.upper()} {html.escape(path)}</h2><p>{html.escape(about['summary'])}</p>"
            rows = []
            for parameter in about.get("parameters", ()):
                rows.append((parameter["name"], f"{parameter['in']}: {parameter['description']}"))
            for kind in about.get("requestBody", {}).get("content", ()):
                rows.append(("body", kind))
            for status, response in about["responses"].items():
                rows.append((status, response["description"]))
            yield "<table>" + "".join(map(_table_row, rows)) + "</table>"


def _table_row(row: tuple[str, str]) -> str:
    """Write a row of a table."""
    return f"<tr><th>{html.escape(row[0])}</th><td>{html.escape(row[1])}</td></tr>"
