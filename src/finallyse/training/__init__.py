"""Training: six trainers by their published names, and the engine that runs them."""

from finallyse.registry import Registry

trainers_registry = Registry("trainer")

# The module files its trainers under `trainers_registry`, which therefore stands above.
from finallyse.training import trainers  # noqa: E402, F401

__all__ = ["trainers_registry"]
