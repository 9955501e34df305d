"""What of a picture leaves the device."""

import cv2
import numpy as np
import pytest

from gateway.config import Privacy
from gateway.preprocess.privacy import hidden
from gateway.preprocess.snapshot import JPEG, NPY, snapshot_of
from gateway.values import Box, Frame, Window

BOX = Box(0.25, 0.25, 0.75, 0.75)


def checkers(height: int = 240, width: int = 320) -> np.ndarray:
    """A picture of which every detail is known: black and white in turn."""
    rows, columns = np.indices((height, width))
    image: np.ndarray = (((rows // 2 + columns // 2) % 2) * 255).astype(np.uint8)
    return np.repeat(image[:, :, None], 3, axis=2)


def frame(image: np.ndarray) -> Frame:
    return Frame("cam", 1, 0, 0, image)


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))


def detail(image: np.ndarray) -> float:
    return float(np.abs(np.diff(image.astype(float), axis=1)).mean())


@pytest.mark.parametrize("hide", ["pixelate", "blur"])
def test_a_hidden_region_has_lost_its_detail_and_the_rest_has_not(hide: str) -> None:
    image = checkers()
    privacy = Privacy(hide=hide, regions=[(0.0, 0.0, 0.5, 1.0)])  # type: ignore[arg-type]  # one of the words
    shown = hidden(image, privacy)
    assert detail(shown[:, :160]) < 5
    np.testing.assert_array_equal(shown[:, 160:], image[:, 160:])
    assert detail(image[:, :160]) > 100, "control: what was hidden was there"


def test_without_regions_all_of_it_is_hidden_and_the_frame_itself_stays() -> None:
    image = checkers()
    shown = hidden(image, Privacy(hide="pixelate"))
    assert detail(shown) < 5
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) <= 8 * 6
    np.testing.assert_array_equal(image, checkers())


def test_a_region_given_the_wrong_way_round_is_hidden_all_the_same() -> None:
    shown = hidden(checkers(), Privacy(hide="blur", regions=[(0.5, 1.0, 0.0, 0.0)]))
    assert detail(shown[:, :160]) < 5


def test_a_region_within_one_pixel_hides_that_pixel() -> None:
    image = checkers(4, 4)
    image[0, 0] = (1, 2, 3)
    shown = hidden(image, Privacy(hide="pixelate", regions=[(0.01, 0.01, 0.3, 0.3)]))
    assert tuple(shown[0, 0]) != (1, 2, 3)


def test_what_is_hidden_stays_hidden_within_the_box_that_is_cut_out() -> None:
    cut = snapshot_of(frame(checkers()), BOX, max_side=320, quality=95, privacy=Privacy(hide="pixelate"))
    open_cut = snapshot_of(frame(checkers()), BOX, max_side=320, quality=95)
    assert cut is not None
    assert open_cut is not None
    assert detail(decoded(cut.data)) < 10
    assert detail(decoded(open_cut.data)) > 100


def test_box_sends_the_box_without_a_margin_and_nothing_where_there_is_none() -> None:
    only = Privacy(send="box")
    cut = snapshot_of(frame(checkers()), BOX, max_side=320, quality=70, privacy=only)
    assert cut is not None
    assert (cut.width, cut.height) == (160, 120)
    wider = snapshot_of(frame(checkers()), BOX, max_side=320, quality=70)
    assert wider is not None
    assert (wider.width or 0) > 160, "control: by default there is a margin"
    assert snapshot_of(frame(checkers()), None, max_side=320, quality=70, privacy=only) is None
    assert snapshot_of(frame(checkers()), None, max_side=320, quality=70) is not None


def test_never_sends_neither_pictures_nor_windows() -> None:
    window = Window("acc", 1, 0, 0, 3200.0, np.zeros((32, 3), np.float32))
    never = Privacy(send="never")
    assert snapshot_of(frame(checkers()), BOX, max_side=320, quality=70, privacy=never) is None
    assert snapshot_of(window, None, max_side=320, quality=70, privacy=never) is None
    kept = snapshot_of(window, None, max_side=320, quality=70, privacy=Privacy(send="box"))
    assert kept is not None
    assert kept.content_type == NPY
    shown = snapshot_of(frame(checkers()), BOX, max_side=320, quality=70)
    assert shown is not None
    assert shown.content_type == JPEG
