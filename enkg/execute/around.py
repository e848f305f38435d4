"""Evaluators that stand around the slots, with a word of their own to say on each batch."""

from enkg.execute.slots import Slots
from enkg.simulator import Announce


class Around:
    """Base of evaluators around slots: what they are told, the slots are told."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots

    @property
    def announce(self) -> Announce | None:
        """See `enkg.simulator.Announcing`."""
        return self.slots.announce

    @announce.setter
    def announce(self, told: Announce | None) -> None:
        self.slots.announce = told

    @property
    def others(self) -> tuple[int, int]:
        """See `enkg.simulator.Judging`."""
        return self.slots.others

    @others.setter
    def others(self, counts: tuple[int, int]) -> None:
        self.slots.others = counts
