"""Whatever an address carries besides the way to a device is not shown."""

import pytest

from gateway.shown import has_secret_query, shown


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("rtsp://me:s3cret@cam:554/1", "rtsp://…@cam:554/1"),
        ("rtsp://me:s3@cret@cam/1", "rtsp://…@cam/1"),
        ("rtsp://me:s3/cret@cam/1", "rtsp://…@cam/1"),
        ("rtsp://me:s3?cret#@cam/1", "rtsp://…@cam/1"),
        ("rtsp://cam/1?token=s3cret", "rtsp://cam/1?token=…"),
        ("http://cam/a.cgi?user=me&pwd=s3cret=&x", "http://cam/a.cgi?user=…&pwd=…&…"),
        ("http://cam:80/a?s3cret", "http://cam:80/a?…"),
        ("http://cam:80/a?who=me@site", "http://cam:80/a?who=…"),
        ("http://cam/a#s3cret", "http://cam/a#…"),
        ("http://cam/a?b=1#s3cret", "http://cam/a?b=…"),
        ("HTTP://cam/a?KEY=s3cret", "HTTP://cam/a?KEY=…"),
        ("http://[fe80::1]:80/a?k=s3cret", "http://[fe80::1]:80/a?k=…"),
        ("://me:s3cret@host", "://…@host"),
    ],
)
def test_login_and_values_of_the_query_are_hidden(address: str, expected: str) -> None:
    assert shown(address) == expected
    assert shown(f"camera {address} is away; {address}") == f"camera {expected} is away; {expected}"
    assert shown(expected) == expected, "what was shown once is shown as it is"


@pytest.mark.parametrize(
    "text",
    [
        "/dev/video0",
        "/clips/a?b=c.mp4",
        "rtsp://cam:554/live/main@hd",
        "serial:///dev/ttyUSB0?baudrate=19200",
        "mqtts://broker:8883: connection refused",
        "is it there? x=1",
    ],
)
def test_what_holds_no_secret_is_shown_as_it_is(text: str) -> None:
    assert shown(text) == text


def test_the_sentence_around_an_address_keeps_its_stops() -> None:
    assert shown("(see http://cam/a?k=s3cret), then") == "(see http://cam/a?k=…), then"


def test_a_query_that_sounds_secret_is_told_from_one_that_does_not() -> None:
    for query in ("token=x", "a=1&pwd=x", "apikey=x", "Auth=x", "s3cret"):
        assert has_secret_query(f"http://cam/a?{query}"), query
    for query in ("channel=1&subtype=0", "token=", "", "monitor=2"):
        assert not has_secret_query(f"http://cam/a?{query}"), query
    assert not has_secret_query("http://cam/token")
