"""The worker process: `python -m dfl_node.train.worker SETTINGS`, started by `process.py`.

It reads requests from stdin and answers on stdout, one at a time, and keeps nothing that matters: the node
may kill it at any moment. It ends when its stdin does, at once and even in the middle of a step, so that no
worker outlives its node, however that died.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from dfl_ledger.errors import DflError, SpecInvalid
from dfl_node.train.frames import Frame, read_frame, write_frame
from dfl_node.train.operations import Operations


@dataclass(frozen=True, slots=True)
class Settings:
    threads: int
    max_memory_bytes: int | None  # private memory (RLIMIT_DATA); mapped libraries, about 100 MB, come on top
    nice: int


def describe(error: Exception) -> dict[str, Any]:
    """An error as the answer's header; `process.py` raises it again."""
    match error:
        case SpecInvalid():
            return {"kind": "SpecInvalid", "field": error.field, "why": error.why}
        case DflError():
            kind, what, help_command = type(error).__name__, error.what, error.help_command
            return {"kind": kind, "what": what, "why": error.why, "help_command": help_command}
        case _ if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            return {
                "kind": "DflError",
                "what": "the trainer ran out of memory",
                "why": str(error)[:200] or "the model and the batch need more than it may take",
                "help_command": "dfl-node start --max-memory 8192 …",
            }
        case _:
            return {
                "kind": "DflError",
                "what": "the trainer failed",
                "why": f"{type(error).__name__}: {str(error)[:300]}",
                "help_command": "dfl-node start --log-format json …  # the worker's stderr is in the log",
            }


def serve(requests: BinaryIO, answers: BinaryIO, threads: int) -> None:
    """Answer until the requests end."""

    def say(frame: Frame) -> None:
        write_frame(answers, frame)

    operations = Operations(threads, say)
    while (request := read_frame(requests)) is not None:
        say(_answer(operations, request))
        del request  # payloads must not wait for the next request


def _answer(operations: Operations, request: Frame) -> Frame:
    try:
        return operations.by_name[request.header["op"]](request)
    except DflError as refused:
        return Frame({"error": describe(refused)})
    except Exception as failed:  # a bug or no memory: the node gets an answer, the log the traceback
        traceback.print_exc()
        return Frame({"error": describe(failed)})


def _end_with_parent(pipe: int) -> None:
    """Exit as soon as nobody holds the other end of our stdin. PR_SET_PDEATHSIG would not do: it fires when
    the *thread* that started us ends, and trio starts processes in threads it soon retires.
    """
    poll = select.poll()
    poll.register(pipe, 0)  # POLLHUP alone, which needs no asking

    def watch() -> None:
        poll.poll()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def _limit(settings: Settings) -> None:
    os.nice(settings.nice)
    if settings.max_memory_bytes is not None:
        # Not RLIMIT_AS: torch maps far more than it uses. RLIMIT_DATA counts private writable memory.
        resource.setrlimit(resource.RLIMIT_DATA, (settings.max_memory_bytes, settings.max_memory_bytes))
    oom = Path("/proc/self/oom_score_adj")
    if oom.exists():
        oom.write_text("500")  # when memory runs out, an assignment is lost and not the node


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the node decides
    settings = Settings(**json.loads(sys.argv[1]))
    _limit(settings)
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not end up between frames
    _end_with_parent(0)
    with open(0, "rb", closefd=False) as requests, open(answers, "wb") as out:  # noqa: PTH123  descriptors
        serve(requests, out, settings.threads)


if __name__ == "__main__":
    main()
