"""One clip on several devices: CFG parallelism over the guided batch, Ulysses over the tokens."""

from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn import functional

from vidgen_ray.errors import ConfigError
from vidgen_ray.model.attention_kernels import AttentionKernel

RotaryTables = tuple[torch.Tensor, torch.Tensor]  # cos and sin, each [tokens, head_dim]


class CfgParallelGroup:
    """The ranks that hold the same tokens of different halves of a guided (CFG) batch."""

    def __init__(self, group: dist.ProcessGroup, rank: int, size: int) -> None:
        self._group = group
        self._rank = rank
        self._size = size

    def shard(self, batch: torch.Tensor) -> torch.Tensor:
        """This rank's part of a guided batch [B, ...]. A batch of one stays whole on every rank."""
        return batch if len(batch) < self._size else batch.chunk(self._size)[self._rank]

    def gather(self, part: torch.Tensor, batch_size: int) -> torch.Tensor:
        """The whole batch [batch_size, ...], on every rank."""
        if batch_size == len(part):
            return part
        return _all_gather(part, 0, self._group, self._size)


class UlyssesGroup:
    """The ranks that hold different tokens of the same clip (DeepSpeed-Ulysses).

    Text and video are padded separately to a multiple of the ranks, so that all ranks run the same
    shapes. No token attends to the padding.
    """

    def __init__(self, group: dist.ProcessGroup, rank: int, size: int) -> None:
        self._group = group
        self._rank = rank
        self.size = size
        self._num_tokens = (0, 0)  # text and video tokens of the clip, without padding

    def shard(
        self, text: torch.Tensor, video: torch.Tensor, rotary: RotaryTables | None
    ) -> tuple[torch.Tensor, torch.Tensor, RotaryTables | None]:
        """This rank's shard of text [B, T, D], video [B, S, D] and rotary tables [S, head_dim].

        Returns [B, ceil(T / ranks), D], [B, ceil(S / ranks), D] and [ceil(S / ranks), head_dim].
        """
        self._num_tokens = (text.shape[1], video.shape[1])
        if rotary is not None:
            cos, sin = (self._shard_tokens(table[None])[0] for table in rotary)
            rotary = (cos, sin)
        return self._shard_tokens(text), self._shard_tokens(video), rotary

    def gather(self, video: torch.Tensor, num_video: int) -> torch.Tensor:
        """The whole video [B, num_video, D] from every rank's shard [B, s, D]."""
        if self.size == 1:
            return video
        return _all_gather(video, 1, self._group, self.size)[:, :num_video]

    def start_scatter_heads(self, tokens: torch.Tensor) -> torch.Tensor:
        """Start the all-to-all that gives each rank all tokens of its heads; `attend` waits for it.

        Takes this rank's tokens with all heads [B, s, H, D].
        """
        by_rank = tokens.unflatten(2, (self.size, -1)).permute(2, 0, 1, 3, 4)
        return self._start_all_to_all(by_rank)

    def attend(
        self,
        kernel: AttentionKernel,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        num_text: int,
    ) -> torch.Tensor:
        """Attention output [B, s, H, D] of this rank's tokens, which attend to those of all ranks.

        Query, key and value are results of `start_scatter_heads`; the first `num_text` of the s
        tokens are text.
        """
        query, key, value = (_wait(tensor).flatten(1, 2) for tensor in (query, key, value))
        slices = self._unpadded_slices(num_text, key.shape[1] // self.size)
        if slices:
            key, value = (
                torch.cat([tensor[:, part] for part in slices], 1) for tensor in (key, value)
            )
        attended = kernel(query, key, value)
        by_rank = attended.unflatten(1, (self.size, -1)).transpose(0, 1)
        return _wait(self._start_all_to_all(by_rank)).transpose(1, 2).flatten(2, 3)

    def _shard_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, S, D], padded to a multiple of the ranks, to this rank's [B, S / ranks, D]."""
        if self.size == 1:
            return tokens
        length = -(-tokens.shape[1] // self.size)
        padding = length * self.size - tokens.shape[1]
        padded = functional.pad(tokens, (0, 0, 0, padding))
        return padded[:, length * self._rank : length * (self._rank + 1)].contiguous()

    def _unpadded_slices(self, text_length: int, length: int) -> list[slice]:
        """Slices that select the tokens without padding from the gathered tokens of all ranks.

        A rank has `length` tokens, the first `text_length` of them text. Empty if no token is
        padding.
        """
        num_text, num_video = self._num_tokens
        if length * self.size == num_text + num_video:
            return []
        slices = []
        for rank in range(self.size):
            start = rank * length
            text = min(text_length, max(0, num_text - rank * text_length))
            video_length = length - text_length
            video = min(video_length, max(0, num_video - rank * video_length))
            slices += [
                slice(start, start + text),
                slice(start + text_length, start + text_length + video),
            ]
        return slices

    def _start_all_to_all(self, by_rank: torch.Tensor) -> torch.Tensor:
        """Send entry i of [ranks, ...] to rank i; after `_wait`, entry i is the one from rank i."""
        parts = [1] * self.size
        pending: torch.Tensor = torch.ops._c10d_functional.all_to_all_single(
            by_rank.contiguous(), parts, parts, self._group.group_name
        )
        return pending


class RankMesh:
    """The ranks that generate one clip together: CFG-parallel x Ulysses.

    Every rank runs the same engine on the same request. Inside the transformer a rank works on its
    half of the guided batch and its shard of the tokens; outside, all ranks repeat the same cheap
    computation on the same numbers, so nothing else has to be communicated.
    """

    def __init__(self, rank: int, size: int, device: torch.device, *, guided: bool = True) -> None:
        """Call `join` instead. Uses two CFG-parallel ranks if `guided` and `size` is even."""
        num_cfg = 2 if guided and size % 2 == 0 else 1
        num_ulysses = size // num_cfg
        self.rank, self.size, self._device = rank, size, device
        # new_group is collective: every rank creates every group, in the same order.
        ulysses = [
            dist.new_group(list(range(start, start + num_ulysses)))
            for start in range(0, size, num_ulysses)
        ]
        cfg = [
            dist.new_group(list(range(start, size, num_ulysses))) for start in range(num_ulysses)
        ]
        self._host = dist.new_group(backend="gloo")
        cfg_rank, ulysses_rank = divmod(rank, num_ulysses)
        self.cfg = CfgParallelGroup(cfg[ulysses_rank], cfg_rank, num_cfg)
        self.ulysses = UlyssesGroup(ulysses[cfg_rank], ulysses_rank, num_ulysses)

    def check_heads(self, num_heads: int) -> None:
        """Raise ConfigError if the attention heads do not divide among the Ulysses ranks."""
        if num_heads % self.ulysses.size:
            raise ConfigError(
                f"model.gpus_per_clip: {self.size} makes {self.ulysses.size} Ulysses ranks, "
                f"which must divide the model's {num_heads} heads; use fewer or more"
            )

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum `values` over all ranks, in place and with bit-identical results on every rank."""
        dist.all_reduce(values)
        dist.broadcast(values, 0)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank. Does not synchronize with the device."""
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._host)
        return bool(flags)

    def distribute(self, tasks: list[Callable[[], torch.Tensor]]) -> list[torch.Tensor]:
        """Results of `tasks` on every rank; each task runs on one rank, round-robin."""
        own = {
            index: task().contiguous()
            for index, task in enumerate(tasks)
            if index % self.size == self.rank
        }
        return [
            _broadcast(own.get(index), index % self.size, self._device)
            for index in range(len(tasks))
        ]


def join(
    rank: int,
    size: int,
    address: str,
    device: torch.device,
    timeout_s: float,
    *,
    guided: bool = True,
) -> RankMesh:
    """Join the process group at `address` (`tcp://host:port`). Raises ConfigError.

    A collective that waits longer than `timeout_s` seconds for another rank fails with an error.
    `guided` says whether clips are usually guided: if so, clips without guidance still work but
    leave the speed-up of the CFG-parallel half unused.
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
    return RankMesh(rank, size, device, guided=guided)


def leave() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _wait(pending: torch.Tensor) -> torch.Tensor:
    """A pending all-to-all [ranks, B, ...] once it has finished, as [B, ranks, ...]."""
    received: torch.Tensor = torch.ops._c10d_functional.wait_tensor(pending)
    return received.transpose(0, 1)


def _all_gather(
    tensor: torch.Tensor, dim: int, group: dist.ProcessGroup, size: int
) -> torch.Tensor:
    """The tensors of all ranks of `group`, equal in shape, concatenated along `dim`."""
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(size)]
    dist.all_gather(parts, tensor.contiguous(), group=group)
    return torch.cat(parts, dim=dim)


def _broadcast(tensor: torch.Tensor | None, source: int, device: torch.device) -> torch.Tensor:
    """The tensor of rank `source` on every rank; the others know neither its shape nor dtype."""
    meta = [(tensor.shape, tensor.dtype) if tensor is not None else None]
    dist.broadcast_object_list(meta, src=source, device=device)
    if tensor is None:
        assert meta[0] is not None
        shape, dtype = meta[0]
        tensor = torch.empty(shape, dtype=dtype, device=device)
    dist.broadcast(tensor, source)
    return tensor
