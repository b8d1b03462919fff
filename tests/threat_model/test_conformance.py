"""The conformance audit: every planted defect is found by the statistic it breaks, and sound steps do not alarm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from fedblocks.client import training
from fedblocks.client.company import Company
from fedblocks.errors import InputError
from fedblocks.experiments.bench.attack.conformance import SOUND, audited, sound_step
from fedblocks.privacy import dp_sgd
from fedblocks.privacy.clipping import ClippedSum, PerExampleClipping
from fedblocks.privacy.dp_sgd import DPSGD
from fedblocks.privacy.mechanisms.skellam import SkellamNoise
from fedblocks.privacy.mechanisms.skellam_sampler import SkellamSampler
from fedblocks.privacy.randomness import Randomness
from fedblocks.privacy.sampling import EpochSampling, PoissonSampling
from fedblocks.privacy.secure_aggregation import masks
from fedblocks.privacy.source import CryptographicSource
from fedblocks.settings import Plan
from fedblocks.threat_model.attacks import attack
from fedblocks.threat_model.attacks.conformance import ATTACK
from fedblocks.threat_model.epsilon.checks import Check
from fedblocks.threat_model.epsilon.conformance import audit_step
from fedblocks.threat_model.epsilon.defects import DEFECTS, Mode, mutated
from fedblocks.threat_model.epsilon.mask_checks import audit_masks
from fedblocks.threat_model.epsilon.recording import OwnStep, record
from fedblocks.threat_model.epsilon.seams import replaced
from fedblocks.threat_model.epsilon.tape import Tape

STEPS: dict[Mode, str] = {"local": "Poisson batches", "secure_step": "shares of noise"}
step_of = cache(sound_step)


def failing(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.held}


def planted(own: OwnStep, name: str, seed: int = 0) -> set[str]:
    with DEFECTS[name].planted():
        return failing(audited(own, seed))


def fixed(seed: int = 0) -> Any:
    return lambda number: Randomness.from_seed(seed, "step", number)


@pytest.mark.parametrize(("name", "mode"), [(d.name, mode) for d in DEFECTS.values() for mode in d.modes])
def test_a_planted_defect_is_found_by_the_statistic_that_it_breaks(name: str, mode: Mode) -> None:
    """Would catch an audit that passes a broken step, and one that alarms at something else than what is broken."""
    assert DEFECTS[name].shows in planted(step_of(STEPS[mode]), name)


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_step_of_every_mechanism_and_family_holds(name: str) -> None:
    """Would catch an audit that does not know a mechanism's law: correlated noise, a moving clip, epochs."""
    assert failing(audited(step_of(name), 0)) == set()


@pytest.mark.slow
def test_no_alarm_in_many_sound_runs() -> None:
    """Would catch levels that are not what they say: at a family-wise 1e-4 the chance of one alarm is 1%."""
    names = list(SOUND)
    alarms = [failing(audited(step_of(names[i % len(names)]), i)) for i in range(100)]
    assert alarms == [set()] * 100


@pytest.mark.parametrize("sound", ["epochs", "correlated noise", "moving clip", "local steps"])
@pytest.mark.parametrize("name", ["noise times .9", "noise reused over rounds"])
def test_noise_defects_are_found_in_every_local_mechanism(name: str, sound: str) -> None:
    """Would catch a residual that is whitened, or scaled by a moving clip, by the defective code itself."""
    assert DEFECTS[name].shows in planted(step_of(sound), name)


@pytest.mark.parametrize("name", ["Poisson batches", "moving clip", "shares of noise"])
def test_a_tensor_without_noise_is_found_however_small_it_is(name: str) -> None:
    """Would catch a layer left out by the noise, which a thousandth of all values does not show in their variance."""
    own = step_of(name)
    end = np.cumsum(list(own.tensors().values()))
    smallest = int(np.argmin(list(own.tensors().values())))
    bare = slice(int(end[smallest]) - list(own.tensors().values())[smallest], int(end[smallest]))
    gaussian, shares = dp_sgd.add_gaussian_noise, SkellamSampler.sample

    def add(clipped: ClippedSum, noise_multiplier: float, randomness: Randomness) -> torch.Tensor:
        noisy = gaussian(clipped, noise_multiplier, randomness)
        noisy[bare] = clipped.vector[bare]
        return noisy

    def drawn(sampler: SkellamSampler, n: int, randomness: Randomness) -> Any:
        found = shares(sampler, n, randomness)
        found[bare] = 0
        return found

    with replaced(dp_sgd, "add_gaussian_noise", add), replaced(SkellamSampler, "sample", drawn):
        found = failing(audited(own, 0))
    assert "noise variance of a tensor / promised" in found


@pytest.mark.parametrize("name", ["Poisson batches", "moving clip", "epochs"])
def test_a_clip_above_the_promised_one_is_found_though_the_noise_is_right(name: str) -> None:
    """Would catch a change and a noise that are measured in the step's own clip alone: here it is twice the plan's,
    and the multiplier half of it, so that the noise is as promised."""
    own, original = step_of(name), training.mechanism

    def wider(plan: Plan) -> DPSGD:
        made = original(plan)
        return replace(made, max_grad_norm=2 * made.max_grad_norm, noise_multiplier=made.noise_multiplier / 2)

    with replaced(training, "mechanism", wider):
        assert "clip / promised" in failing(audited(own, 0))


@pytest.mark.parametrize("name", ["Poisson batches", "shares of noise"])
def test_a_step_that_adds_no_noise_to_an_empty_batch_is_found(name: str) -> None:
    """Would catch a step that is skipped where there is nothing to train on, which tells just that."""
    gaussian, shares = dp_sgd.add_gaussian_noise, SkellamNoise.encode

    def add(clipped: ClippedSum, noise_multiplier: float, randomness: Randomness) -> torch.Tensor:
        return gaussian(clipped, noise_multiplier if clipped.examples else 0.0, randomness)

    def encode(self: SkellamNoise, vector: Any, randomness: Randomness) -> Any:
        return shares(self, vector, randomness) if vector.any() else np.zeros(len(vector), dtype=np.uint32)

    with replaced(dp_sgd, "add_gaussian_noise", add), replaced(SkellamNoise, "encode", encode):
        found = failing(audited(step_of(name), 0))
    assert found == {"noise variance of an empty batch / promised"}


def test_the_first_example_of_a_batch_is_clipped_too() -> None:
    """Would catch a clip that all examples but one are put through: the last, which is left out of the sum, is not
    that one."""
    original = PerExampleClipping.sum

    def but_the_first(self: PerExampleClipping, losses: Any, *, examples: int, **sizes: int) -> ClippedSum:
        found = original(self, losses, examples=examples, **sizes)
        first = original(self, losses, examples=min(1, examples), **sizes)
        clip, self.max_grad_norm = self.max_grad_norm, 1e30
        try:
            whole = original(self, losses, examples=min(1, examples), **sizes)
        finally:
            self.max_grad_norm = clip
        return replace(found, vector=found.vector - first.vector + whole.vector)

    with replaced(PerExampleClipping, "sum", but_the_first):
        assert "sensitivity / clip" in failing(audit_step(step_of("Poisson batches"), fixed()).checks)


def test_a_layer_that_its_norm_leaves_out_is_found() -> None:
    """Would catch a clip that holds for the other layers only."""
    factors = mutated(PerExampleClipping._factors, "for layer in layers]\n", "for layer in layers[1:]]\n")
    with replaced(PerExampleClipping, "_factors", factors):
        assert "sensitivity / clip" in failing(audited(step_of("Poisson batches"), 0))


@contextmanager
def twice_in_an_epoch() -> Iterator[None]:
    original = EpochSampling.batches

    def batches(
        self: EpochSampling, examples: int, steps: int, randomness: Randomness
    ) -> Iterator[torch.Tensor]:
        for batch in original(self, examples, steps, randomness):
            yield torch.unique(torch.cat([batch, torch.zeros(1, dtype=torch.int64)]))

    with replaced(EpochSampling, "batches", batches):
        yield


def test_an_example_that_is_in_every_batch_of_an_epoch_is_found() -> None:
    """Would catch epochs accounted as one release of an example that takes part in all of their steps."""
    with twice_in_an_epoch():
        assert "examples not once an epoch" in failing(audited(step_of("epochs"), 0))


def test_batches_that_are_redrawn_within_a_release_are_found_where_they_must_stay() -> None:
    """Would catch correlated noise whose examples take part at other distances than its account assumes."""
    regroup = mutated(EpochSampling.batches, "self.regroup and ", "")
    with replaced(EpochSampling, "batches", regroup):
        assert "examples whose batch changed" in failing(audited(step_of("correlated noise"), 0))


def test_an_example_that_sways_others_is_found_though_it_moves_the_sum_little() -> None:
    """Would catch an audit that looks at the length of the change alone: here every contribution is divided by the
    batch's size, and the sum still moves by less than the clip."""
    original = PerExampleClipping.sum

    def coupled(self: PerExampleClipping, losses: Any, *, examples: int, **sizes: int) -> ClippedSum:
        found = original(self, losses, examples=examples, **sizes)
        return found if examples == 1 else replace(found, vector=10 * found.vector / (1 + examples))

    with replaced(PerExampleClipping, "sum", coupled):
        found = failing(audit_step(step_of("Poisson batches"), fixed()).checks)
    assert found == {"change of others / clip"}


def test_a_step_that_sums_other_examples_than_were_drawn_is_found() -> None:
    """Would catch amplification accounted for batches that are drawn and then changed: here eight examples are always
    in. The sampling object alone looks right."""
    original = dp_sgd.in_random_order

    def with_first(batch: torch.Tensor, randomness: Randomness) -> torch.Tensor:
        return torch.unique(torch.cat([original(batch, randomness), torch.arange(8)]))

    with replaced(dp_sgd, "in_random_order", with_first):
        assert "steps on other batches" in failing(audit_step(step_of("Poisson batches"), fixed()).checks)


def test_diffusion_noise_from_elsewhere_is_found_where_it_is_not_a_generator_of_torch() -> None:
    """Would catch draws from NumPy's global generator, which no operation of torch shows."""

    def normal(source: CryptographicSource, *shape: int) -> torch.Tensor:
        return torch.from_numpy(np.random.standard_normal(shape)).float()

    with replaced(CryptographicSource, "normal", normal):
        found = failing(audit_step(step_of("Poisson batches"), fixed()).checks)
    assert {"change on repetition / clip", "24 x diffusion values / random bits"} <= found


def test_torchs_seed_does_not_decide_the_diffusion_noise() -> None:
    """Oracle for `operations with torch's generators`: the same global seed, other keys, other draws; and the same
    keys give the same, whatever the global seed is."""
    own, drawn, of_first_pass = step_of("Poisson batches"), [], []
    original = type(own.model).draw

    def seen(*args: Any, **kwargs: Any) -> Any:
        found = original(own.model, *args, **kwargs)
        drawn.append(found.noise.flatten()[:64].clone())
        return found

    with replaced(own.model, "draw", seen):
        for torch_seed, key in ((7, 0), (7, 1), (8, 0)):
            torch.manual_seed(torch_seed)
            record(own, Randomness.from_seed(key), probe=False)
            of_first_pass.append(drawn[0])
            drawn.clear()
    assert torch.equal(of_first_pass[0], of_first_pass[2])
    assert not (of_first_pass[0] == of_first_pass[1]).any()


def test_companies_that_share_a_seed_are_found(demo: Any) -> None:
    """Would catch simulated or deployed companies whose noise is one stream: it cancels in a difference of sums."""
    subject, _ = demo
    own = Company.randomness

    def shared(company: Company, *labels: str | int) -> tuple[str, Randomness]:
        return own(company, *labels)[0], Randomness.from_seed(0, *labels)

    with replaced(Company, "randomness", shared):
        results = list(ATTACK.run(subject))
    assert {r.statistic for r in results if r.outcome == "refuted"} == {"correlation of companies"}


def test_a_round_that_is_not_in_the_label_of_its_randomness_is_found(demo: Any) -> None:
    """Would catch seeded streams that are the same in every round."""
    subject, _ = demo
    own = Company.randomness
    with replaced(Company, "randomness", lambda company, *labels: own(company, "same")):
        refuted = [r for r in ATTACK.run(subject) if r.outcome == "refuted"]
    assert {r.statistic for r in refuted} >= {"correlation of steps"}
    assert len({r.company for r in refuted if r.statistic == "correlation of steps"}) == 3


def test_either_mask_is_looked_at() -> None:
    """Would catch an audit of what is sent alone: one fresh mask hides that the other is the same in two sums, and
    the coordinator removes either."""
    with DEFECTS["masks reused"].planted():
        assert failing(audit_masks(1e-6, bits=22)) == {"mask keys in two sums"}
    with replaced(masks, "self_mask_key", lambda seed, digest, company: company.encode().ljust(32, b".")):
        assert failing(audit_masks(1e-6, bits=22)) == {"mask keys in two sums"}


def test_no_masks_at_all_are_found() -> None:
    """Would catch an audit that looks at keys and never at what is sent."""
    with replaced(masks._Streams, "apply", lambda self, values, into: np.copyto(into, values)):
        assert "spread of masked values / uniform" in failing(audit_masks(1e-6, bits=22))


def test_the_step_is_left_as_it_was() -> None:
    """Would catch an audit that trains the company's model, leaves its own functions behind, or uses up torch's
    global randomness."""
    own = step_of("local steps")
    before = {name: p.clone() for name, p in own.model.named_parameters()}
    functions = PerExampleClipping.sum, PoissonSampling.batches, dp_sgd.add_gaussian_noise
    state = torch.get_rng_state()
    audit_step(own, fixed())
    assert all(torch.equal(before[name], p) for name, p in own.model.named_parameters())
    assert functions == (PerExampleClipping.sum, PoissonSampling.batches, dp_sgd.add_gaussian_noise)
    assert torch.equal(state, torch.get_rng_state())
    assert "draw" not in vars(own.model)


def test_a_recorded_step_returns_what_the_company_would_send() -> None:
    """Would catch a recording that changes the step it watches: the same key gives the same residues."""
    from fedblocks.client.training import train_block

    own = step_of("moving clip")
    found = record(own, Randomness.from_seed(3), probe=True)
    before = {name: p.detach().clone() for name, p in own.model.named_parameters()}
    sent = train_block(own.model, 0, own.data, own.plan, own.companies, Randomness.from_seed(3), own.policy)
    for name, p in own.model.named_parameters():
        p.data.copy_(before[name])
    assert np.array_equal(found.residues, sent)


def test_what_is_not_kept_whole_is_still_audited_and_defects_still_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Would catch windows that miss the noise of large blocks, or sums that are compared in part."""
    from fedblocks.threat_model.epsilon import conformance

    monkeypatch.setattr(conformance, "_places", lambda size, most, randomness: np.arange(0, size, 3))
    own = step_of("correlated noise")
    assert failing(audited(own, 0)) == set()
    assert "noise variance / promised" in planted(own, "noise times .9")
    assert "noise variance / promised" in planted(
        step_of("shares of noise"), "a missing share of Skellam noise"
    )


def test_windows_lie_within_the_vector() -> None:
    """Would catch a window past the end, and places that come twice."""
    from fedblocks.threat_model.epsilon.conformance import _places

    for size, most in ((1000, 640), (1003, 64), (100_000, 6400)):
        places = _places(size, most, Randomness.from_seed(size))
        assert isinstance(places, np.ndarray)
        assert len(set(places.tolist())) == len(places) == most
        assert places.min() >= 0
        assert places.max() < size
    assert _places(10, 10, Randomness.from_seed(0)) == slice(None)


def test_an_audit_without_any_example_says_what_it_did_not_test() -> None:
    """Would catch a silent pass: batches stayed empty, so nothing is known of the clip."""
    own = replace(step_of("Poisson batches"), data=step_of("Poisson batches").data[:0])
    with pytest.raises(InputError, match="at least one example"):
        audit_step(own, fixed())
    few = replace(own, data=step_of("Poisson batches").data[:1], plan=own.plan.model_copy(
        update={"training": own.plan.training.model_copy(update={"sampling_rate": 1e-6})}
    ))  # fmt: skip
    audit = audit_step(few, fixed())
    assert set(audit.untested) == {"sensitivity / clip"}
    assert "sensitivity / clip" not in {check.name for check in audit.checks}


def test_a_plan_without_noise_has_nothing_to_conform_to() -> None:
    """Would catch a step without noise that is audited against a promise of none, and holds."""
    own = step_of("Poisson batches")
    with pytest.raises(InputError, match="noise_multiplier"):
        audit_step(replace(own, plan=own.plan.changed(noise_multiplier=0.0)), fixed())


def test_a_tape_plays_again_what_it_has_given_and_goes_on() -> None:
    """Oracle: the stream itself. Would catch a copy that those who draw can change, and one that ends too early."""
    tape, plain = Tape(Randomness.from_seed(1)), Randomness.from_seed(1)
    first = plain.normal(4), plain.uniform(3), plain.integers(5, 6)
    with tape.kept():
        given = tape.normal(4)
        given *= 0
        tape.rewind()
        assert np.array_equal(tape.normal(4), first[0])
        assert np.array_equal(tape.uniform(3), first[1])
        tape.rewind()
        tape.normal(4)
        assert np.array_equal(tape.uniform(3), first[1])
    assert np.array_equal(tape.integers(5, 6), first[2])


def test_a_defect_that_no_longer_fits_the_code_says_so() -> None:
    """Would catch a mutant that mutates nothing, and so is never found for a reason of its own."""
    with pytest.raises(InputError, match="expected it once"):
        mutated(dp_sgd.clip_to_norm, "no such text", "")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, small: Any) -> Any:
    """A prepared run of three companies with a trained round."""
    from fedblocks.experiments.simulation.preparation import prepare
    from fedblocks.threat_model.subject import Subject

    settings = small.model_copy(update={"companies": small.companies.model_copy(update={"count": 3})})
    run = prepare(settings, tmp_path_factory.mktemp("runs") / "run")
    return Subject.of(run, block=0), run


def test_every_company_of_a_run_is_tested_and_nothing_refuted(demo: Any) -> None:
    """Would catch a company, or masks, left out; and results that no schema takes."""
    subject, _ = demo
    assert attack("conformance").applies(subject) is None
    results = list(ATTACK.run(subject))
    assert {r.outcome for r in results} == {"held"}
    assert {r.company for r in results} == {None, *subject.private}
    assert {r.view for r in results} == {"own step", "masks", "steps of all companies"}
    assert len({r.key for r in results}) == len(results)
    assert {r.statistic for r in results} >= {"sensitivity / clip", "noise variance / promised"}


def test_a_defect_in_the_code_refutes_a_run(demo: Any) -> None:
    """Would catch an attack that tests copies of the step: the verdict's numbers and the company's name are there."""
    subject, _ = demo
    with DEFECTS["noise times .9"].planted():
        refuted = [r for r in ATTACK.run(subject) if r.outcome == "refuted"]
    assert {r.company for r in refuted} == set(subject.private)
    assert any("company-0: noise variance / promised: 0.8" in r.reason for r in refuted)


def test_companies_that_time_does_not_reach_are_inconclusive(demo: Any) -> None:
    """Would catch an audit that ran out of time and looks passed."""
    from fedblocks.threat_model.clock import Clock

    subject, _ = demo
    results = [r for r in ATTACK.run(subject.within(Clock(0.0))) if r.company is not None]
    assert {r.outcome for r in results} == {"inconclusive"}
    assert all("time" in r.reason for r in results)
