"""The node's HTTP side: the operator's API, and the trustless gateway for peers."""
