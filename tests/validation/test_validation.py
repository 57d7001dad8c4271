"""What a validation measures beside the temporal scores."""

from pathlib import Path

import numpy as np
import pytest

from vidgen_ray.config import load_config
from vidgen_ray.validation.comparison import measure_look
from vidgen_ray.validation.prompts import find_prompts, read_requests


def test_a_look_is_that_of_the_last_frame() -> None:
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    frames[1, :2] = (200, 100, 0)
    look = measure_look(frames)
    assert look.colour == pytest.approx(100)  # half of it has 200, half none
    assert look.brightness == pytest.approx((0.299 * 200 + 0.587 * 100) / 2)


def test_prompts_that_ship_go_by_their_name() -> None:
    assert find_prompts("validation_demo").endswith("configs/validation_demo.yaml")
    assert find_prompts("my.yaml") == "my.yaml"
    assert find_prompts("./validation_demo") == "./validation_demo"


@pytest.mark.parametrize("name", ["validation_prompts", "validation_demo"])
def test_prompts_that_ship_are_sound(name: str) -> None:
    found, _ = read_requests(find_prompts(name), load_config("nano"))
    assert found.problems == []
    assert all(Path(job.request.image).is_file() for job in found.requests)
    assert any("archive footage" in job.request.prompt.lower() for job in found.requests)
