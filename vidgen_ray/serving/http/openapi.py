"""Parts of the OpenAPI description that FastAPI does not derive: request bodies, links, events."""

from typing import Any, get_args

from vidgen_ray.generation.job_fields import kind_of
from vidgen_ray.serving.http.request_fields import VIDEO_FIELDS
from vidgen_ray.serving.queue.store import JobStatus

# A gray ramp of 32x32 pixels, so that the example can be sent as it is.
_PIXELS = (
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAAAAABWESUoAAAAIklEQVR42mNkYcAPWNgJKeAkpIBjVMGoglEFg1EB428CCgA1"
    "DQJqIWMu9QAAAABJRU5ErkJggg=="
)
_EXAMPLE = {
    "prompt": "City hall at dusk, slow push in",
    "num_inference_steps": 1,
    "seed": 7,
}
_REFERENCE = {
    "type": "object",
    "properties": {"image_url": {"type": "string", "description": "`data:image/png;base64,...`"}},
    "required": ["image_url"],
    "additionalProperties": False,
}


def form_and_json(image_name: str | None) -> dict[str, Any]:
    """The body of a create request, whose image is required as `image_name`, if at all."""
    schema = VIDEO_FIELDS.model_json_schema()
    fields = schema["properties"]
    lora = {"anyOf": [{"type": "string"}, schema["$defs"]["LoraField"]]}
    lora["description"] = fields["lora"]["description"]
    as_text = {
        name: {
            "type": "string",
            "description": f"{fields[name]['description']} In a form: as JSON.",
        }
        for name, field in VIDEO_FIELDS.model_fields.items()
        if kind_of(field) in {"object", "lora"}
    }
    upload = {"type": "string", "format": "binary", "description": "PNG, JPEG or WebP."}
    common: dict[str, Any] = {
        "type": "object",
        "additionalProperties": False,
        "anyOf": [{"required": ["prompt"]}, {"required": ["template"]}],
    }
    example: dict[str, Any] = dict(_EXAMPLE)
    if image_name:
        common["required"] = [image_name]
        example[image_name] = {"image_url": f"data:image/png;base64,{_PIXELS}"}
    image = image_name or "input_reference"
    form = {**common, "properties": {**fields, **as_text, image: upload}}
    body = {**common, "properties": {**fields, "lora": lora, image: _REFERENCE}}
    content = {
        "multipart/form-data": {"schema": form},
        "application/json": {"schema": body, "example": example},
    }
    return {"requestBody": {"required": True, "content": content}}


def _link(operation: str, description: str) -> dict[str, Any]:
    path, method = operation.split()
    reference = path.replace("/", "~1")
    return {
        "operationRef": f"#/paths/{reference}/{method}",
        "parameters": {"video_id": "$response.body#/id"},
        "description": description,
    }


LINKS = {
    "Retrieve": _link("/v1/videos/{video_id} get", "Poll the job."),
    "Follow": _link("/v1/videos/{video_id}/events get", "Follow every step, to the end."),
    "Cancel": _link("/v1/videos/{video_id}/cancel post", "Stop it."),
    "Download": _link("/v1/videos/{video_id}/content get", "Its clip, when it is completed."),
    "Delete": _link("/v1/videos/{video_id} delete", "Remove it."),
}

# A stream of server-sent events; the schema is that of each event.
EVENTS: dict[str, Any] = {
    "text/event-stream": {
        "schema": {
            "type": "object",
            "required": ["event", "data"],
            "properties": {
                "event": {
                    "enum": [f"video.{state}" for state in (*get_args(JobStatus), "deleted")]
                },
                "data": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": {
                        "anyOf": [
                            {"$ref": "#/components/schemas/VideoResource"},
                            {"$ref": "#/components/schemas/DeletedVideo"},
                        ]
                    },
                },
            },
        }
    }
}
