"""A company that is killed at any point takes part again: what it had joined is on disk, what it had begun is gone.

`Coordinator` gives every company a new context, as a new process would have.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.coordinating import NODES, Coordinator
from support.deployed import without_seeds

from fedblocks.client import app as client_app
from fedblocks.client import company as company_module
from fedblocks.client.company import LEAST_SESSIONS, Company
from fedblocks.client.kept_releases import MOST_SENT, KeptReleases
from fedblocks.client.policy import load_policy
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.privacy.secure_aggregation import ChannelKey, Session
from fedblocks.protocol.messages import (
    KEYS,
    TRAIN,
    KeysReply,
    KeysRequest,
    TrainReply,
    TrainRequest,
    refused,
)
from fedblocks.protocol.release import sum_label
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings


class Companies(Coordinator):
    """Deployed ones, whose noise nobody can repeat; they join once, and sessions have attempts."""

    def __init__(self, run: RunFolder, joined: dict[str, ChannelKey] | None = None) -> None:
        super().__init__(run)
        self.joined = joined or self.channels()

    def restarted(self) -> Companies:
        return Companies(self.run, self.joined)

    def adverts(self, session: Session) -> dict[int, TrainRequest]:
        record = KeysRequest(session, self.joined).to_record()
        replies = {n: KeysReply.from_record(self.ask(n, KEYS, record)) for n in NODES}
        adverts = {f"company-{n - 1}": reply.advert for n, reply in replies.items()}
        requests = TrainRequest.for_each(0, {0: self.model.blocks[0]}, adverts)
        return {n: requests[f"company-{n - 1}"] for n in NODES}

    def attempt(self, token: str, **changes: Any) -> Session:
        return self.session(label=sum_label(0, token * 16), **changes)


@pytest.fixture(scope="module")
def prepared(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = prepare(small, tmp_path_factory.mktemp("made") / "run")
    without_seeds(run)
    return run


@pytest.fixture
def run(prepared: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(prepared.path, tmp_path / "run")))


@pytest.fixture
def companies(run: RunFolder) -> Companies:
    return Companies(run)


def company_of(run: RunFolder, i: int = 0) -> Company:
    home = run.companies / f"company-{i}"
    return Company(home, load_policy(home / "policy.toml"))


def kept(run: RunFolder) -> np.ndarray[Any, Any]:
    """The residues that company-0 keeps of round 1."""
    (path,) = company_of(run).home.glob("release-*.bin")
    return np.frombuffer(path.read_bytes().partition(b"\n")[2], "<u4")


def test_a_company_that_was_killed_goes_on_without_joining_again(companies: Companies) -> None:
    """Would catch joined state that lives in memory: with three companies, 130 of 150 rounds were lost by that."""
    again = companies.restarted()
    request = again.adverts(again.attempt("a"))[1]
    assert refused(again.ask(1, TRAIN, request.to_record())) is None
    assert again.charges() == 1


def test_a_session_of_before_the_crash_is_refused_in_every_phase(companies: Companies) -> None:
    """Would catch masks, seeds or shares that serve twice: the same session must never be begun or trained again."""
    session = companies.attempt("a")
    requests = companies.adverts(session)
    assert refused(companies.ask(1, TRAIN, requests[1].to_record())) is None
    again = companies.restarted()
    assert refused(again.ask(1, KEYS, KeysRequest(session, again.joined).to_record())) == "replay"
    assert refused(again.ask(1, TRAIN, requests[1].to_record())) == "wrong_phase"
    assert refused(again.confirm(1, session.digest(), session.cohort)) == "wrong_phase"
    assert refused(again.unmask(1, session.digest(), {})) == "wrong_phase"
    assert again.charges() == 1


def test_a_new_attempt_has_fresh_keys_and_masks_for_the_same_bits(
    companies: Companies, run: RunFolder
) -> None:
    """Would catch a mask that is used for two vectors, and a release that is charged, or noised, twice."""
    first = companies.adverts(companies.attempt("a"))
    one = TrainReply.from_record(companies.ask(1, TRAIN, first[1].to_record())).masked
    bits = kept(run)
    again = companies.restarted()
    second = again.adverts(again.attempt("b"))
    two = TrainReply.from_record(again.ask(1, TRAIN, second[1].to_record())).masked
    assert np.array_equal(kept(run), bits)
    assert again.charges() == 1
    assert len({a.adverts["company-0"].public for a in (first[1], second[1])}) == 2
    assert np.mean(one == two) < 0.02  # 1 in 256 by chance


def test_bits_are_sent_a_few_times_and_then_made_and_charged_anew(
    companies: Companies, run: RunFolder
) -> None:
    """Would catch a coordinator that averages the others' noise away with any number of attempts."""
    seen = []
    for token in "0123456789abcdef"[: MOST_SENT + 1]:
        requests = companies.adverts(companies.attempt(token))
        assert refused(companies.ask(1, TRAIN, requests[1].to_record())) is None
        seen.append(kept(run).tobytes())
    assert [len(set(seen[:n])) for n in range(1, MOST_SENT + 2)] == [1] * MOST_SENT + [2]
    assert companies.charges() == 2


def test_a_company_that_helped_to_open_a_sum_brings_another_release_to_the_next(
    companies: Companies, run: RunFolder
) -> None:
    """Would catch the same bits in two opened sums over different companies, whose difference is one company's."""
    session = companies.attempt("a")
    for node, request in companies.adverts(session).items():
        assert refused(companies.ask(node, TRAIN, request.to_record())) is None
    bits = kept(run)
    signatures = companies.signatures(session, dict.fromkeys(NODES, session.cohort))
    assert refused(companies.unmask(1, session.digest(), signatures)) is None
    assert list(company_of(run).home.glob("release-*.bin")) == []
    again = companies.restarted()
    requests = again.adverts(again.attempt("b"))
    assert refused(again.ask(1, TRAIN, requests[1].to_record())) is None
    assert not np.array_equal(kept(run), bits)
    assert (again.charges(0), again.charges(1)) == (2, 1)


def test_other_states_or_another_round_are_another_release(companies: Companies, run: RunFolder) -> None:
    """Would catch bits of one model that are sent for another."""
    requests = companies.adverts(companies.attempt("a"))
    assert refused(companies.ask(1, TRAIN, requests[1].to_record())) is None
    bits = kept(run)
    requests = companies.adverts(companies.attempt("b", round=2))
    assert refused(companies.ask(1, TRAIN, requests[1].to_record())) is None
    assert not np.array_equal(kept(run), bits)
    assert companies.charges() == 2


def test_shares_of_one_noise_are_never_sent_twice(small: SimulationSettings, tmp_path: Path) -> None:
    """Would catch a share that noises two sums: each of them would be charged, and neither protected."""
    from fedblocks.experiments.presets import load_settings

    private = small.data.private.source
    from conftest import SMALL

    settings = load_settings(
        "digits", [*SMALL, f'data.private.source="{private}"', 'privacy.mode="secure_step"']
    )
    run = prepare(settings, tmp_path / "run")
    without_seeds(run)
    companies = Companies(run)
    threshold = companies.plan.threshold(5)
    seen = []
    for token in "ab":
        requests = companies.adverts(companies.attempt(token, threshold=max(4, threshold or 0)))
        assert refused(companies.ask(1, TRAIN, requests[1].to_record())) is None
        seen.append(kept(run).tobytes())
    assert len(set(seen)) == 2
    assert companies.charges() == 2


def test_a_training_that_was_killed_is_charged_once(
    companies: Companies, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has left by then. Would catch a second charge for it, and a vector that leaves before it is kept."""
    killed = RuntimeError("killed")
    train = client_app.train_block

    def dies(*arguments: Any) -> Any:
        train(*arguments)
        raise killed

    monkeypatch.setattr(client_app, "train_block", dies)
    requests = companies.adverts(companies.attempt("a"))
    assert refused(companies.ask(1, TRAIN, requests[1].to_record())) == "internal"
    assert kept(run).size == 0
    assert companies.charges() == 1
    monkeypatch.undo()
    again = companies.restarted()
    requests = again.adverts(again.attempt("b"))
    assert refused(again.ask(1, TRAIN, requests[1].to_record())) is None
    assert kept(run).size
    assert again.charges() == 1


def test_the_last_release_of_a_plan_is_not_lost_by_a_round_that_is_begun_anew(
    companies: Companies, run: RunFolder
) -> None:
    """Would catch a repeated round that takes the place of the last one, which the ledger then refuses."""
    for round_ in range(1, 5):
        for token in "ab":
            companies = companies.restarted()
            requests = companies.adverts(companies.attempt(token, round=round_))
            assert refused(companies.ask(1, TRAIN, requests[1].to_record())) is None
    assert companies.charges() == 4


def damage(text: bytes) -> bytes:
    return text[: len(text) // 2]


def of_another_company(text: bytes) -> bytes:
    return json.dumps(json.loads(text) | {"company": "company-9"}).encode()


def of_another_ledger(text: bytes) -> bytes:
    return json.dumps(json.loads(text) | {"head": "0" * 64}).encode()


@pytest.mark.parametrize("change", [damage, of_another_company, of_another_ledger])
def test_what_was_joined_with_another_ledger_or_is_damaged_was_not_joined(
    companies: Companies, run: RunFolder, change: Callable[[bytes], bytes]
) -> None:
    """Would catch state that is trusted because it lies there; the company can join again."""
    path = company_of(run).home / "joined.json"
    path.write_bytes(change(path.read_bytes()))
    again = companies.restarted()
    request = KeysRequest(again.attempt("a"), again.joined).to_record()
    assert refused(again.ask(1, KEYS, request)) == "wrong_phase"
    assert refused(again.ask(2, KEYS, request)) is None
    new = again.channels()
    assert refused(again.ask(1, KEYS, KeysRequest(again.attempt("b"), new).to_record())) is None


def test_what_is_kept_is_its_owners_alone_and_goes_when_the_run_is_over(
    companies: Companies, run: RunFolder
) -> None:
    requests = companies.adverts(companies.attempt("a"))
    companies.ask(1, TRAIN, requests[1].to_record())
    company = company_of(run)
    files = [company.home / "joined.json", *company.home.glob("release-*.bin")]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o600] * 2
    with company.ledger() as ledger:
        loaded = company.joined.load(company.name, ledger)
    assert loaded is not None
    assert loaded.channel not in repr(loaded)
    company.leave(run.plan().run)
    assert not any(path.exists() for path in files)
    again = companies.restarted()
    assert (
        refused(again.ask(1, KEYS, KeysRequest(again.attempt("b"), again.joined).to_record()))
        == "wrong_phase"
    )


def test_sessions_of_a_run_are_counted_and_another_day_brings_more(
    companies: Companies, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a coordinator that fills a disk with rows of sessions that lead to nothing, and a limit that a run
    whose every round fails a few times would meet."""
    assert company_of(run).policy.most_attempts * 100 >= LEAST_SESSIONS > 10 * companies.plan.training.rounds
    monkeypatch.setattr(company_module, "LEAST_SESSIONS", 1)
    policy = company_of(run).home / "policy.toml"
    policy.write_text(policy.read_text().replace("most_attempts = 10", "most_attempts = 1"))
    tokens = "0123456789abcdef"
    most = companies.plan.training.releases(companies.plan.model.blocks)

    def asked(token: str, node: int) -> str | None:
        request = KeysRequest(companies.attempt(token), companies.joined)
        return refused(companies.ask(node, KEYS, request.to_record()))

    assert [asked(token, 1) for token in tokens[: most + 2]] == [None] * most + ["too_many"] * 2
    assert asked(tokens[most], 2) is None
    monkeypatch.setattr(Company, "day", lambda company: "2222-02-02")
    assert asked(tokens[most], 1) is None


def test_the_steps_of_a_finished_runs_sessions_are_one_and_none_of_them_goes_on(
    companies: Companies, run: RunFolder
) -> None:
    """Would catch rows of finished runs that stay for ever, and a session that goes on from a state of before its
    rows went: two sets of survivors, or shares sent twice, would open one company's update."""
    session, company = companies.attempt("a"), company_of(run)
    requests = companies.adverts(session)
    for node in NODES:
        assert refused(companies.ask(node, TRAIN, requests[node].to_record())) is None
    names, state = session.cohort, companies.state(1)
    assert refused(companies.confirm(1, session.digest(), names)) is None

    def rows() -> set[str]:
        with closing(sqlite3.connect(company.home / "steps.sqlite")) as file:
            return {step for (step,) in file.execute("SELECT step FROM steps")}

    public = companies.joined[company.name].public
    own = {step for step in rows() if public.hex() in step}
    assert {step.partition("/")[0] for step in own} == {"begun", "trained", "confirmed"}
    others = rows() - own
    company.leave(run.plan().run, public)
    assert rows() == others | {f"over/{public.hex()}"}
    companies.put_back(1, state)
    assert refused(companies.confirm(1, session.digest(), names[:4])) == "replay"
    assert refused(companies.confirm(1, session.digest(), names)) == "replay"
    assert refused(companies.ask(1, TRAIN, requests[1].to_record())) in ("replay", "wrong_phase")
    request = KeysRequest(companies.attempt("b"), companies.joined)
    assert refused(companies.ask(1, KEYS, request.to_record())) == "replay"
    assert companies.charges() == 1
    again = companies.channels()
    request = KeysRequest(companies.attempt("c"), again)
    assert refused(companies.ask(1, KEYS, request.to_record())) is None


def test_a_simulation_keeps_none_of_it(small: SimulationSettings, tmp_path: Path) -> None:
    """Its releases follow from a seed; files of them would only cost time."""
    run = prepare(small, tmp_path / "run")
    companies = Coordinator(run)
    companies.ask(1, TRAIN, companies.train_request(companies.session()).to_record())
    home = company_of(run).home
    assert [path.name for path in (home / "joined.json", *home.glob("release-*")) if path.exists()] == []


def test_a_damaged_release_is_made_and_charged_anew(companies: Companies, run: RunFolder) -> None:
    requests = companies.adverts(companies.attempt("a"))
    companies.ask(1, TRAIN, requests[1].to_record())
    (path,) = company_of(run).home.glob("release-*.bin")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert KeptReleases(path.parent)._find(companies.plan.run, 1, "block-0", ()) is None
    requests = companies.adverts(companies.attempt("b"))
    assert refused(companies.ask(1, TRAIN, requests[1].to_record())) is None
    assert companies.charges() == 2
