"""What a node says its rows are: nothing that no job would take, and nothing that its rows are not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from dfl_ledger.errors import BlobNotFound, UsageError
from dfl_ledger.memory import MemoryChain, MemoryLedger
from dfl_ledger.records import Address, Asset, AssetKind, AssetUse, Cid
from dfl_node import assets, declaring
from dfl_node.store.memory import MemorySwarm
from dfl_node.train.memory import MemoryTrainer
from dfl_node.train.trainer import DataConfig

ME, OTHER = Address("0x" + "11" * 20), Address("0x" + "22" * 20)
OURS = DataConfig("digits", None, (1, 1, 1), None)


@pytest.fixture
def ledgers() -> tuple[MemoryLedger, MemoryLedger]:
    chain = MemoryChain(lambda: 1_750_000_000)
    for account in (ME, OTHER):
        chain.fund(account)
    return MemoryLedger(chain, ME), MemoryLedger(chain, OTHER)


def mint(ledger: MemoryLedger, manifest: Cid = Cid.of(b"m"), **changes: Any) -> int:  # noqa: B008
    kind, uses = changes.get("kind", AssetKind.DATASET), changes.get("uses", AssetUse.TRAIN)
    return ledger.mint_asset(kind, manifest, b"l" * 32, uses, changes.get("price_bps", 0))


def test_what_is_ours_or_was_allowed_to_us_may_be_declared(
    ledgers: tuple[MemoryLedger, MemoryLedger],
) -> None:
    me, other = ledgers
    own = mint(me)
    lent = mint(other, Cid.of(b"n"), price_bps=declaring.MOST_BPS)
    other.allow_asset(ME, lent)
    assert [found.asset for found in declaring.check(me, (own, lent))] == [own, lent]
    assert declaring.check(me, ()) == ()


def revoked(me: MemoryLedger, other: MemoryLedger) -> None:
    me.revoke_asset(mint(me))


WRONG: dict[str, tuple[Callable[[MemoryLedger, MemoryLedger], Any], str, str]] = {
    "unknown": (lambda me, other: None, "there is no asset 1", "dfl-node asset list"),
    "model": (lambda me, other: mint(me, kind=AssetKind.MODEL), "of kind model", "dfl-node asset show 1"),
    "revoked": (revoked, "is revoked", "dfl-node asset show 1"),
    "use": (
        lambda me, other: mint(me, uses=AssetUse.EVALUATE),
        "not for training: its owner allows evaluate",
        "dfl-node asset show 1",
    ),
    "stranger's": (
        lambda me, other: mint(other),
        f"may not use data set 1: its owner {OTHER}",
        f"dfl-node asset allow 1 {ME}",
    ),
    "too dear": (
        lambda me, other: mint(me, price_bps=9_999),
        "costs 99.99 % .*no job can pay more than 99.98 %",
        "dfl-node asset price 1 99.98",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_no_job_would_take_is_refused_at_the_start(
    case: str, ledgers: tuple[MemoryLedger, MemoryLedger]
) -> None:
    make, why, helps = WRONG[case]
    make(*ledgers)
    with pytest.raises(UsageError) as no:
        declaring.check(ledgers[0], (1,))
    assert no.value.exit_code == 2
    assert re.search(why, str(no.value))
    assert no.value.help_command == helps


def test_a_job_takes_what_it_pays_for(ledgers: tuple[MemoryLedger, MemoryLedger]) -> None:
    me, _ = ledgers
    asset = mint(me, price_bps=250)
    assert declaring.refusal(me, asset, 250) is None
    no = declaring.refusal(me, asset, 249)
    assert no is not None
    assert "costs 2.5 %" in str(no)
    assert "the job pays 2.49 %" in str(no)


# -- rows ---------------------------------------------------------------------------------------------------
def manifest_of(sha256: bytes, **changes: Any) -> bytes:
    told = {"format": assets.MANIFEST_FORMAT, "app": "digits", "rows": 7, "digest": "0x" + sha256.hex()}
    return json.dumps(told | changes).encode()


def match(file: bytes | None, data: dict[str, DataConfig]) -> dict[str, tuple[int, ...]]:
    async def story() -> dict[str, tuple[int, ...]]:
        store = MemorySwarm().store("me")
        cid = Cid.of(b"nobody has it") if file is None else await store.put(file, pin=False)
        asset = Asset(5, ME, AssetKind.DATASET, False, 0, AssetUse.TRAIN, cid, b"l" * 32, ())
        found = await declaring.match((asset,), data, store, MemoryTrainer())
        assert [blob.pinned async for blob in store.ls()] == [True]  # the next start needs nobody
        return found

    return trio.run(story, clock=trio.testing.MockClock(autojump_threshold=0))


async def digest_of(data: DataConfig) -> bytes:
    return (await MemoryTrainer().shard(data)).commitment


def test_the_rows_of_a_data_set_are_known_by_their_digest() -> None:
    digest = trio.run(digest_of, OURS)
    assert match(manifest_of(digest), {"digits": OURS}) == {"digits": (5,)}


def test_other_rows_are_refused_with_the_command_that_helps() -> None:
    other = DataConfig("digits", "other.npz", (1, 1, 1), None)
    with pytest.raises(
        UsageError, match=r"the rows of digits are not those of data set 5.*digest is 0x"
    ) as no:
        match(manifest_of(trio.run(digest_of, OURS)), {"digits": other})
    assert no.value.exit_code == 2
    assert no.value.help_command == "dfl-node start --data digits=PATH --dataset 5 …"


def test_rows_that_this_node_has_none_of_are_refused() -> None:
    with pytest.raises(UsageError, match="has rows of digits: this node has none"):
        match(manifest_of(bytes(32)), {"housing": OURS})


def test_a_manifest_that_nobody_has_is_out_of_reach() -> None:
    with pytest.raises(BlobNotFound):
        match(None, {"digits": OURS})


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        b"{}",
        b"7",
        manifest_of(bytes(32), format="dfl data set 2"),
        manifest_of(bytes(32), app="../etc"),
        manifest_of(bytes(32), app=7),
        manifest_of(bytes(32), rows="7"),
        manifest_of(bytes(31)),
        manifest_of(bytes(32), digest=None),
    ],
    ids=range(12),
)
def test_what_is_no_manifest_of_rows_is_refused(file: bytes) -> None:
    with pytest.raises(UsageError, match="data set 5 has no manifest of rows") as no:
        match(file, {"digits": OURS})
    assert no.value.help_command.startswith("dfl-node blob get")
