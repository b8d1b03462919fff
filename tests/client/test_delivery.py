"""A finished run's model comes to a company whole and checked, for a run that it joined, or nothing is written."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from support.coordinating import Coordinator
from support.deployed import without_seeds
from support.families import Variant
from typer.testing import CliRunner

from fedblocks.blocks import digest, metric_of, split
from fedblocks.blocks.examples import Examples
from fedblocks.blocks.families import family
from fedblocks.blocks.model_file import ModelCard, load_model, save_model
from fedblocks.blocks.settings import NoiseSettings
from fedblocks.blocks.state import ModelState
from fedblocks.cli.main import app
from fedblocks.client import delivery
from fedblocks.client.awaited import MOST_AWAITED
from fedblocks.client.company import Company
from fedblocks.client.decision_chain import whole_lines
from fedblocks.client.delivery import folder_name
from fedblocks.client.model_folders import MODELS, PUBLIC_FILE, unmeasured
from fedblocks.client.models import kept_models
from fedblocks.client.policy import Policy, load_policy
from fedblocks.errors import ProtocolError
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.protocol.messages import (
    DELIVER,
    JOIN,
    DeliverReply,
    DeliverRequest,
    JoinRequest,
    refused,
)
from fedblocks.server import delivery as sending
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.models import export
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings


@pytest.fixture(scope="module")
def finished(small: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run whose last checkpoint lies there, as after rounds that moved what a round trains."""
    run = prepare(small, tmp_path_factory.mktemp("made") / "run")
    without_seeds(run)
    first, plan = Checkpoint.load(run.checkpoints).model, run.plan()
    moved = tuple(
        {name: -t if ".layers." in name else t for name, t in block.items()} for block in first.blocks
    )
    moments = {b: {"step": torch.zeros(1)} for b in range(len(moved))}
    Checkpoint(plan.training.rounds, ModelState(first.shared, moved), moments).save(run.checkpoints)
    home = run.companies / "company-0"
    Examples.load(home / "data.npz")[slice(0, 40)].save(home / "held_out.npz")
    return run


@pytest.fixture
def run(finished: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(finished.path, tmp_path / "run")))


@pytest.fixture
def coordinator(run: RunFolder) -> Coordinator:
    made = Coordinator(run)
    made.model = Checkpoint.load(run.checkpoints, 0).model
    assert refused(made.ask(1, JOIN, joining(made))) is None
    return made


def joining(coordinator: Coordinator, **changes: Any) -> Any:
    plan = coordinator.plan.changed(**changes) if changes else coordinator.plan
    return JoinRequest(plan, coordinator.model.shared).to_record()


def requests_of(coordinator: Coordinator) -> list[DeliverRequest]:
    joined = JoinRequest(coordinator.plan, coordinator.model.shared).digest()
    return [DeliverRequest.from_record(record) for record in sending.parts_of(coordinator.run, joined)[0]]


def sent(coordinator: Coordinator, requests: list[DeliverRequest], node: int = 1) -> str:
    """The code at which it ended; "kept" if the company has all of it, "more" if it waits for another part."""
    for request in requests:
        reply = coordinator.ask(node, DELIVER, request.to_record())
        if (code := refused(reply)) is not None:
            return code
        if DeliverReply.from_record(reply).kept:
            return "kept"
    return "more"


def home_of(coordinator: Coordinator) -> Path:
    return coordinator.run.companies / "company-0"


def kept_in(coordinator: Coordinator) -> Path:
    joined = JoinRequest(coordinator.plan, coordinator.model.shared).digest()
    return home_of(coordinator) / "models" / folder_name(coordinator.plan.run, joined)


def nothing_kept(coordinator: Coordinator) -> bool:
    models = home_of(coordinator) / "models"
    return not list(models.rglob("*.safetensors")) and not kept_in(coordinator).exists()


def test_the_model_is_the_one_that_export_writes(coordinator: Coordinator, tmp_path: Path) -> None:
    """Would catch a copy with another tensor, card or file mode, and one that no command can use."""
    assert sent(coordinator, requests_of(coordinator)) == "kept"
    folder = kept_in(coordinator)
    card, (_, beside) = export(coordinator.run, tmp_path / "exported")
    network, own = load_model(folder)
    exported = load_model(tmp_path / "exported")[0].state_dict()
    assert own == card
    assert (folder / "model.json").read_bytes() == beside.read_bytes()
    assert digest(network.state_dict()) == digest(exported)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent)} == {0o700}
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".i")] == []
    lines = [json.loads(line) for line in whole_lines(home_of(coordinator) / "decisions.jsonl")]
    (told,) = [line for line in lines if line["what"] == "model"]
    assert (told["run"], told["digest"]) == (coordinator.plan.run, card.digest)


def test_what_was_kept_of_earlier_blocks_goes_as_the_run_is_over(coordinator: Coordinator) -> None:
    """Over Flower alone nothing else says so. Would catch derived private data that stay, and those of a later run
    that go with an old one's model."""
    path, requests = home_of(coordinator) / "prefix.bin", requests_of(coordinator)
    path.touch(mode=0o600)
    assert sent(coordinator, requests) == "kept"
    assert not path.exists()
    assert refused(coordinator.ask(1, JOIN, joining(coordinator, run="another"))) is None
    path.touch(mode=0o600)
    assert sent(coordinator, requests) == "kept"
    assert path.exists()


def test_predict_works_on_it_and_models_shows_what_it_is_worth(coordinator: Coordinator) -> None:
    """From delivery to a person's screen: would catch a folder that `predict` cannot read, and figures of training
    examples, of other models, or that are not kept."""
    assert sent(coordinator, requests_of(coordinator)) == "kept"
    home, folder = home_of(coordinator), kept_in(coordinator)
    done = CliRunner().invoke(app, ["company", "models", str(home), "--json"])
    assert done.exit_code == 0, done.exception
    (found,) = json.loads(done.stdout)["models"]
    data = Examples.load(home / "held_out.npz")
    network, _ = load_model(folder)

    def quality() -> float:
        return network.chain_quality(data.inputs, data.targets, torch.Generator().manual_seed(0))[-1]

    final = quality()
    public = Checkpoint.load(coordinator.run.checkpoints, 0).model
    network.load_state_dict({n: t for part in (public.shared, *public.blocks) for n, t in part.items()})
    assert (found["final"], found["public"], found["examples"]) == (final, quality(), len(data))
    assert final != found["public"]
    for label, own in found["by_class"].items():
        part = data[data.targets == int(label)]
        of_class = network.chain_quality(part.inputs, part.targets, torch.Generator().manual_seed(0))[-1]
        assert (own["examples"], own["public"]) == (len(part), of_class)
    assert sum(own["examples"] for own in found["by_class"].values()) == len(data)
    assert any(own["final"] != own["public"] for own in found["by_class"].values())
    for_people = CliRunner().invoke(app, ["company", "models", str(home)])
    assert "class, in" in for_people.stderr
    told = json.loads((folder / "metrics.json").read_text())
    assert (told["final"], told["metric"]) == (final, "accuracy")
    assert stat.S_IMODE((folder / "metrics.json").stat().st_mode) == 0o600
    done = CliRunner().invoke(app, ["predict", str(folder), "--input", str(images(home, data)), "--json"])
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["count"] == len(data)


def images(home: Path, data: Examples) -> Path:
    """Inputs as a company has them."""
    import numpy as np

    path = home.parent.parent / "inputs.npz"
    np.savez(path, images=(255 * (data.inputs.clamp(-1, 1) + 1) / 2).byte().squeeze(1).numpy())
    return path


def test_a_company_that_holds_nothing_out_gets_the_model_without_figures(coordinator: Coordinator) -> None:
    (home_of(coordinator) / "held_out.npz").unlink()
    assert sent(coordinator, requests_of(coordinator)) == "kept"
    done = CliRunner().invoke(app, ["company", "models", str(home_of(coordinator)), "--json"])
    (found,) = json.loads(done.stdout)["models"]
    assert (found["examples"], found["final"], found["problem"]) == (0, None, "")


def first_tensor(request: DeliverRequest, change: Callable[[torch.Tensor], torch.Tensor]) -> DeliverRequest:
    name, tensor = next(iter(request.final[0].items()))
    return replace(request, final=dict(request.final) | {0: dict(request.final[0]) | {name: change(tensor)}})


def one_bit(tensor: torch.Tensor) -> torch.Tensor:
    changed = tensor.clone()
    changed.view(-1)[0] = torch.nextafter(changed.view(-1)[0], torch.tensor(9e9))
    return changed


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    changed = tensor.clone()
    changed.view(-1)[0] = torch.nan
    return changed


def renamed(request: DeliverRequest) -> DeliverRequest:
    state = dict(request.final[0])
    name = next(iter(state))
    return replace(request, final=dict(request.final) | {0: state | {f"{name}.other": state.pop(name)}})


def frozen_changed(request: DeliverRequest) -> DeliverRequest:
    """The interface is not trained; a coordinator that exchanges it could plant a model of its own."""
    name = next(name for name in request.public[0] if name not in request.final[0])
    state = dict(request.final[0]) | {name: request.public[0][name] + 1}
    return replace(request, final=dict(request.final) | {0: state})


def one_block_less(request: DeliverRequest) -> DeliverRequest:
    last = max(request.public)
    return replace(request, public={b: s for b, s in request.public.items() if b != last})


def other_card(**changes: Any) -> Callable[[DeliverRequest], DeliverRequest]:
    def change(request: DeliverRequest) -> DeliverRequest:
        card = ModelCard.model_validate_json(request.card).model_copy(update=changes)
        return replace(request, card=card.model_dump_json())

    return change


WRONG: list[tuple[str, Callable[[DeliverRequest], DeliverRequest], str]] = [
    ("one bit", lambda r: first_tensor(r, one_bit), "bad_model"),
    ("not a number", lambda r: first_tensor(r, with_nan), "bad_model"),
    ("other shape", lambda r: first_tensor(r, lambda t: t[..., :-1]), "bad_model"),
    ("other type", lambda r: first_tensor(r, lambda t: t.double()), "bad_model"),
    ("other name", renamed, "bad_model"),
    ("what is not trained", frozen_changed, "bad_model"),
    ("a block is missing", one_block_less, "bad_model"),
    ("no such block", lambda r: replace(r, public=dict(r.public) | {60: r.public[0]}), "bad_model"),
    ("another run joined", lambda r: replace(r, joined=bytes(32)), "not_awaited"),
    ("a path", lambda r: replace(r, joined=b"../../policy"), "not_awaited"),
    ("card: another run", other_card(run="another"), "bad_model"),
    ("card: another round", other_card(round=1), "bad_model"),
    ("card: another plan", other_card(plan="0" * 64), "bad_model"),
    ("card: another digest", other_card(digest="0" * 64), "bad_model"),
    ("card: a terminal's commands", other_card(guarantee="\x1b[2J all is well"), "bad_model"),
    ("card: labels of other classes", other_card(labels=("yes", "no")), "bad_model"),
    ("card: no contract", other_card(contract={"kind": "nothing"}), "bad_model"),
    ("card: no JSON", lambda r: replace(r, card="{" * 5000), "bad_model"),
    ("a later part first", lambda r: replace(r, part=1, count=2), "wrong_part"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "code"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_a_model_that_is_not_the_runs_is_refused_and_nothing_is_written(
    coordinator: Coordinator, change: Callable[[DeliverRequest], DeliverRequest], code: str
) -> None:
    """Would catch any tensor, card or run that somebody has changed; the true one is taken after that."""
    (request,) = requests_of(coordinator)
    assert sent(coordinator, [change(request)]) == code
    assert nothing_kept(coordinator)
    assert sent(coordinator, [request]) == "kept"


def test_names_of_classes_come_with_a_model_that_draws_images_of_them(coordinator: Coordinator) -> None:
    """Would catch a check by what a model predicts: one that draws images of a class has its classes as inputs."""
    model = family("dit").settings.model_validate({"family": "dit"})
    plan = coordinator.plan.changed(model=model.model_dump())
    names = tuple(f"class {i}" for i in range(10))
    card = ModelCard(
        version="1", run=plan.run, round=plan.training.rounds, rounds=plan.training.rounds, plan=plan.digest().hex(),
        digest="00", guarantee="nothing", model=plan.model, noise=plan.noise, metric=metric_of(plan.model).name,
        labels=names,
    )  # fmt: skip
    assert delivery.checked_card(card.model_dump_json(), plan).labels == names
    fewer = card.model_copy(update={"labels": names[:2]}).model_dump_json()
    with pytest.raises(ProtocolError, match="bad_model"):
        delivery.checked_card(fewer, plan)


def test_parts_come_in_order_once_and_of_one_model(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model larger than a message: would catch parts of two models that are put together, and a lost answer that
    ends the delivery."""
    monkeypatch.setattr(sending, "PART_BYTES", 1)
    requests = requests_of(coordinator)
    assert len(requests) == 2 * coordinator.plan.model.blocks
    assert sent(coordinator, [requests[0], requests[2]]) == "wrong_part"
    assert sent(coordinator, [replace(requests[0], part=1)]) == "bad_model"  # it came before
    other = other_card(digest="0" * 64)
    assert sent(coordinator, [other(requests[1])]) == "wrong_part"
    assert sent(coordinator, [requests[0], requests[1], requests[1], *requests[2:-1]]) == "more"
    assert not kept_in(coordinator).exists()
    assert sent(coordinator, [requests[-1]]) == "kept"
    assert sent(coordinator, requests) == "kept"  # at the first part


def test_a_model_is_kept_once_and_another_one_of_its_run_is_refused(coordinator: Coordinator) -> None:
    """Would catch a coordinator that fills the disk, or replaces the model that a company relies on."""
    (request,) = requests_of(coordinator)
    assert sent(coordinator, [request]) == "kept"
    before = {path.name: path.stat().st_mtime_ns for path in kept_in(coordinator).iterdir()}
    assert sent(coordinator, [request]) == "kept"
    assert sent(coordinator, [other_card(digest="0" * 64)(request)]) == "model_kept"
    assert {path.name: path.stat().st_mtime_ns for path in kept_in(coordinator).iterdir()} == before


def test_a_company_takes_so_many_models_and_none_that_is_too_large(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a disk that fills with run after run, and a limit that holds for training alone."""
    monkeypatch.setattr(delivery, "MOST_MODELS", 0)
    (request,) = requests_of(coordinator)
    assert sent(coordinator, [request]) == "too_many"
    monkeypatch.undo()
    rules = home_of(coordinator) / "policy.toml"
    text = rules.read_text()
    lines = [line for line in text.splitlines() if not line.startswith("largest_model")]
    rules.write_text("\n".join(["largest_model = 1000", *lines]))
    assert sent(coordinator, [request]) == "privacy"
    assert nothing_kept(coordinator)


def test_it_comes_after_the_run_is_forgotten_and_another_one_was_joined(coordinator: Coordinator) -> None:
    """Would catch a copy that is lost with joined.json: at the run's end, in another process, after another join."""
    home = home_of(coordinator)
    assert refused(coordinator.ask(1, JOIN, joining(coordinator, run="another"))) is None
    Company(home, load_policy(home / "policy.toml")).leave("another")
    again = Coordinator(coordinator.run)
    again.model = coordinator.model
    assert sent(again, requests_of(coordinator)) == "kept"
    assert not (home / "joined.json").exists()


def test_what_was_joined_long_ago_is_awaited_no_more(coordinator: Coordinator) -> None:
    """Would catch a file a join for ever."""
    home = home_of(coordinator)
    company = Company(home, load_policy(home / "policy.toml"))
    joined = JoinRequest(coordinator.plan, coordinator.model.shared).digest()
    found = company.awaited.find(joined)
    assert found is not None
    for i in range(MOST_AWAITED):
        company.awaited.save(replace(found, joined=bytes([i]) * 32))
    assert company.awaited.find(joined) is None
    assert len(list((home / "models" / "awaited").iterdir())) == MOST_AWAITED


@pytest.mark.parametrize(
    "name", ["../../evil", "a/b", ".hidden", "awaited", "x" * 128 + "\N{SNOWMAN}", "a b"]
)
def test_a_runs_name_is_never_a_path(name: str) -> None:
    """A plan's name may hold any printable character: would catch a model that is written outside of its folder."""
    made = folder_name(name, bytes(32))
    assert Path(made).name == made
    assert made.startswith("run-")


def test_a_statement_for_a_database_is_not_taken_over(coordinator: Coordinator) -> None:
    """Would catch a coordinator's SQL that `fedblocks predict` would run on the company's database."""
    contract = {
        "kind": "table",
        "label": "y",
        "range": [0, 1],
        "numeric": {"a": [0, 1]},
        "query": "select secret",
    }
    (request,) = requests_of(coordinator)
    assert sent(coordinator, [other_card(contract=contract)(request)]) == "kept"
    _, card = load_model(kept_in(coordinator))
    assert card.contract == {k: v for k, v in contract.items() if k != "query"}


def test_a_contracts_text_is_printable_too(coordinator: Coordinator) -> None:
    """`fedblocks predict` prints a column's name: would catch a coordinator's commands to a terminal, at any depth;
    and a contract of tab-separated files that is refused."""
    (request,) = requests_of(coordinator)
    usual = {"kind": "table", "label": "y", "range": [0, 1], "numeric": {"a": [0, 1]}, "separator": "\t"}
    for changes in (
        {"label": "\x1b[2J"},
        {"categories": {"a\u202eb": ["x"]}},
        {"categories": {"b": ["\x07"]}},
    ):
        assert sent(coordinator, [other_card(contract=usual | changes)(request)]) == "bad_model"
    assert nothing_kept(coordinator)
    assert sent(coordinator, [other_card(contract=usual)(request)]) == "kept"


def test_a_run_that_was_denied_after_it_was_joined_brings_no_model(coordinator: Coordinator) -> None:
    """Would catch a denial that ends the trainings alone; and one of another plan that ends this one."""
    home, plan = home_of(coordinator), coordinator.plan
    requests = Company(home, load_policy(home / "policy.toml")).requests
    requests.decide_plan(plan.changed(delta=plan.delta / 2), "denied", by="director")
    requests.decide_plan(plan, "denied", by="director")
    (request,) = requests_of(coordinator)
    assert sent(coordinator, [request]) == "denied"
    assert nothing_kept(coordinator)
    requests.decide_plan(plan, "approved", by="director")
    assert sent(coordinator, [request]) == "kept"


def test_a_model_that_cannot_be_judged_is_named_and_stands_in_no_other_ones_way(tmp_path: Path) -> None:
    """Weights that are finite, as is checked, but so large that linear algebra fails on what they make: would catch
    a model that ends `company models`, the agent's judging and `transport serve`, and hides all after it."""
    made = Variant(family("dit").small_settings())
    company = Company(
        tmp_path, Policy(company="acme", epsilon_ceiling=1, delta=1e-5, data=made.settings.kind)
    )
    Examples(*made.examples(4)).save(tmp_path / "held_out.npz")
    (tmp_path / MODELS).mkdir()
    for name, factor in (("huge", 1e30), ("usual", 1.0)):
        network = made.model().eval()
        public = split(network)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(factor)
        state = split(network)
        whole = state.shared | {n: t for block in state.blocks for n, t in block.items()}
        card = ModelCard(
            version="0", run=name, round=1, rounds=1, plan="", digest=digest(whole).hex(), guarantee="",
            model=made.settings, noise=NoiseSettings(), metric=network.metric.name,
        )  # fmt: skip
        save_model(state, card, tmp_path / MODELS / name)
        (tmp_path / MODELS / name / PUBLIC_FILE).write_bytes(save(dict(public.blocks[0])))
    huge, usual = kept_models(company)
    assert huge.final is None
    assert "is no number" in huge.problem
    assert usual.final is not None
    assert usual.problem == ""
    assert kept_models(company) == [huge, usual]
    assert not unmeasured(tmp_path)
    json.dumps([vars(huge), vars(usual)], allow_nan=False)
