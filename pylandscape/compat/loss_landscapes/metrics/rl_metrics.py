"""Metrics of agents."""

from __future__ import annotations

from typing import Any

import torch

from .metric import Metric


class ExpectedReturnMetric(Metric):
    """The mean return of an agent over episodes of a gym environment.

    The environment follows gym's old interface (``step`` gives four values, ``reset`` one) or
    today's (five, and a pair).
    """

    def __init__(self, gym_environment: Any, n_episodes: int) -> None:
        super().__init__()
        self.gym_environment = gym_environment
        self.n_episodes = n_episodes

    def __call__(self, agent: Any) -> float:
        act = agent if callable(agent) else agent.forward
        return sum(self._episode(act) for _ in range(self.n_episodes)) / self.n_episodes

    def _episode(self, act: Any) -> float:
        start = self.gym_environment.reset()
        observation = start[0] if isinstance(start, tuple) else start
        total, done = 0.0, False
        while not done:
            step = self.gym_environment.step(act(torch.from_numpy(observation).float()))
            observation, reward, *ends = step[: len(step) - 1]
            total, done = total + reward, any(ends)
        return total
