"""Real processes over the data plane give the simulation's model bit for bit, where companies may have seeds.

Invented companies (`fedblocks prepare`) have them; an agent of a real company refuses to start with one, since
whoever knows a seed can subtract the noise.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from support.fork_server import fork_server
from support.processes import federation
from support.seeded import seeded_company

from fedblocks.blocks import digest
from fedblocks.experiments.simulation.preparation import prepare
from fedblocks.experiments.simulation.simulate import epsilon_by_company, simulate
from fedblocks.server.checkpoint import Checkpoint
from fedblocks.server.run_folder import RunFolder
from fedblocks.settings import SimulationSettings


def final_digest(run: RunFolder) -> bytes:
    model = Checkpoint.load(run.checkpoints).model
    return digest(model.shared, *model.blocks)


def test_seeded_companies_in_processes_of_their_own_give_the_simulations_bits(
    small: SimulationSettings, tmp_path: Path
) -> None:
    """A process a company, and the coordinator's command. Would catch whatever a wire, a process or a retry changes
    in a sum; and an agent that takes a seed."""
    with federation(small, tmp_path, rounds=3) as made:
        count = small.companies.model_copy(update={"count": 3})
        training = small.training.model_copy(update={"rounds": 3, "evaluate_every": 1000})
        alike = small.model_copy(update={"companies": count, "training": training})
        simulated = prepare(alike, tmp_path / "simulated" / made.run.path.name)
        for home in made.homes:
            shutil.copy(simulated.companies / home.name / "policy.toml", home / "policy.toml")
        refused = made.agent(0)
        assert refused.end() == 3
        assert "simulation_seed is set" in refused.said

        serve = made.serve()
        spawn = fork_server()
        companies = [
            spawn.Process(target=seeded_company, args=(made.run.path, i, 3), daemon=True) for i in range(3)
        ]
        try:
            for company in companies:
                company.start()
            assert serve.end(90) == 0, serve.said
            for company in companies:
                company.join(30)
            assert [company.exitcode for company in companies] == [0] * 3
        finally:
            for company in companies:
                company.kill()
        simulate(simulated)
        assert final_digest(made.run) == final_digest(simulated)
        assert epsilon_by_company(made.run) == epsilon_by_company(simulated)
