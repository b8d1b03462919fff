"""Groups of records as the unit of privacy: a whole group moves a sum by the clip, counts once, and is never cut."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clipping_loop import clipped_sum, flat, gradients_one_by_one
from support.private_training import FAMILIES, Setting, setting

from fedblocks.blocks.examples import Examples, Groups
from fedblocks.client.batches import fixed_losses
from fedblocks.client.data.findings import Findings
from fedblocks.client.data.group_keys import GroupKeys, folded
from fedblocks.client.held_out import held_out_places, split
from fedblocks.client.units import drawn_records, groups_of, units
from fedblocks.errors import ProtocolError
from fedblocks.privacy.clipping import PerExampleClipping
from fedblocks.privacy.randomness import Randomness
from fedblocks.privacy.source import CryptographicSource
from fedblocks.protocol.evaluation import mean_contribution
from fedblocks.protocol.release import codec

COLUMN, RECORDS = "author", 3
GROUPED = (f"training.group={COLUMN}", f"training.records_per_group={RECORDS}")


def grouped(names: list[str]) -> Groups:
    keys = GroupKeys(COLUMN)
    for name in names:
        digest = keys.digest(name)
        assert digest is not None
        keys.add(digest)
    return keys.groups(Findings("test"))


def of_groups(data: Examples, sizes: list[int]) -> Examples:
    """The first records, in groups of these sizes."""
    names = [f"group {i}" for i, size in enumerate(sizes) for _ in range(size)]
    some = data[torch.arange(len(names))]
    return Examples(some.inputs, some.targets, grouped(names))


# A group's part of the sum.


@pytest.mark.parametrize("family", FAMILIES)
def test_one_group_moves_the_clipped_sum_by_at_most_the_clip(family: str) -> None:
    """Neighbouring data: with and without one whole group of several records, whose gradients are far above the clip.

    Catches records that are clipped one by one and added up, which would move it by RECORDS clips.
    """
    made = setting(family, *GROUPED, "privacy.max_grad_norm=1e-3")
    losses = fixed_losses(
        made.model, 0, made.plan, made.policy.data, 6, CryptographicSource(Randomness.from_seed(1))
    )
    active = made.model.freeze_all_but(0, made.plan.training.interface)
    draws = made.plan.training.noise_draws

    def total(places: torch.Tensor) -> torch.Tensor:
        with PerExampleClipping(active, max_grad_norm=1e-3, examples_at_once=8) as clipping:
            of = lambda part: losses(places[part])  # noqa: E731
            found = clipping.sum(of, examples=len(places), draws=draws, records=RECORDS)
        assert found.within == 0  # the bound is what holds them
        return found.vector

    whole, without = total(torch.arange(6)), total(torch.arange(5))
    assert 0.9e-3 < float((whole - without).norm()) <= 1e-3


def test_a_groups_gradient_is_the_mean_of_its_records_clipped_once() -> None:
    """Against autograd, group by group: catches rows of one group that are taken for another's."""
    made = setting("tabular", *GROUPED)
    losses = fixed_losses(
        made.model, 0, made.plan, made.policy.data, 4, CryptographicSource(Randomness.from_seed(1))
    )
    active = made.model.freeze_all_but(0, made.plan.training.interface)
    clip, draws = 0.05, made.plan.training.noise_draws
    gradients = gradients_one_by_one(active, losses, examples=4, draws=RECORDS * draws)
    with PerExampleClipping(active, max_grad_norm=clip, examples_at_once=4) as clipping:
        summed = clipping.sum(losses, examples=4, draws=draws, records=RECORDS)
    expected = clipped_sum(gradients, flat(clip))
    # As a whole: single values near zero are rounded by more than a share of themselves.
    assert float((summed.vector - expected).norm()) <= 1e-3 * float(expected.norm())


def clean_sum(made: Setting, data: Examples) -> float:
    """The norm of a company's sum of clipped gradients, in clips: its update without noise, as it leaves it."""
    t = made.plan.training
    residues = made.train(Randomness.from_seed(3), data)
    update = codec(made.plan, 5).decode_sum(residues)
    return (
        float(np.linalg.norm(update))
        * t.expected_batch_size
        / t.local_learning_rate
        / made.plan.max_grad_norm
    )


def test_a_company_sends_one_clip_for_a_group_of_many_records_and_many_for_many_records() -> None:
    """By the company's own training, beside an empty data set: catches records that count as examples."""
    made = setting("vit", *GROUPED, "privacy.max_grad_norm=0.01", "training.interface=false", examples=60)
    made = Setting(made.plan.changed(noise_multiplier=0.0), made.model, made.data, made.policy)
    of_records = Setting(
        made.plan.changed(training=made.plan.training.model_dump() | {"group": None, "records_per_group": 1}),
        made.model, made.data, made.policy,
    )  # fmt: skip
    same = made.data[torch.zeros(60, dtype=torch.long)]
    one = Examples(same.inputs, same.targets, grouped(["Anna"] * 60))
    many = Examples(same.inputs, same.targets, grouped([f"{i}" for i in range(60)]))
    assert 0.5 < clean_sum(made, one) <= 1.0
    assert clean_sum(made, many) > 5
    assert clean_sum(of_records, one) > 5


def test_a_plan_of_groups_refuses_data_that_name_none_or_others() -> None:
    made = setting("tabular", *GROUPED)
    other = Examples(
        made.data.inputs, made.data.targets, Groups("house", torch.zeros(40, 4, dtype=torch.int64))
    )
    for data in (made.data, other):
        with pytest.raises(ProtocolError, match="group by column 'author'") as refused:
            made.train(Randomness.from_seed(0), data)
        assert refused.value.code == "no_data"
    assert groups_of(setting("tabular").plan, other) is None


# Which records a group shows.


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    records=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_a_group_shows_its_own_records_as_evenly_as_they_divide(
    sizes: list[int], records: int, seed: int
) -> None:
    """Catches another group's record, one shown twice while another waits, and a group that shows too few."""
    names = [f"g{i}" for i, size in enumerate(sizes) for _ in range(size)]
    order = np.random.default_rng(seed).permutation(len(names))
    groups = grouped([names[i] for i in order])
    assert len(groups) == len(sizes)
    assert sorted(groups.sizes.tolist()) == sorted(sizes)
    numbers = torch.from_numpy(np.random.default_rng(seed).permutation(len(sizes)))
    found = drawn_records(groups, numbers, records, Randomness.from_seed(seed)).view(len(sizes), records)
    for number, shown in zip(numbers.tolist(), found.tolist(), strict=True):
        assert set(groups.numbers[shown].tolist()) == {number}
        own = np.flatnonzero(groups.numbers == number)
        times = [shown.count(record) for record in own.tolist()]
        assert sum(times) == records
        assert max(times) - min(times) <= 1


def test_every_record_of_a_group_is_shown_alike_often() -> None:
    """And whoever else is there: the law of what Anna shows does not depend on Ben."""
    for others in ([], ["Ben"] * 7):
        groups = grouped([*others, *["Anna"] * 4])
        anna = int(groups.numbers[-1])
        randomness, shown = Randomness.from_seed(5), np.zeros(4)
        for _ in range(2_000):
            for place in drawn_records(groups, torch.tensor([anna]), 1, randomness).tolist():
                shown[place - len(others)] += 1
        assert np.abs(shown / 2_000 - 0.25).max() < 0.04  # 4 deviations


# What counts, and what is held out.


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=30),
    share=st.floats(0.05, 0.5),
    seed=st.integers(0, 99),
)
def test_the_split_never_cuts_a_group_and_depends_on_it_alone(
    sizes: list[int], share: float, seed: int
) -> None:
    """Catches a group on both sides, and one that changes sides when another one, or a record of its own, joins."""
    names = [f"g{i}" for i, size in enumerate(sizes) for _ in range(size)]
    values = torch.randn(len(names), 3, generator=torch.Generator().manual_seed(seed))
    data = Examples(values, torch.zeros(len(names), dtype=torch.int64), grouped(names))
    key = seed.to_bytes(32, "big")
    trained, out = split(data, share, key)
    assert trained.groups is not None
    assert out.groups is not None
    both = set(map(bytes, trained.groups.keys.numpy())) & set(map(bytes, out.groups.keys.numpy()))
    assert not both
    assert len(trained) + len(out) == len(data)
    more = [*names, "g0", "another"]
    larger = Examples(torch.randn(len(more), 3), torch.zeros(len(more), dtype=torch.int64), grouped(more))
    places = held_out_places(data, share, key)
    again = held_out_places(larger, share, key)
    assert (again[: len(names)] == places).all()
    assert again[len(names)] == places[0]


def test_the_split_holds_out_about_the_share_of_groups() -> None:
    names = [f"g{i}" for i in range(2_000)]
    data = Examples(torch.zeros(2_000, 1), torch.zeros(2_000, dtype=torch.int64), grouped(names))
    assert abs(held_out_places(data, 0.2, b"k" * 32).mean() - 0.2) < 0.04


def test_units_are_groups_where_the_plan_says_so() -> None:
    made = setting("tabular", *GROUPED)
    data = of_groups(made.data, [1, 30, 5])
    assert units(made.plan, data) == 3
    assert units(setting("tabular").plan, data) == 36


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 2), st.booleans()), min_size=1, max_size=20)
)
def test_a_groups_part_of_an_evaluation_is_no_longer_than_a_records(
    parts: list[tuple[int, int, bool]],
) -> None:
    """Catches a sum in place of a mean, and rounding past the bound; and any order gives the same bits."""
    vectors = []
    for level, cell, _ in parts:
        vector = np.zeros(6)
        vector[cell], vector[3 + cell] = level / 2**20, 1.0
        vectors.append(vector)
    found = mean_contribution(vectors)
    assert np.linalg.norm(found) <= max(map(np.linalg.norm, vectors))
    assert (found == mean_contribution(vectors[::-1])).all()
    assert (mean_contribution(vectors[:1]) == vectors[0]).all()


def test_groups_are_kept_with_the_examples_and_are_part_of_their_digest(tmp_path: Path) -> None:
    """Catches a file that forgets whose its records are: they would be examples of their own then."""
    data = Examples(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), grouped(["a", "b", "a"]))
    data.save(tmp_path / "data.npz")
    again = Examples.load(tmp_path / "data.npz")
    assert again.groups is not None
    assert (again.groups.column, again.digest) == (COLUMN, data.digest)
    assert again.groups.numbers.tolist() == data.groups.numbers.tolist()  # type: ignore[union-attr]
    regrouped = Examples(data.inputs, data.targets, grouped(["a", "b", "b"]))
    assert len({data.digest, regrouped.digest, Examples(data.inputs, data.targets).digest}) == 3


# Which values name one group.


@pytest.mark.parametrize(
    "other",
    [
        "zoë müller ", "ZOË MÜLLER", "  Zoë\tMüller\n", "Zoë\u00a0Müller", "Zoë\u200b Müller", "Zoë Mül\u00adler",
        unicodedata.normalize("NFD", "Zoë Müller"), "Ｚoë Müller", "Zo\u200be\u0308 Müller", "Zoë  Müller",
    ],
)  # fmt: skip
def test_near_duplicates_name_one_group(other: str) -> None:
    """An attack: one person under many spellings would have as many clips."""
    assert len(grouped(["Zoë Müller", other])) == 1


def test_what_differs_in_more_names_several_groups() -> None:
    """Catches folding that makes one unit of several people: 007 is not 7, and accents tell names apart."""
    names = [
        "007",
        "7",
        "Zoe Müller",
        "Zoë Müller",
        "Zoë Muller",
        "ZoëMüller",
        "а",
        "a",
    ]  # the first a is Cyrillic
    assert len(grouped(names)) == len(names)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=12))
def test_folding_what_is_folded_changes_nothing(text: str) -> None:
    assert folded(folded(text)) == folded(text)
    assert folded(text.upper().lower()) == folded(text.upper())


def test_values_of_other_kinds_are_names_or_refused() -> None:
    keys = GroupKeys(COLUMN)
    assert keys.digest(7) == keys.digest(7.0) == keys.digest("7") == keys.digest(np.int64(7))
    assert keys.digest(True) == keys.digest("TRUE") != keys.digest(1)
    for missing in (None, float("nan"), "", " \t", "\u200b\u00ad"):
        assert keys.digest(missing) is None
    with pytest.raises(TypeError):
        keys.digest({"name": "Anna"})
