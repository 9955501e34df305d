import numpy as np

from cloud_bridge.training import judge
from cloud_bridge.training.flatbuffer import Dense, dense_network
from cloud_bridge.training.quantize import to_int8
from cloud_bridge.training.runner import Runner


def passing_on() -> bytes:
    """A network that answers its input: relu(x) - relu(-x)."""
    eye = np.eye(8, dtype=np.float32)
    return dense_network(
        [
            Dense(np.concatenate([eye, -eye]), np.zeros(16, np.float32), "relu"),
            Dense(np.concatenate([eye, -eye], axis=1), np.zeros(8, np.float32), "none"),
        ],
        "test",
    )


def test_int8_answers_within_a_step_over_the_calibrated_range() -> None:
    random = np.random.default_rng(1)
    rows = random.uniform(-6, 6, (200, 8)).astype(np.float32)
    runner = Runner(to_int8(passing_on(), "features", [row[None] for row in rows]))
    assert np.abs(runner.rows(rows) - rows).max() < 3 * 12 / 255


def test_calibrating_with_normal_data_alone_cuts_off_what_is_rare() -> None:
    """Why the recipes calibrate over the whole range: the answer to what is rare saturates."""
    random = np.random.default_rng(2)
    normal = random.normal(0, 0.5, (200, 8)).astype(np.float32)
    rare = np.full((1, 8), 6, np.float32)
    whole = np.concatenate([normal, random.uniform(-6, 6, (50, 8)).astype(np.float32)])
    errors = {}
    for name, samples in (("normal", normal), ("whole", whole)):
        runner = Runner(to_int8(passing_on(), "features", [row[None] for row in samples]))
        errors[name] = float(judge.reconstruction_error(rare, runner.rows(rare))[0])
    assert errors["whole"] < 0.05
    assert errors["normal"] > 5


def test_the_model_is_int8_from_end_to_end() -> None:
    rows = np.random.default_rng(3).uniform(-1, 1, (20, 1, 8)).astype(np.float32)
    given, answers = Runner(to_int8(passing_on(), "features", list(rows))).raw(rows[0])
    assert given.dtype == answers[0].dtype == np.int8


def test_a_limit_cuts_the_range_of_a_tensor() -> None:
    rows = np.random.default_rng(4).uniform(-6, 6, (100, 8)).astype(np.float32)
    samples = [row[None] for row in rows]
    runner = Runner(to_int8(passing_on(), "features", samples, {"answer": (-1.0, 1.0)}))
    assert np.abs(runner.rows(rows)).max() < 1.1
