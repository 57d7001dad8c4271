"""Write the tables of request fields into docs/batch.md and docs/api.md."""

import re
from pathlib import Path

from vidgen_ray.generation.job_fields import JOB_FIELDS, table
from vidgen_ray.serving.http.request_fields import VIDEO_FIELDS

DOCS = Path(__file__).parents[1] / "docs"
_API = VIDEO_FIELDS.model_fields
_ORDER = [name for name in (*JOB_FIELDS, *_API) if name in _API]
TABLES = {
    "batch.md": table(JOB_FIELDS),
    "api.md": table({name: _API[name] for name in _ORDER}, defaults=False),
}
_BETWEEN = re.compile(r"(<!-- fields: [^\n]* -->\n).*?(<!-- end of fields -->)", re.DOTALL)


def updated(name: str, text: str) -> str:
    """The document `name` with its table as the code has it."""
    new, count = _BETWEEN.subn(lambda match: f"{match[1]}{TABLES[name]}\n{match[2]}", text)
    assert count == 1, f"{name}: must have one table between its two comments"
    return new


if __name__ == "__main__":
    for name in TABLES:
        path = DOCS / name
        path.write_text(updated(name, path.read_text()))
