"""What is set, validated before anything is spent; a file a part.

`model`, `noise`, `training`, `privacy` are the parts that a company learns of, as the `plan` that it is offered;
`simulation` is everything that decides a run on one machine; `load` reads presets and TOML files.
"""

from ..blocks.families import ModelSettings
from ..blocks.settings import (
    DataKind,
    NoiseSettings,
    TransformerSettings,
)
from .load import load_settings, parsed_toml, preset_names, read_text, validated, validated_json
from .plan import Plan
from .privacy import LEAST_NOISE, MOST_COMPANIES, MOST_NOISE, PrivacySettings, SecureAggregationSettings
from .simulation import (
    AuditSettings,
    CompanySettings,
    DataSettings,
    DataSource,
    DropoutSettings,
    InfluenceSettings,
    Settings,
    Transport,
    groups_of,
)
from .training import PretrainingSettings, TrainingSettings

__all__ = [
    "AuditSettings",
    "CompanySettings",
    "DataKind",
    "DataSettings",
    "DataSource",
    "DropoutSettings",
    "InfluenceSettings",
    "LEAST_NOISE",
    "MOST_COMPANIES",
    "MOST_NOISE",
    "ModelSettings",
    "NoiseSettings",
    "Plan",
    "PretrainingSettings",
    "PrivacySettings",
    "SecureAggregationSettings",
    "Settings",
    "TrainingSettings",
    "TransformerSettings",
    "Transport",
    "groups_of",
    "load_settings",
    "parsed_toml",
    "preset_names",
    "read_text",
    "validated",
    "validated_json",
]
