"""What is set, validated before anything is spent; a file a part.

`training` and `privacy` (and the model and its noise, from `blocks`) are the parts that a company learns of, as the
`plan` that it is offered; `run` is what a coordinator has, `simulation` what a run with invented companies adds;
`load` validates TOML, `files` keeps a run's settings in its folder.
"""

from ..blocks.families import ModelSettings
from ..blocks.settings import (
    DataKind,
    NoiseSettings,
    TransformerSettings,
)
from .contract import is_zone
from .drawn import DrawnCohorts
from .evaluation import EvaluationSettings
from .files import (
    is_simulation,
    read_settings,
    read_simulation,
    read_tables,
    refuse_injected_failures,
    without_protocol,
    write_settings,
    write_simulation,
)
from .load import lay_over, parsed_toml, read_text, validated, validated_json
from .plan import Plan
from .privacy import (
    LEAST_NOISE,
    MOST_COMPANIES,
    MOST_NOISE,
    MechanismSettings,
    PrivacySettings,
    SecureAggregationSettings,
)
from .run import (
    CohortSettings,
    DataSource,
    GuardSettings,
    InfluenceSettings,
    PublicDataSettings,
    RunSettings,
    groups_of,
)
from .simulation import (
    AuditSettings,
    CompanySettings,
    DataSettings,
    DropoutSettings,
    Engine,
    SimulationSettings,
    Transport,
)
from .training import PretrainingSettings, TrainingSettings

__all__ = [
    "AuditSettings",
    "CohortSettings",
    "CompanySettings",
    "DataKind",
    "DataSettings",
    "DataSource",
    "DrawnCohorts",
    "DropoutSettings",
    "Engine",
    "EvaluationSettings",
    "GuardSettings",
    "InfluenceSettings",
    "LEAST_NOISE",
    "MOST_COMPANIES",
    "MOST_NOISE",
    "MechanismSettings",
    "ModelSettings",
    "NoiseSettings",
    "Plan",
    "PretrainingSettings",
    "PrivacySettings",
    "PublicDataSettings",
    "RunSettings",
    "SecureAggregationSettings",
    "SimulationSettings",
    "TrainingSettings",
    "TransformerSettings",
    "Transport",
    "groups_of",
    "is_simulation",
    "is_zone",
    "lay_over",
    "parsed_toml",
    "read_settings",
    "read_simulation",
    "read_tables",
    "read_text",
    "refuse_injected_failures",
    "validated",
    "validated_json",
    "without_protocol",
    "write_settings",
    "write_simulation",
]
