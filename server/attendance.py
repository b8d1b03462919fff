"""Who of a run's companies is there: real ones come, go and come back, and a run waits for them, by name.

A cohort is fixed once all its companies have joined, since the difference of two cohorts' sums could isolate one
company. From then on it may lack as many as the threshold allows: who is missing still is a member, with the channel
key that it has signed, and counts as a dropout. `cohort.json` in the run's folder keeps these keys, so a coordinator
that is started again need not ask anybody to join again. A company that has lost what it joined is offered the
plan again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from flwr.serverapp import Grid

from ..blocks.state import State
from ..errors import FedblocksError, ProtocolError, RunError
from ..protocol.messages import KEYS, JoinRequest
from ..settings import Plan, RunSettings
from .assignment import Task
from .cohort import Cohort, Joined, offer, refusal_of
from .events import CompaniesAwaited, Event, RoundFailed
from .grid import names_of
from .reasons import absences_in_words, in_words, named
from .release_log import OpenedSum
from .round import RoundResult, threshold_of
from .run_folder import RunFolder

log = logging.getLogger("fedblocks.run")

# With these a company answers the keys of a session if it has not joined this run, or has lost what it joined.
_NOT_JOINED = frozenset({"wrong_phase", "bad_session", "bad_key"})
Trained = tuple[RoundResult, OpenedSum | None]

# These pass with time or a decision: neither the run nor the company has failed.
WAITS = frozenset({"pending", "closed", "too_many"})


@dataclass(frozen=True)
class Patience:
    """How a run deals with real companies; times in seconds.

    `failed_rounds`: rounds that may fail in a row before the run stops. `gather`: how long it waits for enough
    companies, none means for ever. `linger`: how long for one that was there, before it goes on without. `retry`: the
    time between two offers to a company that is not yet willing.
    """

    failed_rounds: int = 3
    gather: float | None = None
    linger: float = 10.0
    retry: float = 10.0
    deliver: float = 90.0
    poll: float = 0.2

    @classmethod
    def of(cls, settings: RunSettings, gather: float | None = None) -> Patience:
        return cls(failed_rounds=settings.failed_rounds, gather=gather)


class Attendance:
    """The companies of one run, as far as they are known to be connected and to have joined.

    attendance = Attendance(grid, run, plan, shared, expected=5, patience=Patience(), tell=print)
    attendance.gather()          # all have joined, now or before
    attendance.wait_for(tasks)   # enough are there for each
    """

    def __init__(
        self,
        grid: Grid,
        run: RunFolder,
        plan: Plan,
        shared: State,
        *,
        expected: int,
        patience: Patience,
        tell: Callable[[Event], None],
    ) -> None:
        self._grid, self._run, self._plan, self._tell = grid, run, plan, tell
        self._expected, self._patience = expected, patience
        self._request = JoinRequest(plan, shared)
        self.cohort = replace(self.cohort_of(grid, run, plan, shared), back=self.back)
        self._fixed = len(self.cohort.channels) >= expected  # fewer, where a crash came while they joined
        self._refused: dict[int, tuple[FedblocksError, float]] = {}  # by node: the last refusal, and when
        self._lost: dict[str, float] = {}  # since when
        self._stale: set[str] = set()  # they have to join again
        self._told: tuple[str, ...] = ()
        self._failed = 0  # rounds, in a row
        self._awaited: dict[
            str, tuple[str, str]
        ] = {}  # who had to be waited for in the last attempt, and why

    @staticmethod
    def cohort_of(grid: Grid, run: RunFolder, plan: Plan, shared: State) -> Cohort:
        """The companies that have joined, as the run's folder has them; nobody is asked."""
        digest = JoinRequest(plan, shared).digest()
        return Cohort(grid, {}, run.load_cohort(digest), run.roster(), digest, plan.training.message_timeout)

    def gather(self) -> None:
        """Wait until all companies have joined, unless they had in an earlier process of this run.

        Raises:
            ProtocolError: a company refuses the plan.
            RunError: companies are missing after `gather` seconds, by name.
        """
        started = time.monotonic()
        while not self._fixed:
            present = self._present()
            for node, (error, _) in self._refused.items():
                if error.code not in WAITS and error.code != "no_reply":
                    raise refusal_of(self._name(node), error)
            if len(present) >= self._expected:
                self._fixed = True
                break
            self._await(sorted(self._expected_names() - present), started)

    def wait_for(self, tasks: Iterable[Task]) -> None:
        """Wait until every task has enough companies, and a moment longer for any that was there before.

        Raises: RunError after `gather` seconds without enough, by name.
        """
        started, needs = time.monotonic(), [(set(task.companies), self._least(task)) for task in tasks]
        while True:
            present, now = self._present(), time.monotonic()
            missing = sorted(set(self.cohort.companies) - present)
            short = any(len(companies & present) < least for companies, least in needs)
            lately = [name for name in missing if now - self._lost[name] < self._patience.linger]
            if not short and not lately:
                self._told = ()
                return
            self._await(missing, started if short else now)

    def complete(
        self, round_: int, tasks: Sequence[Task], train: Callable[[list[Task]], list[Trained]]
    ) -> list[Trained]:
        """A round's tasks, each begun anew until enough companies come to its end; in the tasks' order.

        Raises: ProtocolError("rounds_failed") after too many attempts in a row, with the reason by company.
        """
        done: dict[Task, Trained] = {}
        while left := [task for task in tasks if task not in done]:
            self.wait_for(left)
            trained = dict(zip(left, train(left), strict=True))
            # What was opened is not repeated, whatever came of it: everybody has paid for it.
            done |= {task: each for task, each in trained.items() if each[0].status != "too_few"}
            self.note({name: why for result, _ in trained.values() for name, why in result.absent.items()})
            failed = [result for result, _ in trained.values() if result.status != "done"]
            absent = {name: why for result in failed for name, why in result.absent.items()}
            if not failed:
                self._failed, self._awaited = 0, {}
                continue
            if absent and all(code in WAITS for _, code in absent.values()):
                if absent != self._awaited:  # it may take a night
                    self._tell(RoundFailed(round_, absent, self._failed))
                self._awaited = absent
                time.sleep(self._patience.retry)
                continue
            self._failed += 1
            statuses = sorted({result.status for result in failed})
            self._tell(RoundFailed(round_, absent, self._failed, statuses[0]))
            if self._failed >= self._patience.failed_rounds:
                why = absences_in_words(absent) or ", ".join(map(in_words, statuses))
                times = f"{self._failed} times in a row" if self._failed > 1 else "once"
                raise ProtocolError("rounds_failed", f"round {round_} failed, {times}: {why}")
        return [done[task] for task in tasks]

    def back(self, companies: Collection[str]) -> list[str]:
        """Those of `companies`, whose answers were lost, that are connected again within a while."""
        deadline = time.monotonic() + 3 * self._patience.linger
        while True:
            online = set(self._grid.get_node_ids())
            found = [name for name in companies if self.cohort.nodes.get(name) in online]
            if len(found) == len(companies) or time.monotonic() > deadline:
                return found
            time.sleep(self._patience.poll)

    def note(self, absent: Mapping[str, tuple[str, str]]) -> None:
        """Take in why companies were absent from a round: some have to join again."""
        self._stale |= {name for name, why in absent.items() if why[0] == KEYS and why[1] in _NOT_JOINED}

    def _least(self, task: Task) -> int:
        return threshold_of(self._plan, len(task.companies))

    def _present(self) -> set[str]:
        """Who is connected and has joined; offers the plan to whoever is connected and has not."""
        online, now = set(self._grid.get_node_ids()), time.monotonic()
        nodes = self.cohort.nodes
        authenticated = names_of(self._grid)
        for node in online:
            if (name := authenticated.get(node)) in self.cohort.channels and name is not None:
                nodes[name] = node
        joined = {node: name for name, node in nodes.items() if name not in self._stale}
        offered = [
            node
            for node in sorted(online - joined.keys())
            if node not in self._refused or now - self._refused[node][1] >= self._patience.retry
        ]
        if offered:
            self._offer(offered)
        present = {name for name, node in nodes.items() if node in online and name not in self._stale}
        for name in present:
            self._lost.pop(name, None)
        for name in set(self.cohort.companies) - present:
            self._lost.setdefault(name, now)
        return present

    def _offer(self, nodes: list[int]) -> None:
        answers = offer(self._grid, self._request, nodes, self.cohort.roster, self.cohort.timeout)
        for node in nodes:
            answer = answers.get(node, ProtocolError("no_reply", "no answer"))
            if isinstance(answer, Joined):
                if self._fixed and answer.company not in self.cohort.channels:
                    log.warning("%s is not of this run's cohort, which is fixed", answer.company)
                    self._refused[node] = (
                        ProtocolError("not_in_cohort", "the cohort is fixed"),
                        float("inf"),
                    )
                    continue
                self._refused.pop(node, None)
                self._stale.discard(answer.company)
                self.cohort.nodes[answer.company] = node
                self.cohort.channels[answer.company] = answer.channel
                self._run.save_cohort(self.cohort.settings_digest, self.cohort.channels)
            else:
                before = self._refused.get(node)
                self._refused[node] = (answer, time.monotonic())
                if before is None or before[0].code != answer.code:  # it is offered again every few seconds
                    log.warning("%s: %s", self._name(node), in_words(answer.code))

    def _await(self, missing: list[str], started: float) -> None:
        if tuple(missing) != self._told:
            self._told = tuple(missing)
            self._tell(CompaniesAwaited(self._told))
        limit = self._patience.gather
        if limit is not None and time.monotonic() - started > limit:
            raise RunError(
                f"{named(missing) or 'enough companies'} missing after {limit:g} s; start again when they are there"
            )
        time.sleep(self._patience.poll)

    def _expected_names(self) -> set[str]:
        authenticated = names_of(self._grid)
        return set(authenticated.values()) or set(self.cohort.roster.members)

    def _name(self, node: int) -> str:
        authenticated = names_of(self._grid)
        known = {n: name for name, n in self.cohort.nodes.items()}
        return authenticated.get(node) or known.get(node) or f"node {node}"
