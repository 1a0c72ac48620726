"""How late validation shards were unsealed: it takes times of blocks, which events do not tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dfl_ledger.errors import ChainUnreachable
from dfl_ledger.query import open_ledger
from dfl_ledger.rows_rewards import UnsealedRow
from tests.ledger.fake_chain import FakeChain, JobStory, hex32
from tests.ledger.indexer.conftest import OpenIndexer, catch_up, dump

BLOCK_S = 12  # of the fake chain


def unseal(chain: FakeChain, position: int) -> int:
    args: dict[str, Any] = {"job": 1, "position": position, "key": hex32(f"key {position}")}
    return chain.mine(("ShardUnsealed", args))


def unsealed(path: Path, round_: int) -> UnsealedRow | None:
    with open_ledger(path) as rows:
        return rows.unsealed(1, round_)


def late_s(path: Path, round_: int) -> int | None:
    found = unsealed(path, round_)
    assert found is not None
    return found.late_s


def test_a_shard_is_as_late_as_its_block_is_after_the_publication(
    chain: FakeChain, path: Path, indexer_of: OpenIndexer
) -> None:
    story = JobStory(chain)
    story.create()
    story.whole_round()
    chain.mine_empty(2)
    unseal(chain, 0)
    story.whole_round()
    unseal(chain, 1)
    catch_up(indexer_of(chain))
    first, second = unsealed(path, 1), unsealed(path, 2)
    assert first is not None
    assert second is not None
    assert (first.position, first.late_s, second.position, second.late_s) == (0, 3 * BLOCK_S, 1, BLOCK_S)
    assert first.key == second.previous == bytes.fromhex(hex32("key 0")[2:])
    assert first.due_s == second.due_s
    for row in (first, second):
        assert row.in_time == (row.late_s is not None and row.late_s <= row.due_s)
    assert unsealed(path, 3) is None


def test_one_that_was_unsealed_before_its_round_had_a_model_is_not_late(
    chain: FakeChain, path: Path, indexer_of: OpenIndexer
) -> None:
    story, indexer = JobStory(chain), indexer_of(chain)
    story.create()
    story.open_round()
    story.contribute()
    unseal(chain, 0)
    catch_up(indexer)
    assert unsealed(path, 1) is None, "there is no round to score yet"
    story.publish()
    catch_up(indexer)
    assert late_s(path, 1) == 0


def test_times_that_are_not_told_are_asked_for_again(
    chain: FakeChain, path: Path, indexer_of: OpenIndexer, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = JobStory(chain)
    story.create()
    story.whole_round()
    indexer = indexer_of(chain)
    catch_up(indexer)
    number = unseal(chain, 0)
    chain.mine_empty(1)
    honest = chain.block

    def silent(wanted: int | None = None) -> Any:
        if wanted == number:
            raise ChainUnreachable("no answer")
        return honest(wanted)

    with monkeypatch.context() as patch:
        patch.setattr(chain, "block", silent)
        assert [event.name for event in indexer.step()] == ["ShardUnsealed"], "the events count all the same"
        assert late_s(path, 1) is None
        assert indexer.step() == []
        assert late_s(path, 1) is None
    again = indexer_of(chain)  # as after a kill
    assert again.step() == []
    assert late_s(path, 1) == BLOCK_S


def test_after_a_reorganisation_it_is_what_the_new_chain_says(
    chain: FakeChain, path: Path, indexer_of: OpenIndexer
) -> None:
    story = JobStory(chain)
    story.create()
    story.whole_round()
    unseal(chain, 0)
    indexer = indexer_of(chain)
    catch_up(indexer)
    assert late_s(path, 1) == BLOCK_S
    taken = chain.rewind(1, "other")
    chain.mine_empty(3)
    chain.replay(taken)
    catch_up(indexer)
    assert late_s(path, 1) == 4 * BLOCK_S
    fresh = path.with_name("fresh.sqlite")
    catch_up(indexer_of(chain, fresh))
    assert dump(path, "shard_keys") == dump(fresh, "shard_keys")
