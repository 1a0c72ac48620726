"""Files by CID: the node's own blocks, bitswap, the trustless gateway, or a Kubo daemon."""
