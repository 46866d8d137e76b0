"""No command outside the limits passes the gate, and refusals move nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import InputError
from planning.safety import Order, SafetyGate, SafetyLimits, limits_from

LIMITS = SafetyLimits(workspace=((0.3, 0.65), (-0.3, 0.3), (0.05, 0.4)))
LOW, HIGH = np.transpose(LIMITS.workspace)
SOMEWHERE = np.array([0.45, 0.0, 0.2, 0.0, 0.0, 0.0, 0.5])

any_number = st.floats(allow_nan=True, allow_infinity=True)
sensible = st.floats(-0.8, 0.8)
inside = st.tuples(*(st.floats(low, high) for low, high in LIMITS.workspace))


def order(action: Any, pose: Any = SOMEWHERE, *, age: float = 0.0, sequence: int = 1, duration: float = 0.5) -> Order:
    return Order(action, pose, 10.0, 10.0 + age, sequence, duration)


@given(action=st.lists(st.one_of(any_number, sensible), min_size=7, max_size=7), position=inside, grip=st.floats(0, 1))
def test_whatever_is_allowed_lies_inside_every_limit(action: list[float], position: tuple[float, ...], grip: float) -> None:
    pose = np.array([*position, 0, 0, 0, grip])
    decision = SafetyGate(LIMITS).check(order(np.array(action), pose))
    if decision.action is None:
        assert not decision.allowed and decision.reasons
        return
    sent, tolerance = decision.action, 1e-9
    assert np.isfinite(sent).all()
    assert np.abs(sent[:3]).max() <= LIMITS.max_delta + tolerance and np.linalg.norm(sent[:3]) <= LIMITS.max_norm + tolerance
    assert np.abs(sent[3:6]).max() <= LIMITS.max_rotation + tolerance and abs(sent[6]) <= LIMITS.max_gripper + tolerance
    assert np.linalg.norm(sent[:3]) <= LIMITS.max_speed * 0.5 + tolerance
    target = pose[:3] + sent[:3]
    assert (target >= LOW - tolerance).all() and (target <= HIGH + tolerance).all()
    assert -tolerance <= grip + sent[6] <= 1 + tolerance


@given(action=st.lists(sensible, min_size=7, max_size=7), index=st.integers(0, 6), bad=st.sampled_from([math.nan, math.inf, -math.inf]))
def test_a_number_that_is_not_finite_never_passes(action: list[float], index: int, bad: float) -> None:
    action[index] = bad
    assert not SafetyGate(LIMITS).check(order(np.array(action))).allowed
    pose = SOMEWHERE.copy()
    pose[index] = bad
    assert not SafetyGate(LIMITS).check(order(np.zeros(7), pose)).allowed


@given(position=st.tuples(*(st.floats(low - 0.019, high + 0.019) for low, high in LIMITS.workspace)), move=st.lists(st.floats(-0.3, 0.3), min_size=3, max_size=3))
def test_from_just_outside_the_workspace_every_allowed_command_leads_inwards(position: tuple[float, ...], move: list[float]) -> None:
    pose = np.array([*position, 0, 0, 0, 0])
    decision = SafetyGate(LIMITS).check(order(np.array([*move, 0, 0, 0, 0]), pose))
    assert decision.action is not None

    def outside(point: np.ndarray) -> np.ndarray:
        return np.maximum(np.maximum(LOW - point, point - HIGH), 0)

    assert (outside(pose[:3] + decision.action[:3]) <= outside(pose[:3]) + 1e-12).all()


def test_a_good_command_passes_untouched() -> None:
    action = np.array([0.05, -0.02, 0.03, 0.1, 0, 0, 0.2])
    decision = SafetyGate(LIMITS).check(order(action))
    assert decision.allowed and not decision.clipped and np.array_equal(decision.action, action)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (order(np.zeros(6)), "wrong shape"), (order("up"), "not numbers"), (order(np.zeros(7), age=1.5), "too old"),
        (order(np.zeros(7), age=-0.1), "future"), (order(np.array([1.0, 0, 0, 0, 0, 0, 0])), "absurd move"),
        (order(np.array([0, 0, 0, 0, 2.0, 0, 0])), "absurd turn"), (order(np.zeros(7), duration=0.0), "no duration"),
        (order(np.zeros(7), np.array([0.45, 0, 0.0, 0, 0, 0, 0])), "outside its workspace"),
        (order(np.zeros(7), np.array([0.45, 0, 0.2, 180.0, 0, 0, 0])), "not in radians"),
        (order(np.zeros(7), np.array([0.45, 0, 0.2, 0, 0, 0, 40.0])), "0..1 gripper"),
    ],
)  # fmt: skip
def test_each_kind_of_bad_order_is_refused_with_its_reason(bad: Order, reason: str) -> None:
    decision = SafetyGate(LIMITS).check(bad)
    assert not decision.allowed and decision.action is None and reason in decision.reasons[0]


def test_an_order_on_an_old_observation_is_refused_even_after_a_newer_one() -> None:
    gate = SafetyGate(LIMITS)
    assert gate.check(order(np.zeros(7), sequence=5)).allowed
    assert not gate.check(order(np.zeros(7), sequence=5)).allowed
    assert not gate.check(order(np.zeros(7), sequence=4)).allowed
    assert gate.check(order(np.zeros(7), sequence=6)).allowed


def test_one_refusal_lets_the_episode_go_on_and_repeated_faults_latch_until_reset() -> None:
    gate, bad = SafetyGate(LIMITS), np.full(7, np.nan)
    for sequence in range(1, 3):
        assert not gate.check(order(bad, sequence=sequence)).allowed
        assert gate.check(order(np.zeros(7), sequence=sequence)).allowed
    assert not gate.check(order(bad, sequence=10)).allowed
    assert gate.latched and not gate.check(order(np.zeros(7), sequence=11)).allowed
    gate.reset()
    assert gate.check(order(np.zeros(7), sequence=12)).allowed


def test_two_commands_in_a_row_that_the_arm_did_not_follow_latch() -> None:
    gate, move, here = SafetyGate(LIMITS), np.array([0.05, 0, 0, 0, 0, 0, 0.0]), SOMEWHERE
    gate.confirm(move, here, here)
    assert gate.latched is None
    gate.confirm(move, here, here + move)
    gate.confirm(move, here, here)
    assert gate.latched is None
    gate.confirm(move, here, np.full(7, np.nan))
    assert gate.latched is not None


@pytest.mark.parametrize("values", [{}, {"workspace": [[0.3, 0.2], [0, 1], [0, 1]]}, {"workspace": [[0, 1]] * 3, "max_speed": math.nan}, {"workspace": [[0, 1]] * 3, "speed": 1}])
def test_limits_that_say_too_little_or_nonsense_never_make_a_gate(values: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        limits_from(values)
