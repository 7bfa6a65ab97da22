"""The agent of IGB v2: one lesson as with modules and torch's Adam, and what many lessons teach."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from polytask.balance import State, sac

TASKS = 3


def normal(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape))


def new_agent(rng: np.random.Generator) -> State:
    return {name: value.double() for name, value in sac.new_agent(TASKS, rng).items()}


def as_modules(flat_P: torch.Tensor, shapes: sac.Shapes) -> list[nn.Sequential]:
    """Return the networks laid end to end in `flat_P` as modules: an actor or two critics."""
    pieces = flat_P.split([math.prod(shape) for shape in shapes])
    parts = [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
    nets = []
    for at in range(2 if len(shapes[0]) == 3 else 1):
        layers: list[nn.Module] = []
        for weight, bias in zip(parts[::2], parts[1::2], strict=True):
            w, b = (weight[at], bias[at]) if weight.dim() == 3 else (weight, bias)
            layer = nn.Linear(*w.shape).double()
            with torch.no_grad():
                layer.weight.copy_(w.T)
                layer.bias.copy_(b[0])
            layers += [layer, nn.ReLU()]
        nets.append(nn.Sequential(*layers[:-1]))
    return nets


def flat(nets: list[nn.Sequential]) -> torch.Tensor:
    parts = []
    for layers in zip(*([m for m in net if isinstance(m, nn.Linear)] for net in nets), strict=True):
        parts += [*(layer.weight.T.flatten() for layer in layers)]
        parts += [*(layer.bias for layer in layers)]
    return torch.cat(parts).detach()


def acted(actor: nn.Sequential, observed_BT: torch.Tensor, noise_BT: torch.Tensor):
    mean_BT, log_std_BT = actor(observed_BT).chunk(2, -1)
    u = torch.distributions.Normal(mean_BT, log_std_BT.clamp(-20, 2).exp())
    u_BT = mean_BT + u.stddev * noise_BT
    correction_BT = torch.log(1 - torch.tanh(u_BT) ** 2)
    return TASKS * F.softmax(u_BT, -1), (u.log_prob(u_BT) - correction_BT).sum(1)


def test_lessons_are_those_of_modules_and_torchs_adam():
    rng, lr = np.random.default_rng(0), 1e-2
    agent = new_agent(rng)
    (actor,) = as_modules(agent["actor_P"], sac._actor_shapes(TASKS))
    critics = as_modules(agent["critic_P"], sac._critic_shapes(TASKS))
    targets = as_modules(agent["target_P"], sac._critic_shapes(TASKS))
    log_alpha = nn.Parameter(torch.tensor(math.log(0.2), dtype=torch.float32).double())
    train_critics = torch.optim.Adam([p for net in critics for p in net.parameters()], lr)
    train_actor = torch.optim.Adam(actor.parameters(), lr)
    train_alpha = torch.optim.Adam([log_alpha], lr)
    for _ in range(4):
        before, after = normal(rng, 16, TASKS).exp(), normal(rng, 16, TASKS).exp()
        action = TASKS * F.softmax(normal(rng, 16, TASKS), -1)
        batch = sac.Transitions(before, action, normal(rng, 16), after)
        noise = normal(rng, 2, 16, TASKS)
        agent = sac.learn(agent, batch, noise, lr)

        alpha = log_alpha.detach().exp()
        with torch.no_grad():
            next_action, next_density = acted(actor, after, noise[0])
            worth = [net(torch.cat([after, next_action], 1))[:, 0] for net in targets]
            goal = batch.reward_B + 0.99 * (torch.minimum(*worth) - alpha * next_density)
        train_critics.zero_grad()
        sum(
            F.mse_loss(net(torch.cat([before, action], 1))[:, 0], goal) for net in critics
        ).backward()
        train_critics.step()
        train_actor.zero_grad()
        chosen, density = acted(actor, before, noise[1])
        worth = [net(torch.cat([before, chosen], 1))[:, 0] for net in critics]
        (alpha * density - torch.minimum(*worth)).mean().backward()
        train_actor.step()
        train_alpha.zero_grad()
        (-log_alpha * (density.detach() - TASKS).mean()).backward()
        train_alpha.step()
        with torch.no_grad():
            for net, target in zip(critics, targets, strict=True):
                for p, slow in zip(net.parameters(), target.parameters(), strict=True):
                    slow.copy_(0.005 * p + 0.995 * slow)

    close = {"rtol": 1e-6, "atol": 1e-9}
    torch.testing.assert_close(agent["critic_P"], flat(critics), **close)
    torch.testing.assert_close(agent["target_P"], flat(targets), **close)
    torch.testing.assert_close(agent["actor_P"], flat([actor]), **close)
    torch.testing.assert_close(agent["log_alpha"], log_alpha.detach(), **close)
    assert int(agent["lessons"]) == 4


def test_an_agent_learns_the_action_that_is_rewarded():
    """Reward: the share of the first task. Nothing depends on what is observed."""
    rng = np.random.default_rng(0)
    agent = new_agent(rng)
    observed = normal(rng, 64, TASKS)

    def first_share() -> float:
        actions, _ = sac.act(agent["actor_P"], observed, normal(rng, 64, TASKS))
        assert actions.sum(1).tolist() == pytest.approx([TASKS] * 64, rel=1e-5)
        return float(actions[:, 0].mean())

    assert first_share() == pytest.approx(1.0, abs=0.2)
    for _ in range(150):
        action = TASKS * F.softmax(2 * normal(rng, 64, TASKS), -1)
        batch = sac.Transitions(observed, action, 10 * action[:, 0], observed)
        agent = sac.learn(agent, batch, normal(rng, 2, 64, TASKS), 3e-3)
    assert first_share() > 2.0


def test_a_lesson_changes_nothing_in_place():
    rng = np.random.default_rng(0)
    agent = new_agent(rng)
    before = {name: value.clone() for name, value in agent.items()}
    rows = [normal(rng, 4, TASKS) for _ in range(3)]
    batch = sac.Transitions(rows[0], rows[1], normal(rng, 4), rows[2])
    after = sac.learn(agent, batch, normal(rng, 2, 4, TASKS), 1e-3)
    assert all(torch.equal(agent[name], value) for name, value in before.items())
    assert not any(value.requires_grad for value in after.values())
    assert {n: v.shape for n, v in after.items()} == {n: v.shape for n, v in before.items()}
