"""Peers: the libp2p host, how others are found, who they are, and what may be said to them."""
