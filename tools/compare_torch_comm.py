#!/usr/bin/env python3
"""Collective calls as a PyTorch user makes them, beside what `transmamba bench comm --json` measured of ours.

    mpirun -np 2 build/cuda/transmamba bench comm --device cuda --dtype bfloat16 --json calls.json
    mpirun -np 2 tools/compare_torch_comm.py calls.json

One process a GPU. Prints for each size of the whole buffer what a call of torch.distributed (NCCL) takes among many
in a row, the least of five rounds, and ours in percent of its speed. Wants PyTorch for CUDA.
"""
import json
import os
import sys
import time

import torch
import torch.distributed as dist


def seconds_of(call, size):
    for _ in range(5):
        call()
    torch.cuda.synchronize()
    best, runs = float("inf"), max(5, min(1000, int(0.02 / (size / 2e11 + 2e-5))))
    for _ in range(5):
        dist.barrier()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(runs):
            call()
        torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - start) / runs)
    return best


def main():
    if len(sys.argv) != 2 or "OMPI_COMM_WORLD_RANK" not in os.environ:
        sys.exit(__doc__)
    rank, ranks = int(os.environ["OMPI_COMM_WORLD_RANK"]), int(os.environ["OMPI_COMM_WORLD_SIZE"])
    with open(sys.argv[1]) as file:
        ours = [c for c in json.load(file)["calls"] if c["axis"] == "world" and c["ranks"] == ranks]
    if not ours:
        sys.exit(f"compare_torch_comm: {sys.argv[1]} has no calls of {ranks} ranks on axis world")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29511")
    torch.cuda.set_device(int(os.environ["OMPI_COMM_WORLD_LOCAL_RANK"]))
    device = torch.device("cuda", torch.cuda.current_device())
    dist.init_process_group("nccl", rank=rank, world_size=ranks, device_id=device)
    most = max(c["bytes"] for c in ours) // 2
    whole = torch.zeros(most, dtype=torch.bfloat16, device="cuda")
    part = torch.zeros(most // ranks, dtype=torch.bfloat16, device="cuda")
    if rank == 0:
        print(f"{'call':<15}{'bytes':>12}{'PyTorch us':>12}{'ours us':>10}{'speed %':>9}")
    for c in ours:
        x, p = whole[: c["bytes"] // 2], part[: c["bytes"] // 2 // ranks]
        calls = {"all_reduce": lambda: dist.all_reduce(x), "broadcast": lambda: dist.broadcast(x, 0),
                 "all_gather": lambda: dist.all_gather_into_tensor(x, p),
                 "reduce_scatter": lambda: dist.reduce_scatter_tensor(p, x)}
        if c["call"] not in calls:
            continue
        seconds = seconds_of(calls[c["call"]], c["bytes"])
        if rank == 0:
            print(f"{c['call']:<15}{c['bytes']:>12}{1e6 * seconds:>12.2f}{1e6 * c['seconds']:>10.2f}"
                  f"{100 * seconds / c['seconds']:>9.0f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
