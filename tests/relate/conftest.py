"""Affinities to try things on."""

import pytest
import torch

from polytask.relate import Affinity


@pytest.fixture(scope="session")
def drawn():
    """A function (tasks, seed, shift) -> a random affinity, its diagonal as wild as the rest."""

    def draw(tasks, seed=0, shift=0.0):
        generator = torch.Generator().manual_seed(seed)
        values_TT = torch.randn(tasks, tasks, generator=generator).double() + shift
        names = tuple(f"task {t}" for t in range(tasks))
        return Affinity(names, values_TT, torch.full((tasks, tasks), torch.nan), "drawn")

    return draw
