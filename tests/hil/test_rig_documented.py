"""What the rig holds a device against is what the documentation says."""

import pytest

from hil.rig.documented import APPLIANCE, listeners, reachable


def test_beyond_loopback_only_dhcp_listens_and_ssh_where_there_is_a_key() -> None:
    assert reachable(with_key=False) == {"udp/68", "udp/546"}
    assert reachable(with_key=True) == {"udp/68", "udp/546", "tcp/22"}
    assert {"tcp/1883", "tcp/9464", "tcp/53", "udp/53"} <= listeners(APPLIANCE.read_text()).keys()


@pytest.mark.parametrize("text", ["# Nothing\n", "\n## What listens\n\n| 80/tcp | a page | perhaps |\n"])
def test_what_the_documentation_does_not_say_plainly_is_no_permission(text: str) -> None:
    with pytest.raises(ValueError, match=r"What listens|perhaps"):
        listeners(text)
