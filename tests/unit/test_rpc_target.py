"""Several addresses of one server."""

from __future__ import annotations

import pytest

from switchgear.core import rpc
from switchgear.core.errors import Invalid


def test_several_addresses_are_dialled_as_one() -> None:
    assert rpc.target("10.0.0.1:7070,10.0.0.2:7070") == "ipv4:10.0.0.1:7070,10.0.0.2:7070"
    assert rpc.target("scheduler:7070") == "scheduler:7070"


@pytest.mark.parametrize("address", ["localhost:7070,10.0.0.2:7070", "10.0.0.1:7070,b.example:7070", "[::1]:1,[::1]:2"])
def test_several_of_which_one_is_no_ipv4_address_are_refused_with_the_remedy(address: str) -> None:
    with pytest.raises(Invalid, match="each must be IPv4"):
        rpc.channel(address)
