"""A board that is away costs its memory, not the clips in work."""

import time
from typing import Any

import ray

from vidgen_ray.cluster.board import activity, begin, start_board


def is_there(board: Any) -> bool:
    try:
        ray.get(board.activities.remote())
    except ray.exceptions.RayActorError:
        return False
    return True


def test_a_clip_that_was_begun_and_never_left_is_counted(ray_cluster: Any) -> None:
    board = start_board()
    entry = activity("clip", "generate")
    assert [begin(board, entry) for _ in range(3)] == [0, 1, 2]
    ray.get(board.end.remote("clip", "generate"))
    assert begin(board, entry) == 0


def test_work_begins_without_a_board(ray_cluster: Any) -> None:
    board = start_board()
    assert begin(board, activity("clip", "generate")) == 0
    ray.kill(board)
    while is_there(board):
        time.sleep(0.05)
    assert begin(board, activity("clip", "generate")) == 0
