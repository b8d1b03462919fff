"""A trial's run as a person sees it: who is set up, connected, and asked to decide; the rounds, with time left."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from ..client.approvals import Request
from ..client.company import Company
from ..client.terms_in_words import described
from ..errors import RunError
from ..experiments.simulation.threads import one_core
from ..experiments.trial.preparing import Prepared, Wish, check_port, named, prepare_trial, wished
from ..experiments.trial.running import Following, Look, agent_log, coordinator_log, outcome, run_trial
from ..protocol.federation.keys import make_folder
from ..protocol.log_text import escape_logs
from ..server.reasons import named as listed
from ..server.run_lock import exclusive
from .agent_run import decide
from .options import PORT
from .progress import progress_on
from .runs import shortest
from .serving import terminated_as_interrupted

# Seconds between two lines about rounds where there is no terminal for a bar.
_LINE_EVERY = 10.0
_LOCK = "trial.lock"


def run(
    folder: Path,
    companies: list[str],
    preset: str | None,
    changes: list[str],
    *,
    approves: bool,
    port: int | None,
    as_json: bool,
) -> None:
    """Set a trial up, or go on with it, and run it to its end; every process is ended, whatever happens.

    `approves`: decide for every company instead of waiting for people in other shells.

    Raises: as `prepare_trial` and `run_trial`; RunError where another process is at this trial.
    """
    console = Console(stderr=True)
    names, wish = named(folder, companies), wished(folder, preset, changes)
    check_port(folder, port)
    if wish is None:
        again = f"fedblocks trial {shlex.quote(str(folder))} --preset digits"
        raise RunError(f"{folder}: the trial has no preset yet: {again}")
    settings = wish.settings(names)  # what cannot be used is refused before the folder is made
    escape_logs()
    started = time.monotonic()
    make_folder(folder)
    with exclusive(folder, _LOCK), terminated_as_interrupted(), progress_on(console) as progress:
        pretraining = settings.pretraining.total_steps(settings.model.blocks)
        view = View(progress, approves=approves, pretraining=pretraining)
        try:
            made = _prepared(folder, names, wish, port or PORT, view)
            if not made.finished:
                view.say(f"Processes: {_logs(made)}")
                run_trial(made, Following(tell=view.tell, ask=view.ask))
        except KeyboardInterrupt:
            view.say("Interrupted; all processes have ended and nothing is lost: the same command goes on.")
            raise
    found = outcome(made) | {"seconds": round(time.monotonic() - started, 1)}
    if as_json:
        print(json.dumps(found))
        return
    view.say(f"All {found['rounds']} rounds were done: {found['run']}")
    for name, company in found["companies"].items():
        view.say(f"{name}: {company['examples']:,} examples, epsilon {company['epsilon']:.4g} spent")
    where = shlex.quote(shortest(made.run.path))
    view.say(f"Next: fedblocks report {where}, fedblocks model export {where} --to model")


@one_core()
def _prepared(folder: Path, names: list[str], wish: Wish, port: int, view: View) -> Prepared:
    return prepare_trial(folder, names, wish, port=port, say=view.say, on_step=view.pretrained)


def _logs(made: Prepared) -> str:
    agents = [f"{name} ({agent_log(home)})" for name, home in made.trial.homes.items()]
    return ", ".join([*agents, f"the coordinator ({coordinator_log(made)})"])


class View:
    """`approves`: whether requests are approved here, once they have been shown. `pretraining`: its steps."""

    def __init__(self, progress: Progress, *, approves: bool, pretraining: int) -> None:
        self._progress, self._approves, self._pretraining = progress, approves, pretraining
        self._tasks: dict[str, TaskID] = {}
        self._seen = Look()
        self._spoken = time.monotonic()

    def say(self, text: str) -> None:
        """A line for people, with nothing in it taken for markup."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def pretrained(self, step: int) -> None:
        self._bar("Public pretraining", step, self._pretraining)

    def tell(self, look: Look) -> None:
        """The rounds as a bar; lines for who came and went."""
        before, self._seen = self._seen, look
        for name in sorted(set(look.connected) - set(before.connected)):
            self.say(f"{name} is connected")
        for name in sorted(set(before.connected) - set(look.connected)):
            self.say(f"{name} is not connected any more")
        if look.undecided and look.state == "waiting":
            note = f"{listed(look.undecided)} must decide"
        elif look.missing:
            note = f"waiting for {listed(look.missing)}"
        else:
            note = f"{listed(look.connected)} connected"
        self._bar("Rounds", look.round, look.rounds, note)
        due = time.monotonic() - self._spoken > _LINE_EVERY or look.round == look.rounds
        if not self._progress.console.is_terminal and look.round > before.round and due:
            self._spoken = time.monotonic()
            self.say(f"round {look.round} of {look.rounds}")

    def ask(self, home: Path, request: Request) -> None:
        """Show a request in words; approve it, or say that it waits."""
        company = Company.deployed(home)
        self.say(f"{company.name} is asked:")
        for line in described(company, request):
            self.say(line)
        if self._approves:
            decided = decide(home, request.digest, "approved", why="--yes of fedblocks trial")
            self.say(f"{company.name}: approved by {decided.by}, as --yes says")
        else:
            self.say(f"{company.name} waits for a person: type one of these two commands in another shell.")

    def _bar(self, name: str, done: int, total: int, note: str = "") -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, note=note)
        self._progress.update(self._tasks[name], completed=done, note=note)
