"""What a client may ask for: the fields of a create request."""

from typing import Annotated, Any

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from vidgen_ray.generation.job_fields import kind_of, server_fields
from vidgen_ray.generation.json_reader import JsonReader, is_too_deep
from vidgen_ray.generation.templates import TemplateFields


class LoraField(BaseModel):
    """An adapter of the server, by name, and its scale."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(
        min_length=1, max_length=120, validation_alias=AliasChoices("name", "lora_name")
    )
    scale: float = Field(1.0, ge=-4, le=4, validation_alias=AliasChoices("scale", "lora_scale"))

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        if isinstance(value, str) and value.lstrip().startswith("{"):
            return json_of_form(value, "a name or a JSON object")
        return {"name": value} if isinstance(value, str) else value


class ApiFields(BaseModel):
    """The fields that only the API has; VIDEO_FIELDS adds those of a GenerationRequest."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str | None = Field(
        None, max_length=200, description="A name of `/v1/models`, or an alias of one."
    )
    lora: LoraField | None = Field(
        None,
        description="A LoRA adapter of `/v1/models`; `model` takes its name too.",
    )
    size: str | None = Field(
        None,
        pattern=r"^\d{1,5}x\d{1,5}$",
        description='Width and height, "720x480", in place of `width` and `height`.',
    )
    seconds: str | int | None = Field(
        None,
        description="Duration in whole seconds; chooses `fps`, since the model sets the number of "
        "frames. Beside `fps` it must agree with it.",
    )
    user: str | None = Field(
        None, max_length=200, description="Whose request it is; kept in the record's metadata."
    )
    webhook_url: str | None = Field(
        None, max_length=2000, description="An https address on a host that the operator allows."
    )

    @model_validator(mode="before")
    @classmethod
    def _no_booleans_for_numbers(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name, value in values.items():  # pydantic would read true as 1
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field and kind_of(field) != "boolean":
                raise ValueError(f"{name}: must not be true or false; leave it out")
        return values

    @field_validator("fields", mode="before", check_fields=False)
    @classmethod
    def _json_of_a_form(cls, value: Any) -> Any:
        return json_of_form(value, "a JSON object") if isinstance(value, str) else value

    @model_validator(mode="after")
    def _text_can_be_stored(self) -> "ApiFields":
        texts = self.given()
        for name, value in {**texts, **(texts.get("fields") or {})}.items():
            text = f"{name}{value}" if isinstance(value, str) else name
            try:
                text.encode()
            except UnicodeEncodeError:
                field = name if name in texts else "fields"
                raise ValueError(f"{field}: must be Unicode text, got a lone surrogate") from None
            if "\0" in text:
                raise ValueError(f"{name}: must not hold NUL characters")
        return self

    def given(self) -> dict[str, Any]:
        """The fields that the client set."""
        return {name: value for name, value in self if value is not None}


def json_of_form(text: str, rule: str) -> Any:
    """A value that a form holds as JSON. Raises ValueError that names the `rule`."""
    try:
        value, repeated = JsonReader().read_all(text)
    except ValueError:
        raise ValueError(f"must be {rule}, got {text[:80]!r}") from None
    if repeated:
        raise ValueError(f"must set a key once, got {str(repeated)[:80]} more often")
    if is_too_deep(value):
        raise ValueError("must have at most 50 levels; flatten it")
    return value


def _optional(field: FieldInfo) -> Any:
    """`field` with its limits and description, and None where the client did not set it."""
    limited: Any = field.annotation
    for rule in field.metadata:
        limited = Annotated[limited, rule]
    return limited | None, Field(None, description=field.description)


VIDEO_FIELDS: type[ApiFields] = create_model(
    "VideoFields",
    __base__=ApiFields,
    __doc__="The fields of a clip. What is left out comes from the server's configuration.",
    **{
        name: _optional(field)
        for name, field in {**server_fields(), **TemplateFields.model_fields}.items()
        if name not in ApiFields.model_fields
    },
)
