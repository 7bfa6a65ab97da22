"""The cost of sharing by experts: against a shared bottom of as many multiply-adds.

    python benchmarks/share.py            # all figures
    python benchmarks/share.py --quick    # about a minute
    python benchmarks/share.py --json     # one JSON line per figure
    python benchmarks/share.py --device cuda
    python benchmarks/share.py --peers    # beside DeepCTR-Torch and Torch-RecHub: share_peers.py

Every figure is a ratio of neighbouring calls on the same batch, the median over rounds, so that a
machine whose speed drifts does not decide it. The shared bottom is an MLP of two layers and linear
heads, of the width that makes its multiply-adds per row those of the whole model it stands beside;
for one task, too, it runs all of its bottom.
"Written out" is the same model on the same weights in a dozen calls of torch, without modules.
Workload: 256 inputs; 8 experts 256-128 (MMoE), or 2 levels of 1 shared and 1 own expert per task
256-128 (PLE); a linear head per task. Training is forward and backward of the sum of the outputs.
Operators are those a forward pass dispatches, views left out. Multiply-adds of M3ViT for one task
are those torch counts, attention included, against the dense transformer's, on camvid's size.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import share_peers
from polytask.share import PLE, Experts, Gates, HardSharing, M3ViT, MMoE, SharedModel, TrunkModel
from polytask.suites.vit import ViT
from polytask.tasks import DenseLabels, DenseRegression, Task, TaskSet

INPUTS, WIDTHS, EXPERTS, ROWS = 256, (256, 128), 8, 1024
TRAINING = {
    ("MMoE", 2): 1.05,
    ("MMoE", 8): 1.08,
    ("MMoE", 32): 1.10,
    ("PLE", 2): 1.10,
    ("PLE", 8): 1.10,
    ("PLE", 32): 1.10,
}
TRANSFORMER = 1.15
ONE_TASK = {("MMoE", ROWS): 1.0, ("MMoE", 1): 1.0, ("PLE", ROWS): None, ("PLE", 1): 1.5}
VIEWS = {
    "t", "transpose", "view", "_unsafe_view", "expand", "unbind", "detach", "slice", "select",
    "unsqueeze", "permute", "split", "split_with_sizes", "alias", "squeeze",
}  # fmt: skip


def names(tasks: int) -> tuple[str, ...]:
    return tuple(f"task {t}" for t in range(tasks))


def model(kind: str, tasks: int) -> TrunkModel:
    torch.manual_seed(0)
    trunk: MMoE | PLE
    if kind == "MMoE":
        trunk = MMoE(Experts(EXPERTS, INPUTS, WIDTHS), Gates(names(tasks), INPUTS, EXPERTS))
    else:
        trunk = PLE(names(tasks), INPUTS, widths=WIDTHS)
    heads = {name: nn.Linear(WIDTHS[-1], 1) for name in names(tasks)}
    return TrunkModel(nn.Identity(), trunk, heads)


def multiply_adds(kind: str, tasks: int) -> int:
    """Return the multiply-adds of a row: experts, gates, mixing, heads."""
    first, last = WIDTHS

    def expert(inputs: int) -> int:
        return inputs * first + first * last

    if kind == "MMoE":
        gates = tasks * EXPERTS * (INPUTS + last)
        return EXPERTS * expert(INPUTS) + gates + tasks * last
    number = tasks + 1
    total = tasks * last
    for inputs, shared_gate in ((INPUTS, True), (last, False)):
        total += number * expert(inputs) + tasks * 2 * (inputs + last)
        total += number * (inputs + last) if shared_gate else 0
    return total


def bottom(multiply_adds: int, tasks: int) -> HardSharing:
    """Return a shared bottom INPUTS -> h -> h / 2 -> tasks of that many multiply-adds."""
    torch.manual_seed(0)
    linear = INPUTS + tasks / 2
    h = round(math.sqrt(linear**2 + 2 * multiply_adds) - linear)
    layers = nn.Sequential(
        nn.Linear(INPUTS, h), nn.ReLU(inplace=True), nn.Linear(h, h // 2), nn.ReLU(inplace=True)
    )
    return HardSharing(layers, {name: nn.Linear(h // 2, 1) for name in names(tasks)})


def training(made: SharedModel, inputs: Tensor) -> Callable[[], object]:
    def step() -> None:
        made.zero_grad(set_to_none=True)
        torch.cat(list(made(inputs).values()), 1).sum().backward()

    return step


def peers_of(
    kind: str, tasks: int, wanted: bool
) -> dict[str, tuple[nn.Module, share_peers.Forward]]:
    """Return other libraries' models of this sort, none where nobody asks for them."""
    return share_peers.models(kind, tasks, INPUTS, WIDTHS, EXPERTS) if wanted else {}


def training_of(
    made: nn.Module, forward: share_peers.Forward, inputs: Tensor
) -> Callable[[], object]:
    def step() -> None:
        made.zero_grad(set_to_none=True)
        forward(inputs).sum().backward()

    return step


def inference_of(forward: share_peers.Forward, inputs: Tensor) -> Callable[[], object]:
    def call() -> Tensor:
        with torch.inference_mode():
            return forward(inputs)

    return call


def inference(made: SharedModel, inputs: Tensor) -> Callable[[], object]:
    task = made.tasks[len(made.tasks) // 2]

    def call() -> dict[str, Tensor]:
        with torch.inference_mode():
            return made(inputs, tasks=(task,))

    return call


def extracted(made: TrunkModel, inputs: Tensor) -> Callable[[], object]:
    task = made.tasks[len(made.tasks) // 2]
    alone = made.extract(task).eval()

    def call() -> Tensor:
        with torch.inference_mode():
            output: Tensor = alone(inputs)
            return output

    return call


def written_out(made: TrunkModel, inputs: Tensor) -> Callable[[], object]:
    """Return one task of MMoE in torch's operators on the same weights."""
    task = made.tasks[len(made.tasks) // 2]
    with torch.no_grad():
        stacked = made.trunk.stack([task])
    layers = [
        (stacked[f"experts_{layer}_weight"], stacked[f"experts_{layer}_bias"][:, None])
        for layer in range(len(WIDTHS))
    ]
    gate, head = stacked["gates_weight"][:, 0], made.head(task)
    assert isinstance(head, nn.Linear)

    def call() -> Tensor:
        with torch.inference_mode():
            rows = inputs.expand(EXPERTS, -1, -1)
            for weight, bias in layers:
                rows = torch.baddbmm(bias, rows, weight).relu_()
            weights = functional.linear(inputs, gate).softmax(1).unsqueeze(1)
            mixed = torch.bmm(weights, rows.transpose(0, 1))[:, 0]
            return functional.linear(mixed, head.weight, head.bias)

    return call


def ratios(
    calls: dict[str, Callable[[], object]], rounds: int, repeat: int, device: str
) -> dict[str, float]:
    """Return each call's time against the first one's."""
    for call in calls.values():
        for _ in range(3):
            call()
    # One thread on a CPU: its own time, whatever else the machine does.
    clock = time.process_time if device == "cpu" else time.perf_counter
    found: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds):
        seconds: dict[str, float] = {}
        for name in list(calls) if round_ % 2 else reversed(calls):
            if (
                repeat > 1
            ):  # its weights back into the cache, which the others' took: it serves alone
                for _ in range(repeat):
                    calls[name]()
            _wait(device)
            begun = clock()
            for _ in range(repeat):
                calls[name]()
            _wait(device)
            seconds[name] = clock() - begun
        reference = seconds[next(iter(calls))]
        for name, taken in seconds.items():
            found[name].append(taken / reference)
    return {name: statistics.median(values) for name, values in found.items()}


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


class Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.number += func.overloadpacket.__name__ not in VIEWS
        return func(*args, **(kwargs or {}))


def operators(made: SharedModel, inputs: Tensor) -> int:
    with torch.no_grad(), Count() as count:
        made(inputs)
    return count.number


def transformers() -> tuple[HardSharing, SharedModel]:
    """Return the dense transformer of camvid and M3ViT on one like it, both with its two tasks."""
    tasks = TaskSet([Task("segments", DenseLabels(11)), Task("distance", DenseRegression())])
    dense, taken_over = (ViT((0.0,) * 3, (1.0,) * 3, (96, 128)) for _ in range(2))
    return HardSharing.build(dense, 16, tasks), M3ViT.build(taken_over, 16, tasks)


def flops(made: SharedModel, pictures: Tensor, task: str) -> int:
    # Kernels that fuse attention are not counted; the plain one is.
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        made(pictures, tasks=(task,))
    return counter.get_total_flops()


def peak_megabytes(step: Callable[[], object]) -> float:
    """Return what torch's allocator held at most during the step, above what it held before."""
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    held = highest = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return highest / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="five rounds instead of twenty-five")
    parser.add_argument("--json", action="store_true", help="one JSON line per figure")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--peers", action="store_true", help="DeepCTR-Torch and Torch-RecHub beside them"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    device, rounds = options.device, 5 if options.quick else 25

    def tell(workload: str, subject: str, figure: float, bound: float | None, note: str) -> None:
        if options.json:
            line = {"workload": workload, "subject": subject, "figure": figure, "bound": bound}
            print(json.dumps({**line, "note": note}), flush=True)
        else:
            mark = "    " if bound is None else "ok  " if figure <= bound else "OVER"
            limit = "" if bound is None else f"at most {bound:.2f}"
            print(f"{mark} {workload:28} {subject:18} {figure:8.2f}  {limit:13} {note}", flush=True)

    if not options.json:
        where = platform.machine() if device == "cpu" else torch.cuda.get_device_name()
        print(
            f"{where}, {os.cpu_count()} cores, one thread, torch {torch.__version__}, medians of "
            f"{rounds} rounds"
        )
    inputs = torch.randn(ROWS, INPUTS, device=device)
    for (kind, tasks), bound in TRAINING.items():
        made = model(kind, tasks).to(device)
        beside = bottom(multiply_adds(kind, tasks), tasks).to(device)
        calls = {"bottom": training(beside, inputs), kind: training(made, inputs)}
        for name, (peer, forward) in peers_of(kind, tasks, options.peers).items():
            calls[name] = training_of(peer.to(device), forward, inputs)
        found = ratios(calls, rounds, 1 if device == "cpu" else 20, device)
        note = f"{multiply_adds(kind, tasks):,} multiply-adds a row"
        tell(f"training, T = {tasks}", kind, found[kind], bound, note)
        for name in list(calls)[2:]:
            tell(f"training, T = {tasks}", f"{name} {kind}", found[name], None, "")
    for (kind, rows), bound in ONE_TASK.items():
        made = model(kind, 32).to(device).eval()
        beside = bottom(multiply_adds(kind, 32), 32).to(device).eval()
        calls = {
            "bottom": inference(beside, inputs[:rows]),
            kind: inference(made, inputs[:rows]),
            f"{kind}, extracted": extracted(made, inputs[:rows]),
        }
        ours = list(calls)[1:]
        if kind == "MMoE":
            calls["MMoE, written out"] = written_out(made, inputs[:rows])
        for name, (peer, forward) in peers_of(kind, 32, options.peers).items():
            peer.to(device).eval()
            calls[f"{name} {kind}"] = inference_of(forward, inputs[:rows])
        found = ratios(calls, rounds, 1 if rows > 1 else 20, device)
        for subject in list(calls)[1:]:
            limit = bound if subject in ours else None
            tell(f"one task of 32, batch {rows}", subject, found[subject], limit, "")
    for kind in ("MMoE", "PLE"):
        for tasks in (2, 32):
            made = model(kind, tasks).to(device)
            tell(f"operators, T = {tasks}", kind, operators(made, inputs), None, "a forward pass")
    dense, sparse = (made.to(device).eval() for made in transformers())
    for rows in (1, 8):
        pictures = torch.randn(rows, 3, 96, 128, device=device)
        counts = [flops(made, pictures, "segments") for made in (dense, sparse)]
        note = f"{counts[1]:,} FLOPs, the dense transformer {counts[0]:,}"
        figure = counts[1] / counts[0]
        tell(f"FLOPs, one task, batch {rows}", "M3ViT", figure, TRANSFORMER, note)
    for tasks in (2, 10, 100, 1000):
        made = model("MMoE", tasks).to(device)
        step = training(made, inputs[:256])
        calls = {"T = 2": training(model("MMoE", 2).to(device), inputs[:256]), "this": step}
        growth = ratios(calls, max(3, rounds // 5), 1, device)["this"]
        note = "against T = 2, batch 256"
        if device == "cpu":
            note += f"; {peak_megabytes(step):.0f} MB at most above what the model holds"
        tell(f"training, T = {tasks} heads", "MMoE", growth, None, note)


if __name__ == "__main__":
    main()
