"""All-reduces a tensor over all GPUs of this machine: `python -m` with this module's name."""

import socket

import torch
import torch.distributed
from torch.multiprocessing.spawn import spawn

_NUM_VALUES = 1 << 20


def main() -> None:
    """One process a GPU over NCCL, or two on a CPU over Gloo. Raises where a sum is wrong."""
    num_gpus = torch.cuda.device_count()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    count = num_gpus or 2
    spawn(_rank, (count, num_gpus > 0, port), nprocs=count)  # type: ignore[no-untyped-call]
    print(f"{count} {'GPUs over NCCL' if num_gpus else 'processes over Gloo'} all-reduce")


def _rank(index: int, count: int, on_gpu: bool, port: int) -> None:
    device = torch.device("cuda", index) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=index,
        world_size=count,
    )
    values = torch.full((_NUM_VALUES,), float(index + 1), device=device)
    torch.distributed.all_reduce(values)
    expected = count * (count + 1) / 2
    if not bool((values == expected).all()):
        raise RuntimeError(f"the sum must be {expected}, got {values[0].item()}")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
