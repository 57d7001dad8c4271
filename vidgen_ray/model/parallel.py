"""One clip on several devices: ranks share out guidance first, then the sequence.

Every rank runs the same engine on the same request. Inside the transformer a rank works on its half
of the guided batch and on its share of the tokens; outside, all do the same small sums on the same
numbers, so that nothing else has to be sent.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn import functional

from vidgen_ray.errors import ConfigError
from vidgen_ray.model.attention import Kernel, Rotary, joint_rotary


@dataclass(frozen=True)
class Shares:
    """A rank's share of the tokens: equal in shape on every rank."""

    text: torch.Tensor
    video: torch.Tensor
    rotary: Rotary | None


class GuidanceRanks:
    """The ranks that hold the same tokens of the two halves of a guided batch."""

    def __init__(self, group: dist.ProcessGroup, rank: int, size: int) -> None:
        self._group = group
        self._rank = rank
        self._size = size

    def mine(self, batch: torch.Tensor) -> torch.Tensor:
        """This rank's part of a guided batch. A batch of one is everybody's."""
        return batch if len(batch) < self._size else batch.chunk(self._size)[self._rank]

    def gather(self, part: torch.Tensor, batch_size: int) -> torch.Tensor:
        """The whole batch, on every rank."""
        if batch_size == len(part):
            return part
        return _all_gather(part, 0, self._group, self._size)


class SequenceRanks:
    """The ranks that hold different tokens of the same clip.

    Text and video are padded to a multiple of the ranks, each by itself, so that all ranks run the
    same shapes. Nothing attends to the padding.
    """

    def __init__(self, group: dist.ProcessGroup, rank: int, size: int) -> None:
        self._group = group
        self._rank = rank
        self.size = size
        self._num_tokens = (0, 0)  # of the text and the video of the clip, without padding

    def split(self, text: torch.Tensor, video: torch.Tensor, rotary: Rotary | None) -> Shares:
        """Shares of text [B, T, D], video [B, S, D] and rotary tables [S, head_dim]."""
        self._num_tokens = (text.shape[1], video.shape[1])
        mine = None
        if rotary is not None:
            cos, sin = (self._share(table[None])[0] for table in rotary)
            mine = (cos, sin)
        text, video = self._share(text), self._share(video)
        return Shares(text, video, joint_rotary(mine, text.shape[1]))

    def gather(self, video: torch.Tensor, num_video: int) -> torch.Tensor:
        """The whole video [B, num_video, D] of every rank's share."""
        if self.size == 1:
            return video
        return _all_gather(video, 1, self._group, self.size)[:, :num_video]

    def send(self, tokens: torch.Tensor) -> torch.Tensor:
        """This rank's tokens [B, t, H, d], each head to its rank; for `attend`, which waits."""
        by_rank = tokens.unflatten(2, (self.size, -1)).permute(2, 0, 1, 3, 4)
        return self._exchange(by_rank)

    def attend(
        self,
        kernel: Kernel,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        num_text: int,
    ) -> torch.Tensor:
        """Attention of this rank's tokens [B, t, H, d], of which `num_text` are text, to the tokens
        of all ranks; query, key and value come from `send`."""
        query, key, value = (_received(tensor).flatten(1, 2) for tensor in (query, key, value))
        kept = self._without_padding(num_text, key.shape[1] // self.size)
        if kept:
            key, value = (
                torch.cat([tensor[:, part] for part in kept], 1) for tensor in (key, value)
            )
        attended = kernel(query, key, value)
        by_rank = attended.unflatten(1, (self.size, -1)).transpose(0, 1)
        return _received(self._exchange(by_rank)).transpose(1, 2).flatten(2, 3)

    def _share(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.size == 1:
            return tokens
        share = -(-tokens.shape[1] // self.size)
        padding = share * self.size - tokens.shape[1]
        padded = functional.pad(tokens, (0, 0, 0, padding))
        return padded[:, share * self._rank : share * (self._rank + 1)].contiguous()

    def _without_padding(self, text_share: int, share: int) -> list[slice]:
        """Slices of the tokens of all ranks, [text, video] by rank, that hold no padding; none
        where there is no padding to leave out."""
        num_text, num_video = self._num_tokens
        if share * self.size == num_text + num_video:
            return []
        kept = []
        for rank in range(self.size):
            start = rank * share
            text = min(text_share, max(0, num_text - rank * text_share))
            video_share = share - text_share
            video = min(video_share, max(0, num_video - rank * video_share))
            kept += [
                slice(start, start + text),
                slice(start + text_share, start + text_share + video),
            ]
        return kept

    def _exchange(self, by_rank: torch.Tensor) -> torch.Tensor:
        """Part i of the first axis goes to rank i; part i of the result, once received, is its."""
        parts = [1] * self.size
        sent: torch.Tensor = torch.ops._c10d_functional.all_to_all_single(
            by_rank.contiguous(), parts, parts, self._group.group_name
        )
        return sent


class Ranks:
    """The mesh of the ranks of this process's clip: guidance x sequence."""

    def __init__(self, rank: int, size: int, device: torch.device, *, guided: bool = True) -> None:
        """Needs `join` before. Two halves of the batch where it is `guided` and the size even."""
        guidance = 2 if guided and size % 2 == 0 else 1
        sequence = size // guidance
        self.rank, self.size, self._device = rank, size, device
        # Every rank has to make every group, in the same order.
        by_sequence = [
            dist.new_group(_line(start, sequence, 1)) for start in range(0, size, sequence)
        ]
        across = [dist.new_group(_line(start, guidance, sequence)) for start in range(sequence)]
        self._host = dist.new_group(backend="gloo")
        half, place = divmod(rank, sequence)
        self.guidance = GuidanceRanks(across[place], half, guidance)
        self.sequence = SequenceRanks(by_sequence[half], place, sequence)

    def check_heads(self, num_heads: int) -> None:
        """Raise ConfigError where the heads cannot be shared out."""
        if num_heads % self.sequence.size:
            raise ConfigError(
                f"model.gpus_per_clip: {self.size} makes {self.sequence.size} sequence ranks, "
                f"which must divide the model's {num_heads} heads; use fewer or more"
            )

    def agree(self, numbers: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, as rank 0 has it: the same bits everywhere."""
        dist.all_reduce(numbers)
        dist.broadcast(numbers, 0)
        return numbers

    def any(self, flag: bool) -> bool:
        """Whether any rank says so. Does not wait for the device."""
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._host)
        return bool(flags)

    def share_out(self, works: list[Callable[[], torch.Tensor]]) -> list[torch.Tensor]:
        """Results of `works`, each done by one rank and sent to all."""
        mine = {
            index: work().contiguous()
            for index, work in enumerate(works)
            if index % self.size == self.rank
        }
        results = []
        for index in range(len(works)):
            owner = index % self.size
            tensor = _broadcast(mine.get(index), owner, self.rank, self._device)
            results.append(tensor)
        return results


def join(
    rank: int,
    size: int,
    address: str,
    device: torch.device,
    timeout_s: float,
    *,
    guided: bool = True,
) -> Ranks:
    """Meet the other ranks at `address` (`tcp://host:port`). A rank that is silent for `timeout_s`
    seconds ends the others' wait with an error. Raises ConfigError.

    All clips can be made; those without guidance take half of the ranks for nothing if `guided`.
    """
    backend, bound = "gloo", None
    if device.type == "cuda":
        backend = "nccl"
        bound = torch.device("cuda", device.index or torch.cuda.current_device())
    try:
        dist.init_process_group(
            backend,
            init_method=address,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout_s),
            device_id=bound,
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"model.gpus_per_clip: rank {rank} of {size} cannot join: {error}"
        ) from error
    return Ranks(rank, size, device, guided=guided)


def leave() -> None:
    """Leave the group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _received(sent: torch.Tensor) -> torch.Tensor:
    """[ranks, B, ...] once it is there, as [B, ranks, ...]."""
    received: torch.Tensor = torch.ops._c10d_functional.wait_tensor(sent)
    return received.transpose(0, 1)


def _line(start: int, count: int, step: int) -> list[int]:
    return [start + step * index for index in range(count)]


def _all_gather(
    tensor: torch.Tensor, axis: int, group: dist.ProcessGroup, size: int
) -> torch.Tensor:
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(size)]
    dist.all_gather(parts, tensor.contiguous(), group=group)
    return torch.cat(parts, dim=axis)


def _broadcast(
    tensor: torch.Tensor | None, owner: int, rank: int, device: torch.device
) -> torch.Tensor:
    """The owner's tensor on every rank; the others know neither its shape nor its dtype."""
    facts = [(tensor.shape, tensor.dtype) if tensor is not None else None]
    dist.broadcast_object_list(facts, src=owner, device=device)
    if tensor is None:
        assert facts[0] is not None
        shape, dtype = facts[0]
        tensor = torch.empty(shape, dtype=dtype, device=device)
    dist.broadcast(tensor, owner)
    return tensor
