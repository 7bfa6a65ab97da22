"""IGB v2: weights chosen by an agent that is rewarded by the task which improves least.

Source: Dai, Fei & Lu, "Improvable Gap Balancing for Multi-Task Learning", UAI 2023,
    https://arxiv.org/abs/2307.15429, the second of its two algorithms; authors' code
    https://github.com/YanqiDai/IGB4MTL
Differs from the source: the agent observes losses over their levels, not raw ones, so that units
    do not matter. Rewards are not scaled by the learning rate's schedule, which a method does not
    see. An absent task is observed at its last loss, counts in no reward, and takes its weight
    with it; the source has none. A task without a level is observed at its level. A loss of
    exactly 0 has no logarithm; its weight is 0, and a note says so.
Shapes: T = tasks of the run, K = tasks present, N = transitions remembered, B = rows of a batch,
    X = 3 T + 1, the numbers of a transition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from polytask.balance.base import Needs, Signal, State, Update, check_losses
from polytask.balance.levels import gather, levels, no_levels
from polytask.balance.sac import Transitions, act, learn, new_agent
from polytask.errors import UsageError

BATCH = 256
"""Rows of a lesson once the memory is full; half as many at first."""


@dataclass(frozen=True)
class IGBv2:
    """Weights T a / L, with a on the simplex: drawn at random at first, then by the agent.

    The agent observes L / level, with each task's mean loss in an early epoch as its level; its
    reward is the least fall of L / level among the tasks. Every `every` updates it takes between
    every / 2 and every lessons of a few milliseconds each.

    level_epoch: the epoch whose mean losses become the levels, counted from 0.
    learn_epoch, act_epoch: epochs from which on the agent learns, and chooses; after level_epoch.
    memory: transitions remembered. lr: > 0, of the agent's networks. seed: of all draws.
    """

    needs: ClassVar[Needs] = "losses"
    foresees: ClassVar[bool] = False
    by_epoch: ClassVar[bool] = True

    level_epoch: int = 1
    learn_epoch: int = 3
    act_epoch: int = 5
    every: int = 50
    memory: int = 10_000
    lr: float = 3e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.level_epoch < min(self.learn_epoch, self.act_epoch):
            raise UsageError(
                f"IGBv2: level_epoch is {self.level_epoch}, learn_epoch {self.learn_epoch}, "
                f"act_epoch {self.act_epoch}; give a level_epoch >= 0 below both others."
            )
        for name, least in (("every", 2), ("memory", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UsageError(
                    f"IGBv2: {name} is {getattr(self, name)}; give an integer >= {least}."
                )
        if not 0 < self.lr < math.inf:
            raise UsageError(f"IGBv2: lr is {self.lr}; give a value > 0 (default 3e-4).")

    def start(self, tasks: int) -> State:
        """Return an untrained agent, an empty memory, and no levels; NaN: nothing seen yet."""
        agent = new_agent(tasks, np.random.default_rng((self.seed, 0)))
        return no_levels(tasks) | {
            "last_T": torch.full((tasks,), torch.nan, dtype=torch.float64),
            "action_T": torch.zeros(tasks, dtype=torch.float32),
            "memory_NX": torch.zeros(self.memory, 3 * tasks + 1),
            "stored": torch.zeros((), dtype=torch.int64),
            **{f"agent.{name}": value for name, value in agent.items()},
        }

    def __call__(self, signal: Signal, state: State) -> Update:
        """Return weights of shape (K,), float64; raise where a loss is negative."""
        note = check_losses("IGBv2", signal)
        assert signal.epoch is not None, "the engine tells the epoch where by_epoch is True"
        losses_K = signal.losses_K.to(torch.float64)
        state = gather(signal, state, self.level_epoch)
        last_T = state["last_T"]
        now_T = last_T.index_copy(0, signal.index_K, losses_K)
        rng = np.random.default_rng((self.seed, 1, signal.step))
        action_T = self._random(rng, signal)
        if signal.epoch > self.level_epoch:
            gap_T = _gap(now_T, state)
            state = _remember(signal, state, _gap(last_T, state), gap_T)
            if signal.epoch >= self.learn_epoch and signal.step % self.every == 0:
                state = self._taught(state, rng)
            if signal.epoch >= self.act_epoch:
                noise_T = _normal(rng, (1, signal.tasks), gap_T.device)
                action_T = act(state["agent.actor_P"], gap_T[None], noise_T)[0][0]
        state = state | {"last_T": now_T, "action_T": action_T}
        weights_K = action_T.double().index_select(0, signal.index_K) / losses_K
        return Update(state, torch.where(losses_K > 0, weights_K, 0.0), note=note)

    def _random(self, rng: np.random.Generator, signal: Signal) -> Tensor:
        drawn_T = _normal(rng, (signal.tasks,), signal.losses_K.device)
        return signal.tasks * torch.softmax(drawn_T, dim=0)

    def _taught(self, state: State, rng: np.random.Generator) -> State:
        """Return the state after the agent's lessons, more and longer ones as memory fills."""
        stored = min(int(state["stored"]), self.memory)
        if stored == 0:
            return state
        memory_NX = state["memory_NX"]
        tasks = len(state["last_T"])
        full = (1 + stored / self.memory) / 2
        rows = int(BATCH * full)
        agent = {name[6:]: value for name, value in state.items() if name.startswith("agent.")}
        for _ in range(int(self.every * full)):
            drawn_B = torch.from_numpy(rng.integers(stored, size=rows)).to(memory_NX.device)
            parts = memory_NX[drawn_B].split([tasks, tasks, 1, tasks], dim=1)  # type: ignore[no-untyped-call]
            before_BT, action_BT, reward_B1, after_BT = parts
            batch = Transitions(before_BT, action_BT, reward_B1[:, 0], after_BT)
            agent = learn(agent, batch, _normal(rng, (2, rows, tasks), memory_NX.device), self.lr)
        return state | {f"agent.{name}": value for name, value in agent.items()}


def _gap(losses_T: Tensor, state: State) -> Tensor:
    """Return losses over their levels, (T,), float32; 1 where either is not known."""
    return (losses_T / levels(state)).nan_to_num(nan=1.0).float()


def _remember(signal: Signal, state: State, before_T: Tensor, after_T: Tensor) -> State:
    """Return the state with the transition that ends here; the oldest one gives way."""
    usable_T = ~(state["last_T"].isnan() | levels(state).isnan())
    usable_K = usable_T.index_select(0, signal.index_K)
    if not bool(usable_K.any()):
        return state
    fall_K = (before_T - after_T).index_select(0, signal.index_K)
    reward = fall_K.masked_fill(~usable_K, torch.inf).min()
    row_X = torch.cat([before_T, state["action_T"], reward[None], after_T])
    at = (state["stored"] % len(state["memory_NX"]))[None]
    memory_NX = state["memory_NX"].index_copy(0, at, row_X[None])
    return state | {"memory_NX": memory_NX, "stored": state["stored"] + 1}


def _normal(rng: np.random.Generator, shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape)).float().to(device)
