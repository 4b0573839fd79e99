"""Awkward modules: every engine gives the numbers of the user's own loop, or refuses and says why.

What fails prints its plan; `python -m tests.awkward --plan "..."` shows all verdicts on it.
"""

from __future__ import annotations

import awkward
import pytest
import torch
from awkward import Plan, judge, parse, plan_of

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, about what the modules do

# Over 200 modules here and in CI: each habit, stem, task and wrapper at least once.
SOON = len(awkward.PARTS)
FIRST = 100  # in the default run
MANY = 5000
SHRUNK = 8  # failures that are made small before they are shown


def assert_right_or_refused(seeds):
    judgements = [judge(plan_of(seed)) for seed in seeds]
    faults = [j for j in judgements if j.faults]
    shown = [str(awkward.shrunk(j)) if i < SHRUNK else str(j) for i, j in enumerate(faults)]
    assert not faults, "\n".join([f"{len(faults)} at fault:", *shown, awkward.summary(judgements)])
    return judgements


@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param(range(FIRST), id="first"),
        pytest.param(range(FIRST, SOON), id="rest", marks=pytest.mark.ci),
    ],
)
def test_200_awkward_modules_are_answered_rightly_or_refused_by_name(seeds):
    judgements = assert_right_or_refused(seeds)
    whole = sum(not j.refused for j in judgements)
    assert whole >= len(seeds) / 2, awkward.summary(judgements)  # refusing everything is no answer


@pytest.mark.slow
def test_5000_awkward_modules_are_answered_rightly_or_refused_by_name():
    assert_right_or_refused(range(SOON, MANY))


def test_these_modules_meet_every_part():
    plans = [plan_of(seed) for seed in range(SOON)]
    met = {("block", b) for p in plans for b in p.blocks}
    met |= {("stem", p.stem) for p in plans} | {("task", p.task) for p in plans}
    met |= {("wrapper", p.wrapper) for p in plans}
    assert set(awkward.PARTS) <= met
    assert SOON >= 200


def test_a_plan_is_its_text_and_its_seed():
    for seed in range(50):
        plan = plan_of(seed)
        assert parse(str(plan)) == plan == plan_of(seed)


def test_equal_plans_give_equal_modules_that_share_nothing():
    for seed in range(20):
        one, two = (awkward.build(plan_of(seed)) for _ in range(2))
        for p, q in zip(one.model.parameters(), two.model.parameters(), strict=True):
            assert torch.equal(p, q)
            assert p.numel() == 0 or p.data_ptr() != q.data_ptr()


def test_the_reference_is_autograd_and_its_own_differences():
    reference = awkward.Reference(parse("seed=3 blocks=linear_tanh,layer_norm task=ce"))
    theta = reference.theta()
    v = torch.randn(theta.numel(), dtype=torch.float64)
    h = 1e-5
    ends = [theta + h * v, theta - h * v]
    slope = (reference.value(ends[0]) - reference.value(ends[1])) / (2 * h)
    assert slope == pytest.approx(float(reference.gradient(theta) @ v), rel=1e-6)
    bent = (reference.gradient(ends[0]) - reference.gradient(ends[1])) / (2 * h)
    torch.testing.assert_close(reference.product(theta, v), bent, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("blocks", "question"),
    [(("state_attribute",), "losses"), (("detach",), "gradient"), (("in_place_input",), "losses")],
)
def test_the_judge_finds_a_wrong_number(blocks, question, monkeypatch):
    """The references of another module are as good as wrong answers."""
    plan = Plan(seed=4, blocks=("linear_tanh", *blocks))
    other = awkward.Reference(Plan(seed=4, blocks=("linear_tanh", "linear_gelu")))
    monkeypatch.setattr(awkward, "build", _built_of(other.plan, awkward.build, plan))
    verdicts = {v.question: v.kind for v in judge(plan, ["torch"]).verdicts}
    assert verdicts[question] in ("wrong", "refused")


def _built_of(other, build, plan):
    """`build`, but the reference (which asks for it unwrapped) gets another module."""
    return lambda p, wrapped=True: build(p if wrapped else other, wrapped)


def test_the_judge_finds_what_was_changed():
    built = awkward.build(plan_of(1))
    before = awkward.state_of(built)
    with torch.no_grad():
        next(built.model.parameters()).add_(1e-6)
    built.model.training ^= True
    after = awkward.state_of(built)
    assert [what for what in before if before[what] != after[what]] == ["module"]
