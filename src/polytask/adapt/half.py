"""Half fine-tuning: each stage trains a random half of the weights and freezes the other.

Source: Hui, Zhang, Wang, Xu, Sun & Wu, "HFT: Half Fine-Tuning for Large Language Models", 2024,
    https://arxiv.org/abs/2404.18466
Differs from the source: derived from its abstract and figure 2. The half is drawn among the layers
    of each category (attention, feed-forward, norms) in each block; where a block has an odd
    number, as of a gated feed-forward part, every second block freezes the greater half. What is
    outside of numbered blocks (embeddings, heads) stays as it is. A packed attention's in_proj is
    one of its two layers.
Shapes: none of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from polytask.adapt.held import Held
from polytask.adapt.layers import Found, find
from polytask.adapt.where import block_of, glob
from polytask.errors import UsageError

ATTENTION = ("attn", "attention")
"""What the name of a module, or of its class, has in it where it is attention."""


@dataclass(frozen=True)
class HalfFineTuning:
    """Settings: `stage` freezes a half of a model, another one at each stage.

    seed: of the halves. categories: globs of names of layers, one tuple for each category; ():
    those of the source, told from what layers are.
    """

    seed: int = 0
    categories: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.categories, tuple) or not all(
            isinstance(globs, tuple) for globs in self.categories
        ):
            raise UsageError(
                f"HalfFineTuning: categories is {self.categories!r}; give tuples of names of "
                "layers, such as (('q_proj', 'v_proj'), ('norm*',))."
            )

    def stage(self, model: nn.Module, number: int, optimiser: Optimizer | None = None) -> Held:
        """Return the context in which a half is frozen: the same for a seed and a number.

        number: of the stage, from 0 (an epoch, a task, a phase of training). optimiser: see `Held`.
        """
        return Held(model, dict.fromkeys(self.frozen(model, number), False), optimiser)

    def frozen(self, model: nn.Module, number: int) -> tuple[str, ...]:
        """Return the names of the parameters that stage `number` freezes.

        Raises UsageError where the model has no layers of any category in numbered blocks.
        """
        if type(number) is not int or number < 0:
            raise UsageError(f"HalfFineTuning: stage is {number!r}; give a whole number >= 0.")
        # One generator per stage, so that a stage can be made again by itself.
        mixed = (self.seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9) % 2**63
        generator = torch.Generator().manual_seed(mixed)
        names: list[str] = []
        for blocks in self._units(model).values():
            # Odd blocks take turns, from a random one on.
            greater = bool(torch.randint(2, (), generator=generator))
            for units in blocks.values():
                half = len(units) // 2
                if len(units) % 2:
                    half += greater
                    greater = not greater
                for u in torch.randperm(len(units), generator=generator)[:half].tolist():
                    names.extend(units[u])
        return tuple(names)

    def _units(self, model: nn.Module) -> dict[str, dict[str, list[list[str]]]]:
        """Return, by category and block, the parameters of each layer together."""
        units: dict[str, dict[str, list[list[str]]]] = {}
        modules = dict(model.named_modules())
        # Each parameter once: projections of packed attention are places that have its parameters.
        names = {id(p): name for name, p in model.named_parameters()}
        for path, one in find(model).items():
            block = block_of(path)
            if block is None:
                continue
            whole = f"{block[0]}.{block[1]}".lstrip(".")
            category = self._category(modules, whole, path, one)
            own = [id(p) for p in one.module.parameters(recurse=False) if id(p) in names]
            if category and own:
                place = units.setdefault(category, {}).setdefault(whole, [])
                place.append([names.pop(key) for key in own])
        if not units:
            raise UsageError(
                "HalfFineTuning: the model has no layers in numbered blocks that belong to a "
                "category; name them: HalfFineTuning(categories=(('layer*',), ...))."
            )
        return units

    def _category(self, modules: Mapping[str, nn.Module], block: str, path: str, one: Found) -> str:
        """Return the category of a layer of a block, "" for none."""
        if self.categories:
            for number, globs in enumerate(self.categories):
                if any(glob(path, name) for name in globs):
                    return str(number)
            return ""
        if one.kind in ("norm", "module", "attention"):
            return {"norm": "norm", "module": "", "attention": "attention"}[one.kind]
        names = path.removeprefix(block).strip(".").split(".")
        around = [f"{block}.{'.'.join(names[:i])}" for i in range(1, len(names) + 1)]
        classes = [type(modules[outer]).__name__ for outer in around if outer in modules]
        told = any(word in name.lower() for name in [*names, *classes] for word in ATTENTION)
        return "attention" if told else "feed-forward"
