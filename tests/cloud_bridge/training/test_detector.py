import pytest

from cloud_bridge.training.detector import Detected, agreement, at_least, iou, matches

LEFT = (0.1, 0.1, 0.3, 0.5)
NEARLY_LEFT = (0.11, 0.1, 0.31, 0.5)
RIGHT = (0.6, 0.1, 0.8, 0.5)


def person(score: float, box: tuple[float, float, float, float] = LEFT) -> Detected:
    return Detected("Person", score, box)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (LEFT, LEFT, 1.0),
        (LEFT, RIGHT, 0.0),
        ((0.0, 0.0, 0.2, 0.2), (0.1, 0.0, 0.3, 0.2), 1 / 3),
        ((0.0, 0.0, 0.2, 0.2), (0.2, 0.0, 0.4, 0.2), 0.0),
    ],
)
def test_iou_is_the_common_area_over_that_of_both(
    a: tuple[float, float, float, float], b: tuple[float, float, float, float], expected: float
) -> None:
    assert iou(a, b) == pytest.approx(expected)


def test_boxes_at_or_above_a_score_come_best_first() -> None:
    assert at_least([person(0.3), person(0.4), person(0.9)], 0.4) == [person(0.9), person(0.4)]


def test_a_box_is_matched_once_and_only_by_its_label() -> None:
    ours = [person(0.9), person(0.8, NEARLY_LEFT)]
    assert matches(ours, [person(0.7)]) == [(person(0.9), person(0.7))]
    assert matches(ours, [Detected("Car", 0.7, LEFT)]) == []


def test_a_detector_agrees_with_itself() -> None:
    frames = [[person(0.9), person(0.5, RIGHT)], [], [person(0.2)]]
    result = agreement(frames, frames, threshold=0.45, slack=0.05)
    assert (result.f1, result.f1_with_slack, result.boxes, result.unconfirmed) == (1.0, 1.0, 2, 0)
    assert result.mean_score == result.mean_score_candidate == pytest.approx(0.7)


def test_a_box_just_below_the_threshold_counts_only_without_slack() -> None:
    result = agreement([[person(0.46)]], [[person(0.44, NEARLY_LEFT)]], threshold=0.45, slack=0.05)
    assert result.f1 == 0.0
    assert result.f1_with_slack == 1.0


def test_lost_and_invented_boxes_count_with_slack_too() -> None:
    lost = agreement([[person(0.9), person(0.8, RIGHT)]], [[person(0.9)]], threshold=0.45, slack=0.05)
    invented = agreement([[person(0.9)]], [[person(0.9), person(0.8, RIGHT)]], threshold=0.45, slack=0.05)
    assert lost.f1 == lost.f1_with_slack == pytest.approx(2 / 3)
    assert invented.f1 == invented.f1_with_slack == pytest.approx(2 / 3)
    assert lost.unconfirmed == invented.unconfirmed == 1


def test_two_detectors_that_see_nothing_agree() -> None:
    result = agreement([[], []], [[], []], threshold=0.45, slack=0.05)
    assert (result.f1, result.f1_with_slack, result.boxes) == (1.0, 1.0, 0)


def test_different_numbers_of_frames_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="shorter"):
        agreement([[], []], [[]], threshold=0.45, slack=0.05)
