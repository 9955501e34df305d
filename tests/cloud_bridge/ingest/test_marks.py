from cloud_bridge.ingest.marks import PublishedMarks
from cloud_bridge.values import StreamKey

KEY = StreamKey("dock", "0" * 16, "event")


def test_a_mark_never_goes_back_within_an_epoch() -> None:
    marks = PublishedMarks()
    assert [marks.admit(KEY, mark) for mark in (5, 7, 6, 7, 8)] == [True, True, False, True, True]


def test_a_new_epoch_and_other_streams_begin_anew() -> None:
    marks = PublishedMarks()
    assert marks.admit(KEY, 100)
    assert marks.admit(KEY._replace(epoch="1" * 16), 1)
    assert marks.admit(KEY._replace(record_class="bulk"), 0)
    assert marks.admit(KEY._replace(gateway="gate"), 0)
