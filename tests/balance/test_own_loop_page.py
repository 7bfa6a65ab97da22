"""The snippets of docs/own-loop.md run as they stand, each after the preamble."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "own-loop.md").read_text()
PREAMBLE, *SNIPPETS = re.findall(r"```python( processes)?\n(.*?)```", PAGE, re.DOTALL)
HEADINGS = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("snippet", [code for processes, code in SNIPPETS if not processes])
def test_a_snippet_runs_and_leaves_gradients(snippet, capsys):
    names: dict = {}
    exec(PREAMBLE[1] + snippet, names)
    model = names["model"]
    grads = [p.grad for p in model.parameters()]
    accumulates = "accumulate" in snippet  # its last line clears them
    assert all((grad is None) == accumulates for grad in grads)
    if not accumulates:
        assert all(bool(grad.isfinite().all()) and bool(grad.any()) for grad in grads)


@pytest.mark.parametrize("snippet", [code for processes, code in SNIPPETS if processes])
def test_a_snippet_leaves_two_processes_with_the_same_weights(snippet, tmp_path, run_pair):
    """Each draws its own rows; only what is summed over them can be alike."""
    program = tmp_path / "snippet.py"
    rank = "import os\nimport torch\nRANK = int(os.environ['RANK'])\ntorch.set_num_threads(1)\n"
    seeds = "torch.manual_seed(0)\n"
    ends = (
        "whole = [p.full_tensor() if hasattr(p, 'full_tensor') else p for p in model.parameters()]"
        "\nprint(float(sum(p.detach().abs().sum().double() for p in whole)))\n"
        "torch.distributed.destroy_process_group()\n"
    )
    loop = snippet.replace(
        "for x, y in batches():", "torch.manual_seed(RANK)\nfor x, y in batches():"
    )
    program.write_text(rank + PREAMBLE[1] + seeds + loop + ends)
    first, second = run_pair(program)
    assert first == second > 0


def test_the_page_covers_every_way_to_train():
    assert HEADINGS == [
        "Plain",
        "Gradient accumulation",
        "Half precision",
        "Activation checkpointing",
        "torch.compile",
        "Several processes",
        "FSDP2",
        "Wrappers",
    ]
    assert len(SNIPPETS) == 10
