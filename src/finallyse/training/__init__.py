"""Training: six trainers by their published names, and the engine that runs them."""

from finallyse.registry import Registry

trainers_registry = Registry("trainer")

# The module registers its trainers in `trainers_registry`, which must be defined first.
from finallyse.training import trainers  # noqa: E402, F401

__all__ = ["trainers_registry"]
