"""Standardised prompts: templates by name, whose fields a request fills in."""

from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from vidgen_ray.config import Section, describe
from vidgen_ray.errors import ConfigError, RequestError


class PromptTemplate(Section):
    """A prompt with {fields}; those with a default may be left out."""

    prompt: str = Field(min_length=1, max_length=10_000)
    defaults: dict[str, str] = {}

    @field_validator("prompt")
    @classmethod
    def _names_plain_fields(cls, value: str) -> str:
        for _, name, spec, conversion in Formatter().parse(value):
            if name is not None and (not name.isidentifier() or spec or conversion):
                raise ValueError(f"must have fields such as {{place}} only, got {{{name}...}}")
        return value

    @model_validator(mode="after")
    def _defaults_are_of_fields(self) -> "PromptTemplate":
        if unknown := sorted(self.defaults.keys() - set(self.fields)):
            raise ValueError(f"defaults: the prompt has no fields {unknown}; it has {self.fields}")
        return self

    @property
    def fields(self) -> list[str]:
        """Names of all fields, in the order of the text."""
        names = [name for _, name, _, _ in Formatter().parse(self.prompt) if name]
        return list(dict.fromkeys(names))

    @property
    def required(self) -> list[str]:
        """Names of the fields that have no default."""
        return [name for name in self.fields if name not in self.defaults]


class TemplateFields(Section):
    """The fields of a request that become its prompt."""

    template: str | None = Field(
        None,
        min_length=1,
        max_length=120,
        description="A standard prompt by name; a `prompt` beside it is added to its text.",
    )
    fields: dict[str, Any] | None = Field(
        None, description="An object with the values of the template's fields."
    )


@lru_cache
def load_templates(path: str | None) -> dict[str, PromptTemplate]:
    """The templates in the YAML file at `path`, or those that ship. Raises ConfigError."""
    shipped = resources.files("vidgen_ray") / "configs" / "prompt_templates.yaml"
    source = shipped if path is None else Path(path).expanduser()
    try:
        tree = yaml.safe_load(source.read_text(encoding="utf-8"))
        if not isinstance(tree, dict):
            raise ValueError("it must hold templates by name")
        return {str(name): PromptTemplate.model_validate(body) for name, body in tree.items()}
    except ValidationError as error:
        raise ConfigError(f"prompt_templates: {path}: {'; '.join(describe(error))}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"prompt_templates: {path} cannot be read: {error}") from None


def expand(fields: Mapping[str, Any], path: str | None) -> dict[str, Any]:
    """The fields of a request with its `template` and `fields` expanded to a `prompt`.

    A `prompt` beside the template is added to its text. Template, fields and defaults in use are
    kept in `metadata`. Raises RequestError that lists what there is.
    """
    values = fields.get("fields") or {}
    rest = {name: value for name, value in fields.items() if name not in {"template", "fields"}}
    name = fields.get("template")
    if name is None:
        if "fields" in fields:
            raise RequestError("fields: needs a template; name one, or leave fields out")
        return rest
    templates = load_templates(path)
    if name not in templates:
        raise RequestError(f"template: must be one of {sorted(templates)}, got {str(name)[:80]!r}")
    if "template" in rest.get("metadata", {}):
        raise RequestError("metadata: must not hold template beside a template; rename it")
    used = _fill(name, templates[name], values)
    text = templates[name].prompt.format_map(used)
    rest["prompt"] = " ".join(f"{text} {rest.get('prompt', '')}".split())
    rest["metadata"] = {**rest.get("metadata", {}), "template": {"name": name, "fields": used}}
    return rest


def _fill(name: str, template: PromptTemplate, values: Mapping[str, Any]) -> dict[str, str]:
    """The text of every field. Raises RequestError for fields too few, too many or not text."""
    faults = []
    if missing := [field for field in template.required if field not in values]:
        faults.append(f"misses {missing}")
    if unknown := sorted(values.keys() - set(template.fields)):
        faults.append(f"has no {unknown}")
    if untold := [
        field
        for field, value in values.items()
        if field in template.fields and not (_is_text(value) and str(value).strip())
    ]:
        faults.append(f"needs text or a number in {untold}")
    if faults:
        optional = [field for field in template.fields if field in template.defaults]
        raise RequestError(
            f"fields: template {name} {', '.join(faults)}; it takes {template.required} and, "
            f"if wanted, {optional}"
        )
    return {
        field: str(values.get(field, template.defaults.get(field))) for field in template.fields
    }


def _is_text(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)
