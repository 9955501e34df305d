from cloud_bridge.console.sessions import SESSION_SECONDS, Gatekeeper

TOKEN = "0123456789abcdef0123456789abcdef"


class Clock:
    def __init__(self) -> None:
        self.ns = 1

    def __call__(self) -> int:
        return self.ns


def test_only_the_token_is_the_token() -> None:
    gatekeeper = Gatekeeper(TOKEN, Clock())
    assert gatekeeper.is_token(TOKEN)
    assert not any(gatekeeper.is_token(wrong) for wrong in ("", TOKEN[:-1], TOKEN + "0", TOKEN.upper(), "\udcff"))


def test_a_session_ends_after_its_time() -> None:
    clock = Clock()
    gatekeeper = Gatekeeper(TOKEN, clock)
    secret = gatekeeper.open_session()
    clock.ns += SESSION_SECONDS * 1_000_000_000 - 1
    assert gatekeeper.has_session(secret)
    clock.ns += 1
    assert not gatekeeper.has_session(secret)


def test_a_session_ends_when_its_owner_signs_out() -> None:
    gatekeeper = Gatekeeper(TOKEN, Clock())
    mine, other = gatekeeper.open_session(), gatekeeper.open_session()
    gatekeeper.end_session(mine)
    assert not gatekeeper.has_session(mine)
    assert gatekeeper.has_session(other)


def test_many_logins_do_not_fill_the_memory() -> None:
    gatekeeper = Gatekeeper(TOKEN, Clock())
    secrets = [gatekeeper.open_session() for _ in range(300)]
    assert sum(map(gatekeeper.has_session, secrets)) == 256
    assert gatekeeper.has_session(secrets[-1])
