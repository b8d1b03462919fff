"""The attacker's forward model against what a company computes, for every family."""

from __future__ import annotations

import pytest
import torch
from support.families import Variant

from fedblocks.blocks import BlockObjective, Draw
from fedblocks.blocks.examples import Examples
from fedblocks.privacy.clipping import PerExampleClipping
from fedblocks.threat_model.block_problem import BlockProblem


def problem_of(variant: Variant, block: int, draws: int = 2, interface: bool = False) -> BlockProblem:
    objective = BlockObjective(weight="edm")
    return BlockProblem(variant.model(), block, objective, variant.settings, draws=draws, interface=interface)


@pytest.mark.parametrize("interface", [True, False])
def test_its_gradients_are_those_that_a_company_sums(variant: Variant, interface: bool) -> None:
    """Oracle: the product's own book-keeping. Would catch an attack on a gradient that nobody computes: another order
    of parameters, a block's prefix left out, draws averaged wrongly."""
    block, draws = variant.settings.blocks - 1, 2
    problem = problem_of(variant, block, draws, interface)
    examples = Examples(*variant.examples(3))
    values = problem.sample(problem.values_of(examples), torch.Generator().manual_seed(0))
    net = variant.model().double()
    active = net.freeze_all_but(block, interface)
    inputs = examples.inputs.double() if examples.inputs.is_floating_point() else examples.inputs
    targets = examples.targets.double() if examples.targets.is_floating_point() else examples.targets
    level = values["level"] if problem.masked else values["level"].exp()

    def losses(places: torch.Tensor) -> torch.Tensor:
        context = net.context(block, inputs[places])
        drawn = Draw(level[places].flatten(), values["noise"][places].flatten(0, 1))
        return problem.objective.at(net, block, context, targets[places].repeat_interleave(draws, 0), drawn)

    found = problem.gradient(values)
    for i in range(3):
        with PerExampleClipping(active, max_grad_norm=1e9) as clipping:
            own = clipping.sum(lambda places, i=i: losses(places + i), examples=1, draws=draws)
        torch.testing.assert_close(found[i], own.vector, rtol=1e-8, atol=1e-10 * float(own.vector.norm()))
    assert sum(t.numel() for t in problem.tensors(found[0]).values()) == problem.size


def test_the_gradient_of_one_parameter_is_its_part_of_the_whole(variant: Variant) -> None:
    problem = problem_of(variant, variant.settings.blocks - 1)
    values = problem.sample(
        problem.values_of(Examples(*variant.examples(2))), torch.Generator().manual_seed(0)
    )
    whole = problem.gradient(values)
    for name in (problem.names[0], problem.names[-1]):
        own = torch.stack([problem.tensors(each)[name].reshape(-1) for each in whole])
        torch.testing.assert_close(problem.gradient(values, of=name), own, rtol=1e-12, atol=0)


def test_its_jacobian_is_the_derivative(variant: Variant) -> None:
    """Oracle: central differences in double precision, in blocks that read the ones before them too."""
    block = variant.settings.blocks - 1
    problem = problem_of(variant, block)
    values = problem.values_of(Examples(*variant.examples(1)))
    values = problem.sample(values, torch.Generator().manual_seed(3))
    names = tuple(f.name for f in problem.fields if f.continuous and f.what != "mask")
    if problem.masked:
        names = ("level",)
    jacobian = problem.jacobian(values, names)[0]
    sizes = [values[name][0].numel() for name in names]
    assert len(jacobian) == sum(sizes)
    draw = torch.Generator().manual_seed(4)
    direction = {name: torch.randn(values[name].shape, generator=draw).double() for name in names}
    step = 1e-5
    ahead, behind = (
        problem.gradient(values | {name: values[name] + sign * step * direction[name] for name in names})[0]
        for sign in (1, -1)
    )
    flat = torch.cat([direction[name].flatten() for name in names])
    expected = (ahead - behind) / (2 * step)
    torch.testing.assert_close(
        flat @ jacobian.double(), expected, rtol=0, atol=2e-3 * float(expected.norm()) + 1e-9
    )


def test_fields_and_examples_say_the_same(variant: Variant) -> None:
    """Would catch a column of a row read as another, or a target taken for an input."""
    problem = problem_of(variant, 0)
    examples = Examples(*variant.examples(4))
    values = problem.values_of(examples)
    assert set(values) == set(problem.of_example)
    inputs, targets = problem.sides(values | {"level": torch.zeros((), dtype=torch.float64)})
    assert torch.equal(inputs.double(), examples.inputs.double())
    assert torch.equal(targets.double(), examples.targets.double())
    for name in problem.of_example:
        assert values[name].shape[1:] == problem.by_name[name].shape
