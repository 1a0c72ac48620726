"""eth-account without a side effect of its import. Take `Account` and `LocalAccount` from here.

eth-account imports py_ecc, which lifts Python's recursion limit from 1,000 to 100,000. Under that limit a
hostile peer or RPC endpoint ends the whole process with deeply nested JSON: the C stack overflows where a
RecursionError was due. Nothing of ours needs so deep a stack, so the limit is put back.
"""

from __future__ import annotations

import sys

from eth_account import Account
from eth_account.signers.local import LocalAccount

__all__ = ["Account", "LocalAccount"]

_DEFAULT_LIMIT = 1000

if sys.getrecursionlimit() >= 100_000:
    sys.setrecursionlimit(_DEFAULT_LIMIT)
