from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from cloud_bridge.identity.claims import Claim, add_claim, id_of_ek, list_claims
from cloud_bridge.identity.database import Database, PostgresDatabase
from tests.simulators.postgres import PostgresServer
from tests.simulators.waiting import wait_for

CLAIM = Claim(id_of_ek("ab"), "dock-7", "ek", replaces=False, created_ns=1, expires_ns=100, used_ns=None)


def announce(database: Database, claim: Claim) -> None:
    with database.transaction() as tx:
        add_claim(tx, claim)


def test_a_claim_that_is_announced_anew_is_good_again_for_whom_it_names_last(database: Database) -> None:
    announce(database, CLAIM)
    with database.transaction() as tx:
        tx.change("UPDATE identity_claims SET used_ns = 5")
    anew = replace(CLAIM, gateway="dock-8", replaces=True, created_ns=50, expires_ns=200)
    announce(database, anew)
    with database.transaction() as tx:
        assert list_claims(tx) == [anew]


def test_of_two_bridges_that_are_told_the_same_claim_at_once_neither_fails(postgres: PostgresServer) -> None:
    url = postgres.make("claimed_twice")
    one, other = PostgresDatabase(url), PostgresDatabase(url)
    anew = replace(CLAIM, created_ns=2)
    try:
        with ThreadPoolExecutor(1) as pool:
            with one.transaction() as tx:
                add_claim(tx, CLAIM)
                second = pool.submit(announce, other, anew)
                wait_for(lambda: tx.rows("SELECT 1 FROM pg_locks WHERE NOT granted") != [], what="the other waits")
            second.result(timeout=10)
        with one.transaction() as tx:
            assert list_claims(tx) == [anew]
    finally:
        one.close()
        other.close()
