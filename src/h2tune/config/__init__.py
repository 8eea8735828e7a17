"""What a YAML file may say, and how it is read."""

from h2tune.config.conflicts import Agreeing, Conflict, checked
from h2tune.config.mistakes import in_lines, in_words
from h2tune.config.reading import (
    SOURCES,
    ConfigError,
    load_config,
    load_past_mistakes,
    meant_path,
    parse_config,
    read_yaml,
)
from h2tune.config.schema import (
    Budget,
    Cache,
    ClientConfig,
    Evaluation,
    Experiment,
    MethodChanges,
    Name,
    NetworkConfig,
    Privacy,
    PublicQuestions,
    RowPrivacy,
    SecureAggregation,
    Training,
    Wire,
)

__all__ = [
    "SOURCES",
    "Agreeing",
    "Budget",
    "Cache",
    "ClientConfig",
    "ConfigError",
    "Conflict",
    "Evaluation",
    "Experiment",
    "MethodChanges",
    "Name",
    "NetworkConfig",
    "Privacy",
    "PublicQuestions",
    "RowPrivacy",
    "SecureAggregation",
    "Training",
    "Wire",
    "checked",
    "in_lines",
    "in_words",
    "load_config",
    "load_past_mistakes",
    "meant_path",
    "parse_config",
    "read_yaml",
]
