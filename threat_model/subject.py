"""What is audited: a run as its attackers and the scoring need it, each block's model at the state that was released.

The mechanism attacked is the run's own object, built from its plan by the code that the companies run; nothing here
copies one of its numbers.
"""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import nn

from ..blocks import BlockObjective, Denoiser, build_model, merge
from ..blocks.examples import Examples
from ..errors import RunError
from ..privacy.dp_sgd import DPSGD
from ..privacy.secure_step import SecureStep
from ..protocol.release import block_size, mechanism, secure_step
from ..server.assignment import Task, assign
from ..server.checkpoint import Checkpoint
from ..server.run_folder import RunFolder
from ..settings import Plan, read_simulation
from .block_problem import BlockProblem
from .clock import Clock
from .transcript import Transcript


@dataclass(frozen=True)
class Subject:
    """One run under audit; `clock` is that of the attack at work, `seed` all that its randomness comes from.

    `blocks`: which blocks are attacked. `private`: each company's own examples, which the simulator holds: the
    victim's side of an experiment and the scoring read them, an attack never. Where cohorts are drawn, of those that
    have been drawn so far: of the others nothing was released. `names`: of all companies of the run, in order.
    `public`: what everybody knows. `transcript`: every sum that the run has opened; none where it has not kept them.
    """

    run: RunFolder
    plan: Plan
    checkpoint: Checkpoint
    private: dict[str, Examples]
    names: tuple[str, ...]
    public: Examples
    seed: int
    clock: Clock
    blocks: tuple[int, ...]
    workers: int = 2
    transcript: Transcript | None = None
    _models: dict[str, Denoiser] = field(default_factory=dict, repr=False, compare=False)
    _problems: dict[int, BlockProblem] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(
        cls, run: RunFolder, *, seed: int = 0, clock: Clock | None = None, block: int | None = None
    ) -> Subject:
        """A simulated run at its last checkpoint; `block` none means all.

        Raises:
            RunError: it is no simulation, a file of it is missing or damaged (those of its transcript, where it has
                one, too), or no company's home is there.
        """
        read_simulation(run.path)  # names a run that is none, and one of an earlier version
        plan = run.plan()
        homes = run.homes()
        if not homes:
            raise RunError(f"{run.companies}: no company's home is there; put them back from a copy")
        checkpoint = Checkpoint.load(run.checkpoints)
        names = tuple(home.name for home in homes)
        rounds = range(1, max(checkpoint.round, 1) + 1)
        took_part = {name for round_ in rounds for name in cohort_of(plan, round_, names)}
        return cls(
            run=run,
            transcript=Transcript.of(run) if Transcript.kept(run) else None,
            plan=plan,
            checkpoint=checkpoint,
            private={h.name: Examples.load(h / "data.npz") for h in homes if h.name in took_part},
            names=names,
            public=Examples.load(run.path / "public_train.npz"),
            seed=seed,
            clock=clock or Clock(float("inf")),
            blocks=plan.trained_blocks if block is None else (block,),
        )

    def within(self, clock: Clock) -> Subject:
        return replace(self, clock=clock)

    @property
    def model(self) -> Denoiser:
        """The released model on the CPU in float32; it is shared, so attackers copy it before they change it."""
        if "released" not in self._models:
            model = build_model(self.plan.model, self.plan.noise)
            merge(model, self.checkpoint.model.shared, *self.checkpoint.model.blocks)
            self._models["released"] = model.eval()
        return self._models["released"]

    def in_training(self, block: int) -> tuple[Denoiser, nn.Module]:
        """The released model for one training of a block, with what is trained of it, on the CPU.

        It is one object, brought back to the released state: a copy for every experiment took a third of its time.
        """
        if "in training" not in self._models:
            self._models["in training"] = copy.deepcopy(self.model)
        model = self._models["in training"]
        vars(model).pop("draw", None)  # of an experiment that has recorded its draws
        with torch.no_grad():
            torch._foreach_copy_(list(model.state_dict().values()), list(self.model.state_dict().values()))
        model.zero_grad(set_to_none=True)
        return model, model.freeze_all_but(block, self.plan.training.interface).train()

    @cached_property
    def objective(self) -> BlockObjective:
        return BlockObjective(weight=self.plan.noise.weight)

    def cohort(self, block: int) -> tuple[str, ...]:
        """The companies of the last round that trained this block; those of the last round where none did."""
        last = max(self.checkpoint.round, 1)
        for round_ in range(last, 0, -1):
            for task in self.tasks(round_):
                if task.block == block:
                    return task.companies
        return cohort_of(self.plan, last, self.names)

    def tasks(self, round_: int) -> list[Task]:
        """Who trains what in a round of the run."""
        return assign(round_, cohort_of(self.plan, round_, self.names), self.plan)

    def trainings(self, block: int, rounds: int) -> int:
        """How often any one company trains this block in the first `rounds` rounds, at most."""
        tasks = (task for round_ in range(1, rounds + 1) for task in self.tasks(round_))
        of = Counter(name for task in tasks if task.block == block for name in task.companies)
        return max(of.values(), default=0)

    def mechanism(self, block: int) -> DPSGD | SecureStep:
        """What one company of the block's cohort does to its gradients before anyone sees them.

        Without FedProx's pull, a function of what has been noised: a sum in which all steps weigh the same tells most
        of an example that is in each of them.
        """
        if self.plan.secure_step:
            size = block_size(self.model, block, self.plan.training)
            return secure_step(self.plan, size, len(self.cohort(block)))
        return replace(mechanism(self.plan), proximal=0.0)

    def problem(self, block: int) -> BlockProblem:
        """The reconstruction problem of a block, in the state that was released; made once."""
        if block not in self._problems:
            training = self.plan.training
            self._problems[block] = BlockProblem(
                self.model, block, self.objective, self.plan.model,
                draws=training.noise_draws, interface=training.interface,
            )  # fmt: skip
        return self._problems[block]

    def victims(self, count: int, *names: object) -> Examples:
        """At most `count` examples of the companies, all companies alike; different names give different ones."""
        return self.victims_of(self.private, count, *names)[0]

    def victims_of(
        self, companies: Collection[str], count: int, *names: object
    ) -> tuple[Examples, list[str]]:
        """As `victims`, of these companies alone; and whose each of them is."""
        parts = list(self.private.values())
        pool = Examples(torch.cat([p.inputs for p in parts]), torch.cat([p.targets for p in parts]))
        owners = [name for name, own in self.private.items() for _ in range(len(own))]
        order = torch.randperm(len(pool), generator=self.generator("victims", *names)).tolist()
        chosen = [i for i in order if owners[i] in companies][:count]
        return pool[torch.tensor(chosen, dtype=torch.int64)], [owners[i] for i in chosen]

    def generator(self, *names: object) -> torch.Generator:
        """Fresh for every name and the same in every audit with this seed: experiments are repeatable."""
        digest = hash_of("/".join(str(name) for name in (self.seed, *names)))
        return torch.Generator().manual_seed(digest)


def cohort_of(plan: Plan, round_: int, names: tuple[str, ...]) -> tuple[str, ...]:
    """The round's companies, in order; `names`: of all companies of the run."""
    return names if plan.drawn is None else plan.drawn.cohort(round_, names)


def hash_of(text: str) -> int:
    """A seed of 63 bits from a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
