"""What the OpenAPI description says beyond the routes: bodies of create requests, links, events."""

from typing import Any, get_args

from vidgen_ray.serving.http.request_fields import VideoFields
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


def form_and_json(image_name: str) -> dict[str, Any]:
    """The body of a create request, whose image is uploaded as `image_name`."""
    fields = dict(VideoFields.model_json_schema()["properties"])
    fields["lora"] = {
        "type": "string",
        "description": 'A name of `/v1/models`, or {"name": ..., "scale": ...} as JSON.',
    }
    form_fields = {
        **fields,
        "fields": {"type": "string", "description": "The template's fields as a JSON object."},
    }
    image = {"type": "string", "format": "binary", "description": "PNG, JPEG or WebP."}
    reference = {
        "type": "object",
        "properties": {
            "image_url": {"type": "string", "description": "`data:image/png;base64,...`"}
        },
        "required": ["image_url"],
        "additionalProperties": False,
    }
    common = {
        "type": "object",
        "additionalProperties": False,
        "required": [image_name],
        "anyOf": [{"required": ["prompt"]}, {"required": ["template"]}],
    }
    form = {**common, "properties": {**form_fields, image_name: image}}
    body = {**common, "properties": {**fields, image_name: reference}}
    example = {**_EXAMPLE, image_name: {"image_url": f"data:image/png;base64,{_PIXELS}"}}
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
    "Follow": _link("/v1/videos/{video_id}/events get", "Hear of every step, to the end."),
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
                            {"$ref": "#/components/schemas/Video"},
                            {"$ref": "#/components/schemas/DeletedVideo"},
                        ]
                    },
                },
            },
        }
    }
}
