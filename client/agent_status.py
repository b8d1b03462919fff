"""How a company's agent stands, for whoever asks from another process."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from ..errors import ProtocolError
from ..privacy.accounting import finite
from .company import Company
from .daemon import STATUS_FILE
from .endpoint import exclusive_agent


def status_of(company: Company) -> dict[str, Any]:
    """How the company's agent stands, and its ledger."""
    try:
        with exclusive_agent(company.home):
            running = False
    except ProtocolError:
        running = True
    told: dict[str, Any] = {}
    if running:
        with suppress(OSError, ValueError):
            told = json.loads((company.home / STATUS_FILE).read_bytes())
    with company.ledger() as ledger:
        spent, joined = ledger.spent(), company.joined.load(company.name, ledger)
    return {
        "company": company.name,
        "running": running,
        "pid": told.get("pid"),
        "started": told.get("started"),
        "connected_since": told.get("connected_since"),
        "last_message": told.get("last_message"),
        "fault": told.get("fault"),
        "runs_done": told.get("runs_done", 0),
        "run": json.loads(joined.plan)["run"] if joined is not None else None,
        "pending": sum(each.decision == "pending" for each in company.requests.all()),
        "epsilon_spent": finite(spent.epsilon),
        "epsilon_ceiling": company.policy.epsilon_ceiling,
    }
