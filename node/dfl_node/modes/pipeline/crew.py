"""The members that follow a conductor: a control line to each that can be reached, and what they say."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import structlog
import trio

from dfl_ledger.errors import DflError, TimedOut, VerificationFailed
from dfl_ledger.records import Address
from dfl_node.modes.pipeline.groups import unwrapped
from dfl_node.modes.pipeline.lines import Line, close
from dfl_node.modes.pipeline.messages import Ask, Beat, Message, Offer, Refusal, pack, unpack
from dfl_node.modes.pipeline.setting import Setting

log = structlog.get_logger(__name__)

LOOK_S = 0.5  # between two looks at who is connected
RETRY_S = 2.0


class SteppedDown(Exception):
    """Another conductor has the better claim."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A member's line is gone."""

    why: str


@dataclass(frozen=True, slots=True)
class Overruled:
    """A member obeys somebody of a later epoch."""

    epoch: int
    alive: bool


@dataclass(frozen=True, slots=True)
class Joined:
    """A member follows us."""


@dataclass(frozen=True, slots=True)
class Fed:
    """The feed got on: a loss is back, or all is fed."""


Heard = Message | Lost | Overruled | Joined | Fed


@dataclass(slots=True)
class Hand:
    """One member that follows us."""

    offer: Offer
    line: Line
    waits: bool = True  # in its last beat: every stage of it waits for somebody else
    pen: trio.Lock = field(default_factory=trio.Lock)


class Crew:
    """Keeps the lines up while `run` does, and puts what comes in into `inbox` as (node, what)."""

    def __init__(self, setting: Setting) -> None:
        self.hands: dict[Address, Hand] = {}
        self.epoch = 0  # of our seat, and
        self.step = 0  # steps of the run whose losses are known, as we tell them
        self._report, self.inbox = trio.open_memory_channel[tuple[Address, Heard]](math.inf)
        self._setting = setting
        self._calling: set[Address] = set()

    async def run(self) -> None:
        """Calls every connected member, ourselves first, again and again."""
        setting = self._setting
        async with trio.open_nursery() as nursery:
            while True:
                reachable = (setting.me, *(n for n in setting.order if n in setting.lines.connected()))
                for node in reachable:
                    if node not in self._calling:
                        self._calling.add(node)
                        nursery.start_soon(self._follow, node)
                await trio.sleep(LOOK_S)

    @property
    def asked_all(self) -> bool:
        """Every connected member has answered."""
        members = frozenset(self._setting.order) & (self._setting.lines.connected() | {self._setting.me})
        return members <= self.hands.keys()

    def report(self, what: Heard) -> None:
        """Something of our own for the inbox."""
        self._report.send_nowait((self._setting.me, what))

    async def tell(self, node: Address, message: Message) -> None:
        """Never raises: a line that breaks is reported as Lost."""
        hand = self.hands.get(node)
        if hand is not None:
            with trio.move_on_after(self._setting.patience.silence_s):
                try:
                    async with hand.pen:
                        await hand.line.send(pack(message))
                except DflError as gone:
                    log.debug("a member's line broke", node=node, why=str(gone))

    async def tell_all(self, message: Message) -> None:
        async with trio.open_nursery() as nursery:
            for node in tuple(self.hands):
                nursery.start_soon(self.tell, node, message)

    async def _follow(self, node: Address) -> None:
        """One line, from the call until it breaks."""
        why = "it hung up"
        try:
            run = self._setting.run
            line = await self._setting.open(node, Ask(run.job, run.round, run.parent, self.epoch))
            try:
                with unwrapped(DflError):
                    await self._listen(node, line)
            finally:
                await close(line)
        except DflError as gone:
            why = str(gone)
        finally:
            if self.hands.pop(node, None) is not None:
                self._report.send_nowait((node, Lost(why)))
        await trio.sleep(RETRY_S)
        self._calling.discard(node)

    async def _listen(self, node: Address, line: Line) -> None:
        patience = self._setting.patience
        answer = None
        with trio.move_on_after(patience.contact_s + self._setting.patience.silence_s):
            answer = unpack(await line.receive())
        match answer:
            case Offer():
                if answer.point is not None:
                    answer.point.check(self._setting.pipeline.stages)
                if answer.finish is not None:
                    answer.finish.point.check(self._setting.pipeline.stages)
                self.hands[node] = Hand(answer, line)
                self._report.send_nowait((node, Joined()))
            case Refusal(epoch, alive):
                self._report.send_nowait((node, Overruled(epoch, alive)))
                return
            case _:
                raise VerificationFailed(f"member {node} does not answer our call", why="no offer")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat, node)
            while True:
                message = None
                with trio.move_on_after(patience.silence_s):
                    message = unpack(await line.receive())
                if message is None:
                    raise TimedOut(f"member {node} is silent", why=f"for {patience.silence_s:g} s")
                if isinstance(message, Beat):
                    self.hands[node].waits = message.waits
                else:
                    self._report.send_nowait((node, message))

    async def _beat(self, node: Address) -> None:
        while True:
            await trio.sleep(self._setting.patience.beat_s)
            await self.tell(node, Beat(self.epoch, self.step, waits=False))
