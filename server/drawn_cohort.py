"""The cohort of each round, where it is drawn anew from more companies: who is drawn first joins then."""

from __future__ import annotations

from flwr.serverapp import Grid

from ..blocks.state import State
from ..errors import InputError, RunError
from ..privacy.secure_aggregation import ChannelKey, Roster
from ..protocol.messages import JoinRequest
from ..settings import DrawnCohorts, Plan
from .cohort import Cohort, joined_of, offer
from .grid import names_of


class DrawnCohort:
    """cohort = DrawnCohort(grid, plan, plan.drawn, shared, roster).of(round_)

    Raises: InputError unless the roster and the transport know by name as many companies as the plan draws from.
    """

    def __init__(self, grid: Grid, plan: Plan, drawn: DrawnCohorts, shared: State, roster: Roster) -> None:
        self._grid, self._plan, self._drawn, self._roster = grid, plan, drawn, roster
        self._request = JoinRequest(plan, shared)
        self._digest = self._request.digest()
        self._nodes = {name: node for node, name in names_of(grid).items()}
        self._channels: dict[str, ChannelKey] = {}
        missing = roster.members.keys() - self._nodes.keys()
        if len(roster.members) != drawn.companies or missing:
            rule = (
                f"the roster has {len(roster.members)} companies, of which {len(missing)} are not connected"
            )
            raise InputError("companies.count", drawn.companies, rule)

    def of(self, round_: int) -> Cohort:
        """The round's companies, all of which have joined.

        Raises: as `join`.
        """
        drawn = self._drawn.cohort(round_, self._roster.members)
        new = [self._nodes[name] for name in drawn if name not in self._channels]
        timeout = self._plan.training.message_timeout
        if new:
            answers = offer(self._grid, self._request, new, self._roster, timeout)
            _, channels = joined_of(self._grid, answers)
            if len(channels) < len(new):
                raise RunError(f"{len(channels)} of {len(new)} companies answered within {timeout:g} s")
            self._channels |= channels
        nodes = {name: self._nodes[name] for name in drawn}
        channels = {name: self._channels[name] for name in drawn}
        return Cohort(self._grid, nodes, channels, self._roster, self._digest, timeout)
