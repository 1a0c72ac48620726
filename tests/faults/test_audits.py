"""Real processes on a real chain: rows go to drawn jurors in boxes, and the work on them is done again."""

from __future__ import annotations

import pytest

from dfl_ledger import vectors
from dfl_node.localnet import LocalNet

from .conftest import SPEC
from .test_processes import DONE_S, assert_paid_once, ended, start

PASSED, UNKNOWN = 1, 0
AUDITED = SPEC + "audits = 2\n"


@pytest.mark.long
def test_honest_work_passes_bit_for_bit_between_processes(net: LocalNet) -> None:
    start(net, 3)
    job = net.submit(AUDITED.format(rounds=2, steps=20, nodes=3, quorum=2))
    net.watch(job, ended, timeout_s=DONE_S)
    with net.rows() as rows:
        for round_ in (1, 2):
            panel, facts = rows.panel(job, round_), rows.round_facts(job, round_)
            assert panel is not None
            first, said = len(facts.contributions), list[int]()
            for seat in panel.seats:
                assert seat.vector is not None
                own = vectors.decode(seat.vector, panel.subjects)[first:-1]
                assert len(own) == 2
                said += own
            assert set(said) <= {PASSED, UNKNOWN}
            assert said.count(PASSED) == 4  # of three jurors on two pieces; nobody judges its own
            assert all(row.boxes and row.appeal_until is None for row in rows.audits(job, round_))
        assert len(rows.shards(job)) == 3
        assert not rows.slashes()
    assert_paid_once(net, job, 2 * 30 * 10**18)
    verified = net.cli("ledger", "verify", str(job), "--datadir", str(net.nodes[0].datadir))
    audits = [check for check in verified["checks"] if check["check"] == "audits"]
    assert [check["round"] for check in audits] == [1, 2]
    assert all("opened to the jury only" in check["detail"] for check in audits)
