"""Whether a company could train a round now: everything that can be refused before anybody is charged for it.

Asked when a run is joined, before each round, and again right before the company's own charge. A run is joined with
the company's data as they are then: their digest is kept with the steps that are taken once (`replay_guard`), so data
that change in mid-run are refused, whatever process or machine goes on with the run.

    no_data        data.npz is missing, damaged, or does not fit policy.toml; or what is held out of it is
    data_changed   they hold other examples than those with which the run was joined
    closed         it is outside of the policy's hours
    too_many       the policy's trainings of today are used up
    no_room        the disk has no room for what a round writes
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

from ..blocks.examples import Examples
from ..errors import InputError, ProtocolError, RunError
from ..privacy.composition import Terms
from ..privacy.ledger_file import read_ledger
from ..protocol.evaluation import evaluation_run, evaluation_terms
from ..protocol.release import planned_size, run_terms
from ..settings import Plan
from .ceilings import check_ceilings
from .decisions import LEDGER_FILE
from .held_out import fingerprint
from .units import groups_of

if TYPE_CHECKING:
    from .company import Company

LEAST_FREE = 64 << 20  # bytes


def ready(company: Company, plan: Plan, *, joining: bool = False) -> Examples:
    """The company's examples, if it could train a round of the plan now. `joining`: whether the run is only joined,
    at any time of the day, and its data are fixed from now on.

    Raises:
        PolicyRefusal: a rule, which may have changed, refuses the plan.
        ProtocolError: one of the codes above.
        BudgetExceeded: the run would pass the policy's ceiling for a run or a year.
        PrivacyError: others have access to the home, or its ledger or its record of decisions cannot be used.
    """
    company.check_files()
    company.policy.check(plan)
    if not company.simulated:  # invented companies share the run's disk, of which the run itself speaks
        check_room(company)
    if not joining:
        _check_day(company)
    if company.policy.epsilon_ceiling_run is not None or company.policy.epsilon_ceiling_year is not None:
        ledger = read_ledger(company.home / LEDGER_FILE)
        check_ceilings(company.policy, ledger, planned_parts(plan), company.clock())
    company.decisions.check()  # after a charge it would be too late
    data = readable_data(company)
    groups_of(plan, data)
    if plan.evaluation is not None and (out := readable_held_out(company)) is not None:
        groups_of(plan, out)
    # A run that this company has joined has its data; another one gets them now.
    company.steps.take("data", plan.run.encode(), value=data_fingerprint(company), code="data_changed")
    return data


def startable(company: Company) -> None:
    """Check what any run needs, before an agent connects: files, data, identity, roster and ledger.

    Raises:
        InputError: a file is missing or not of its form; names it and says how to mend it.
        PrivacyError: others have access, or the ledger or the record of decisions cannot be used.
        ProtocolError: the roster does not have this identity under this name; "no_data".
    """
    company.check_files()
    company.member()
    data_fingerprint(company)
    with company.ledger():
        pass
    company.decisions.check()


@lru_cache(maxsize=8)
def planned_terms(plan: Plan) -> Terms:
    """What a run of the plan is charged for; with shares of one noise, for the fewest companies that can add them."""
    return run_terms(plan, planned_size(plan))


def own_terms(company: Company, plan: Plan, companies: int | None = None) -> Terms:
    """`run_terms` of this company: of the rounds in which it takes part, which with drawn cohorts are not all."""
    size = planned_size(plan)
    if plan.drawn is None:
        return run_terms(plan, size, companies)
    names = company.member().roster.members
    if len(names) != plan.drawn.companies:
        text = f"the plan draws from {plan.drawn.companies} companies, the roster has {len(names)}"
        raise ProtocolError("bad_session", text)
    own = plan.releases_of(company.name, names)
    if own == 0:
        raise ProtocolError("bad_session", "this company is drawn for no round of the plan")
    return run_terms(plan, size, companies, own)


def planned_parts(plan: Plan) -> tuple[tuple[str, Terms], ...]:
    """What a run of the plan is in a ledger, name and terms: its training, and its evaluations if it has any."""
    training = (plan.run, planned_terms(plan))
    if plan.evaluation is None:
        return (training,)
    return training, (evaluation_run(plan.run), evaluation_terms(plan))


def readable_data(company: Company) -> Examples:
    """The examples; ProtocolError("no_data") where they are missing, damaged or do not fit policy.toml."""
    with _explained(company):
        return company.data()


def data_fingerprint(company: Company) -> bytes:
    """The digest of the company's examples, trained on or held out; raises as `readable_data`."""
    return fingerprint(readable_data(company), readable_held_out(company))


def readable_held_out(company: Company) -> Examples | None:
    """The held-out examples, if any; raises as `readable_data`."""
    with _explained(company):
        return company.held_out()


@contextmanager
def _explained(company: Company) -> Iterator[None]:
    """ProtocolError("no_data") where a file of examples is missing, damaged or does not fit policy.toml."""
    try:
        yield
    except FileNotFoundError as error:
        text = f"{error.filename} is missing: read your data with `fedblocks company import`"
        raise ProtocolError("no_data", text) from None
    except InputError as error:
        hint = f"it does not fit policy.toml; read your data anew: fedblocks company import SOURCE {company.home}"
        raise ProtocolError("no_data", f"{error}: {hint} --replace") from error
    except (RunError, OSError) as error:
        raise ProtocolError("no_data", str(error)) from error


def check_room(company: Company, more: int = 0) -> None:
    """ProtocolError("no_room") if the disk has no room for so many bytes, and for what a round writes.

    What is kept to save time gives way.
    """
    free, needed = shutil.disk_usage(company.home).free, LEAST_FREE + more
    if free < needed:
        company.prefix.forget()
        free = shutil.disk_usage(company.home).free
    if free < needed:
        text = f"{company.home}: {free >> 20} MB are free on this disk, at least {needed >> 20} are needed"
        raise ProtocolError("no_room", text)


def _check_day(company: Company) -> None:
    policy = company.policy
    if not policy.open_at(company.clock()):
        raise ProtocolError("closed", f"outside of the policy's hours {policy.hours} ({policy.zone})")
    if policy.most_rounds_a_day is not None:
        company.steps.check_count("rounds", company.day(), times=1, most=policy.most_rounds_a_day)
