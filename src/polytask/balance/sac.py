"""SAC: a soft actor-critic agent as pure functions of its state; IGB v2 chooses weights by it.

Source: Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018,
    https://arxiv.org/abs/1812.05905, as written by the authors of IGB,
    https://github.com/YanqiDai/IGB4MTL
Differs from the source: an action is T softmax(u) of a normal u, as in IGB, while its density keeps
    the correction for tanh(u), as in the code of IGB: a softmax of T numbers has no density in T
    dimensions.
Shapes: B = rows of a batch, T = tasks: numbers observed, and numbers of an action,
    P = parameters of a network, laid end to end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polytask.balance.adam import adam_step
from polytask.balance.base import State

WIDTH = 128
DISCOUNT = 0.99
POLYAK = 0.005
FIRST_ALPHA = 0.2
LOG_STD = -20.0, 2.0

Shapes = list[tuple[int, ...]]


@dataclass(frozen=True)
class Transitions:
    """What was observed, done, rewarded, and observed next."""

    before_BT: Tensor
    action_BT: Tensor
    reward_B: Tensor
    after_BT: Tensor


def new_agent(tasks: int, rng: np.random.Generator) -> State:
    """Return an untrained agent: networks drawn as torch draws linear layers, Adam's moments."""
    actor_P = _drawn(_actor_shapes(tasks), rng)
    critic_P = _drawn(_critic_shapes(tasks), rng)
    log_alpha = torch.tensor(math.log(FIRST_ALPHA))
    agent = {"actor_P": actor_P, "critic_P": critic_P, "log_alpha": log_alpha}
    moments = {
        f"{name}.{moment}": torch.zeros_like(value)
        for name, value in agent.items()
        for moment in ("mean", "square")
    }
    return agent | moments | {"target_P": critic_P.clone(), "lessons": torch.zeros(())}


def act(actor_P: Tensor, observed_BT: Tensor, noise_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return actions (B, T), each > 0 and summing to T, and the logarithm of their density, (B,).

    noise_BT: standard normal numbers.
    """
    tasks = observed_BT.shape[1]
    mean_BT, log_std_BT = _network(actor_P, _actor_shapes(tasks), observed_BT).chunk(2, dim=-1)
    log_std_BT = log_std_BT.clamp(*LOG_STD)
    u_BT = mean_BT + log_std_BT.exp() * noise_BT
    normal_BT = -noise_BT.square() / 2 - log_std_BT - math.log(2 * math.pi) / 2
    tanh_BT = 2 * (math.log(2) - u_BT - F.softplus(-2 * u_BT))
    return tasks * torch.softmax(u_BT, dim=-1), (normal_BT - tanh_BT).sum(-1)


def learn(agent: State, batch: Transitions, noise_2BT: Tensor, lr: float) -> State:
    """Return the agent after one update of critics, actor, temperature and target.

    noise_2BT: standard normal numbers, for the actions after and before.
    """
    tasks = batch.before_BT.shape[1]
    shapes = _critic_shapes(tasks)
    alpha = agent["log_alpha"].exp()

    def worth(critic_P: Tensor, observed_BT: Tensor, action_BT: Tensor) -> Tensor:
        """Return both critics' values, (2, B)."""
        return _network(critic_P, shapes, torch.cat([observed_BT, action_BT], 1))[..., 0]

    with torch.no_grad():
        next_BT, next_density_B = act(agent["actor_P"], batch.after_BT, noise_2BT[0])
        next_B = worth(agent["target_P"], batch.after_BT, next_BT).amin(0)
        goal_B = batch.reward_B + DISCOUNT * (next_B - alpha * next_density_B)

    with torch.enable_grad():
        critic_P = agent["critic_P"].clone().requires_grad_()
        missed_2B = worth(critic_P, batch.before_BT, batch.action_BT) - goal_B
        (grad,) = torch.autograd.grad(missed_2B.square().mean(1).sum(), critic_P)
    count = agent["lessons"] + 1
    agent = _stepped(agent, "critic_P", grad, count, lr)

    with torch.enable_grad():
        actor_P = agent["actor_P"].clone().requires_grad_()
        action_BT, density_B = act(actor_P, batch.before_BT, noise_2BT[1])
        value_B = worth(agent["critic_P"], batch.before_BT, action_BT).amin(0)
        (grad,) = torch.autograd.grad((alpha * density_B - value_B).mean(), actor_P)
    agent = _stepped(agent, "actor_P", grad, count, lr)

    # The target entropy is -T. log alpha, not alpha, is trained, so alpha stays > 0.
    agent = _stepped(agent, "log_alpha", -(density_B.detach() - tasks).mean(), count, lr)
    target_P = POLYAK * agent["critic_P"] + (1 - POLYAK) * agent["target_P"]
    return agent | {"target_P": target_P, "lessons": count}


def _stepped(agent: State, name: str, grad: Tensor, count: Tensor, lr: float) -> State:
    mean, square = f"{name}.mean", f"{name}.square"
    after = adam_step(agent[name], agent[mean], agent[square], grad, count, lr)
    return agent | dict(zip((name, mean, square), after, strict=True))


def _actor_shapes(tasks: int) -> Shapes:
    """Return weight and bias of each layer; the last one's output is means, then log-deviations."""
    widths = (tasks, WIDTH, WIDTH, 2 * tasks)
    return [s for i, o in pairwise(widths) for s in ((i, o), (1, o))]


def _critic_shapes(tasks: int) -> Shapes:
    """Return the same for two critics side by side."""
    widths = (2 * tasks, WIDTH, WIDTH, 1)
    return [s for i, o in pairwise(widths) for s in ((2, i, o), (2, 1, o))]


def _drawn(shapes: Shapes, rng: np.random.Generator) -> Tensor:
    parts = []
    for weight, bias in zip(shapes[::2], shapes[1::2], strict=True):
        bound = 1 / math.sqrt(weight[-2])
        parts += [rng.uniform(-bound, bound, math.prod(shape)) for shape in (weight, bias)]
    return torch.from_numpy(np.concatenate(parts)).float()


def _network(flat_P: Tensor, shapes: Shapes, input_BX: Tensor) -> Tensor:
    parts = flat_P.split([math.prod(shape) for shape in shapes])  # type: ignore[no-untyped-call]
    layers = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
    output = input_BX
    for at in range(0, len(layers), 2):
        output = output @ layers[at] + layers[at + 1]
        if at < len(layers) - 2:
            output = output.relu()
    return output
