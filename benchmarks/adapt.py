"""The cost of one batch with many tasks: against one LoRA, and against the base.

    python benchmarks/adapt.py            # all figures, about ten minutes
    python benchmarks/adapt.py --quick    # about one, with few tokens, so that overheads count more
    python benchmarks/adapt.py --json     # one JSON line per figure
    python benchmarks/adapt.py --peers PYTHON    # beside PEFT, which that interpreter has

Every figure of time is a ratio of neighbouring calls, processor time, the median over rounds, so
that a machine whose speed drifts does not decide it. The model is a transformer written here: 512
channels, 6 layers, LoRA of rank 8 on q and v. "One LoRA" is written out as LoRA's own code has it,
W x + B (A x) * scale, for one task alone. Arrow's 32 experts are trained LoRA of rank 8, of which
every token takes 3; AdapterFusion's sources are bottlenecks of 64 channels. Rows take tasks in
turn. Training is forward and backward of the sum of the outputs; gradients begin as None.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from adapt_peers import RANK, WIDTH, count, ratios, run, transformer
from polytask.adapt import (
    SSF,
    Adapted,
    AdapterFusion,
    BitFit,
    Bottleneck,
    DoRA,
    LoRA,
    Method,
    Where,
    adapt,
    arrow_of,
    load_adapted,
    save_adapted,
)

WHERE = ("q_proj", "v_proj")
TRAINING = {1: None, 8: 1.03, 32: 1.05, 1000: None}
MANY_TOKENS, ONE_TOKEN = 1.05, 1.15
ARROW = 1.30
"""Every token takes 3 experts of 32, by their prototypes."""
SOURCES = 4


class OneLoRA(nn.Module):
    """A layer with one LoRA, as the authors' code runs it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.A, self.B = nn.Linear(WIDTH, RANK, bias=False), nn.Linear(RANK, WIDTH, bias=False)
        nn.init.zeros_(self.B.weight)
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x) + self.B(self.A(x)) * self.scale
        return y


def one_lora() -> nn.Module:
    model = transformer()
    for block in model:
        block.q_proj, block.v_proj = OneLoRA(block.q_proj), OneLoRA(block.v_proj)
    return model


def adapted(tasks: int, method: Method | None = None) -> Adapted:
    names = [f"t{t}" for t in range(tasks)]
    return adapt(transformer(), method or LoRA(RANK), names, Where(WHERE))


def trained(made: Adapted) -> Adapted:
    """Return it with adapters of no zero change."""
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parts.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return made


def turns(rows: int, tasks: int) -> Tensor:
    """Return the tasks of rows, in turn; of a thousand, from all over them."""
    return torch.arange(rows) * max(1, tasks // rows) % tasks


def training(
    model: nn.Module, x: Tensor, made: Adapted | None = None, index_B: Tensor | None = None
) -> Callable[[], object]:
    parameters = [p for p in (made or model).parameters() if p.requires_grad]

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        if made is None or index_B is None:
            model(x).sum().backward()
        else:
            with made.tasks(index_B):
                loss = made.base(x).sum()
            loss.backward()

    return step


def inference(model: nn.Module, x: Tensor) -> Callable[[], object]:
    def call() -> None:
        with torch.inference_mode():
            model(x)

    return call


def mixed(made: Adapted, x: Tensor, index_B: Tensor) -> Callable[[], object]:
    def call() -> None:
        with torch.inference_mode(), made.tasks(index_B):
            made.base(x)

    return call


def compilations(made: Adapted, x: Tensor) -> int:
    """Return how often six patterns of tasks are compiled."""
    seen: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        seen.append(1)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(made.base, backend=backend, fullgraph=True)
    rows, tasks = len(x), len(made.names)
    for pattern in range(6):
        generator = torch.Generator().manual_seed(pattern)
        index_B = torch.randint(-1 if pattern > 3 else 0, tasks, (rows,), generator=generator)
        with torch.no_grad(), made.tasks(index_B):
            compiled(x)
    torch._dynamo.reset()
    return len(seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, few tokens")
    parser.add_argument("--json", action="store_true", help="one JSON line per figure")
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter that has PEFT")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds, tokens, long = (3, 8, 16) if options.quick else (9, 32, 128)

    def tell(workload: str, subject: str, figure: float, bound: float | None, note: str) -> None:
        bound = None if options.quick and "x" in workload else bound  # promised of whole batches
        if options.json:
            line = {"workload": workload, "subject": subject, "figure": figure, "bound": bound}
            print(json.dumps({**line, "note": note}), flush=True)
        else:
            mark = "    " if bound is None else "ok  " if figure <= bound else "OVER"
            limit = "" if bound is None else f"at most {bound:.2f}"
            print(f"{mark} {workload:28} {subject:21} {figure:8.3f}  {limit:13} {note}", flush=True)

    if not options.json:
        print(
            f"{platform.machine()}, {os.cpu_count()} cores, one thread, torch {torch.__version__}, "
            f"medians of {rounds} rounds"
        )
    x = torch.randn(64, tokens, WIDTH)
    calls = {"one LoRA": training(one_lora(), x)}
    for tasks in TRAINING:
        made = adapted(tasks)
        calls[f"T = {tasks}"] = training(made.base, x, made, turns(64, tasks))
    found = ratios(calls, rounds, 1)
    for tasks, bound in TRAINING.items():
        note = "against one LoRA written out; " + ("its tasks in turn" if tasks > 1 else "ours")
        tell(f"training, 64 x {tokens}", f"LoRA, T = {tasks}", found[f"T = {tasks}"], bound, note)
    for method in (DoRA(RANK), SSF(), BitFit(), Bottleneck(64)):
        own = {
            f"T = {tasks}": training(made.base, x, made, turns(64, tasks))
            for tasks in (1, 32)
            if (made := adapted(tasks, method))
        }
        figure = ratios(own, max(3, rounds // 3), 1)["T = 32"]
        name = type(method).__name__
        tell(
            f"training, 64 x {tokens}", f"{name}, T = 32", figure, 1.05, "against ours of one task"
        )
    fusion = AdapterFusion(trained(adapted(SOURCES, Bottleneck(64))))
    own = {
        f"T = {tasks}": training(made.base, x, made, turns(64, tasks))
        for tasks in (1, 32)
        if (made := adapted(tasks, fusion))
    }
    figure = ratios(own, max(3, rounds // 3), 1)["T = 32"]
    note = f"of {SOURCES} sources, against ours of one task"
    tell(f"training, 64 x {tokens}", "AdapterFusion, T = 32", figure, None, note)
    base, many = transformer(), adapted(32)
    routed = arrow_of(trained(adapted(32)), top=3)
    for length, bound in ((long, MANY_TOKENS), (1, ONE_TOKEN)):
        y = torch.randn(64, length, WIDTH)
        short = {
            "base": inference(base, y),
            "one LoRA": inference(one_lora(), y),
            "T = 32": mixed(many, y, turns(64, 32)),
            "Arrow": mixed(routed, y, turns(64, 32)),
        }
        figures = ratios(short, rounds * (5 if length == 1 else 1), 5 if length == 1 else 1)
        note = f"against the base; one LoRA written out {figures['one LoRA']:.3f}"
        tell(f"inference, 64 x {length}", "LoRA, T = 32", figures["T = 32"], bound, note)
        limit = None if length == 1 else ARROW
        note = "every token takes 3; against the base"
        tell(f"inference, 64 x {length}", "Arrow top-3, T = 32", figures["Arrow"], limit, note)
    y = torch.randn(64, 1, WIDTH)
    plain = count(inference(base, y))
    for tasks in (2, 32, 1000):
        made = adapted(tasks)
        number = count(mixed(made, y, turns(64, tasks)))
        tell(f"operators, T = {tasks}", "LoRA", number, None, f"a forward pass; the base {plain}")
    tell("compilations, 6 patterns", "LoRA, T = 32", compilations(many, y[:8]), 1.0, "")
    with tempfile.TemporaryDirectory() as folder:
        made, path = adapted(1000), Path(folder) / "all.safetensors"
        size = sum(p.numel() * p.element_size() for p in made.trainable_parameters())
        tell("memory, a task more", "LoRA", size / 1000 / 1024, None, "KiB of parameters")
        save_adapted(path, made)
        begun = time.process_time()
        load_adapted(path, transformer())
        note = f"seconds; {path.stat().st_size / 2**20:.0f} MiB, the base's fingerprint included"
        tell("loading, T = 1000", "LoRA", time.process_time() - begun, None, note)
        steps = {}
        for tasks in (32, 1000):
            own = adapted(tasks)
            optimiser = torch.optim.AdamW(own.trainable_parameters(), fused=True)
            step = training(own.base, x, own, turns(64, tasks))
            steps[f"T = {tasks}"] = lambda step=step, o=optimiser: (step(), o.step())
        figure = ratios(steps, max(3, rounds // 3), 1)["T = 1000"]
        note = "forward, backward and AdamW, against T = 32"
        tell("training step, T = 1000", "LoRA", figure, None, note)
    if options.peers:
        for name, value in run(options.peers, max(3, rounds)).items():
            if name != "version":
                tell(name, "PEFT, T = 32", value, None, "against the base")


if __name__ == "__main__":
    main()
