"""What a YAML file may say, and how it is read."""

from h2tune.config.mistakes import in_lines, in_words
from h2tune.config.reading import ConfigError, load_config, load_past_mistakes, parse_config, read_yaml, without
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
    "Budget",
    "Cache",
    "ClientConfig",
    "ConfigError",
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
    "in_lines",
    "in_words",
    "load_config",
    "load_past_mistakes",
    "parse_config",
    "read_yaml",
    "without",
]
