import numpy as np
import pytest

from cloud_bridge.training import judge


def test_auc_is_the_chance_that_an_anomaly_scores_above_a_healthy_window() -> None:
    assert judge.auc(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == 1.0
    assert judge.auc(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 0.5
    assert judge.auc(np.array([3.0, 4.0]), np.array([1.0])) == 0.0


def test_the_threshold_leaves_the_wished_share_of_false_alarms() -> None:
    normal = np.random.default_rng(1).normal(0, 1, 100_000)
    threshold = judge.threshold_for(normal, 0.001, 1.0)
    assert (normal >= threshold).mean() == pytest.approx(0.001, rel=0.05)


def test_the_judgement_counts_hits_misses_and_false_alarms() -> None:
    judgement = judge.judge(np.array([0.1, 0.2, 0.9, 0.1]), np.array([0.8, 0.3, 0.95]), 0.5)
    assert judgement.recall == pytest.approx(2 / 3)
    assert judgement.false_alarm_rate == 0.25
    assert judgement.f1 == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))


def test_alarms_are_stretches_of_windows() -> None:
    assert judge.alarms(np.array([0, 1, 1, 0, 1, 0, 0, 1]), 1) == [(1, 2), (4, 4), (7, 7)]
    assert judge.alarms(np.zeros(3), 1) == []


@pytest.mark.parametrize(
    ("stretch", "expected"), [((0, 9), False), ((0, 10), True), ((20, 30), True), ((21, 30), False)]
)
def test_a_stretch_meets_an_interval_with_its_ends(stretch: tuple[float, float], expected: bool) -> None:
    assert judge.overlaps(stretch, [(10, 20)]) is expected


def test_the_reconstruction_error_is_the_mean_square_of_each_row() -> None:
    errors = judge.reconstruction_error(np.array([[0, 0], [1, 3]], np.float32), np.zeros((2, 2), np.float32))
    np.testing.assert_allclose(errors, [0, 5])
