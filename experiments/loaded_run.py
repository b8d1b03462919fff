"""A run as a notebook wants it: its metrics and ledgers as tables, its model ready to predict, its audit as objects.

run = load_run("runs/digits-...")
run.frame().plot(x="round", y="accuracy_heldout")
run.predict("new.csv").columns["label"]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..blocks import Denoiser, metric_of
from ..blocks.model_file import ModelCard, model_of
from ..client.data.findings import Findings
from ..client.decisions import LEDGER_FILE
from ..client.prediction import Predictions, Wanted, predict
from ..errors import RunError
from ..privacy.ledger_file import read_ledger
from ..server.models import card_of
from ..server.representation import Representation
from ..server.run_folder import RunFolder
from ..threat_model.audit_file import Audit, read_audit_file

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Run(RunFolder):
    """A run's folder, with all that can be read of it; nothing here changes it.

    `settings()`, `plan()`, `metrics()` and `read_json("result.json")` are the folder's own.
    """

    def frame(self) -> pd.DataFrame:
        """A row for each round, 0 the public model: how it ended, how many companies were summed and were absent,
        seconds, the mean norm of its updates, and the family's metric on each set of examples after the whole chain
        (`accuracy_heldout`) and after each block (`accuracy_heldout_0`), where it was measured. Needs pandas."""
        import pandas as pd

        metric = metric_of(self.plan().model).name
        return pd.DataFrame([of_round(row, metric) for row in self.metrics()])

    def model(self, round_: int | None = None) -> tuple[Denoiser, ModelCard]:
        """The model after a round (none: the last) on the CPU, and what is to be said of it.

        Raises: RunError where its checkpoint is gone.
        """
        checkpoint, card = card_of(self, round_)
        return model_of(checkpoint.model, card), card

    def predict(self, source: str | None = None, *, round_: int | None = None, **wanted: Any) -> Predictions:
        """As `fedblocks predict`: `source` is a file or folder of inputs; `wanted`: `client.prediction.Wanted`.

        Raises: InputError for inputs that do not fit the model, or what a model of its kind cannot be asked.
        """
        model, card = self.model(round_)
        return predict(model, card, Wanted(source=source, **wanted), Findings(source or ""))

    def ledgers(self) -> pd.DataFrame:
        """A row for each release of each simulated company, as its own ledger has it. Needs pandas.

        Raises: RunError for a run of real companies, whose ledgers lie with them; LedgerError for a damaged one.
        """
        import pandas as pd

        homes = [home for home in self.homes() if (home / LEDGER_FILE).is_file()]
        if not homes:
            raise RunError(f"{self.path}: no ledger lies here; those of real companies lie with them")
        rows = [row for home in homes for row in read_ledger(home / LEDGER_FILE).rows]
        return pd.DataFrame([asdict(row) | {"event": row.event.to_json()} for row in rows])

    def audit(self) -> Audit | None:
        """What `audit.json` holds; none where the run has not been audited. Raises: RunError for a damaged one."""
        return read_audit_file(self)

    def representation(self) -> Representation | None:
        """What a pretrained model could do on public data before the run and can now; none of other families.

        Raises: RunError for a damaged file.
        """
        return Representation.read(self)


def of_round(row: Mapping[str, Any], metric: str) -> dict[str, Any]:
    norms = [task["update_norm"] for task in row.get("tasks", ()) if task.get("update_norm") is not None]
    found = {
        "round": row["round"],
        "status": row.get("status", ""),
        "companies": len(row.get("survivors", ())),
        "absent": len(row.get("absent", ())),
        "seconds": row.get("seconds"),
        "update_norm": sum(norms) / len(norms) if norms else None,
    }
    for name, chain in row.get("quality", {}).items():
        found[f"{metric}_{name}"] = chain[-1]
        found |= {f"{metric}_{name}_{block}": value for block, value in enumerate(chain)}
    return found
