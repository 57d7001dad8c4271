"""The page at /docs: the routes as plain HTML, which loads nothing from elsewhere."""

from html import escape
from typing import Any

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}"
    "code{font-weight:600}dd{margin:0 0 1rem}"
)


def docs_page(schema: dict[str, Any]) -> str:
    """The routes of an OpenAPI document."""
    entries = "".join(
        f"<dt><code>{method.upper()} {escape(path)}</code> {escape(operation.get('summary', ''))}"
        f"</dt><dd>{escape(operation.get('description', ''))}</dd>"
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    )
    title = escape(schema["info"]["title"])
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        f"<style>{_STYLE}</style><h1>{title}</h1>"
        f"<p>{escape(schema['info']['description'])}</p>"
        '<p><a href="openapi.json">openapi.json</a> describes every field; Swagger UI, Redoc and '
        f"client generators read it.</p><dl>{entries}</dl></html>"
    )
