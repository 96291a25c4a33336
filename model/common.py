"""The name under which learners written for GEM or for the original import the networks."""

from model.networks import MLP, ResNet18
from model.networks import xavier_ as Xavier

__all__ = ["MLP", "ResNet18", "Xavier"]
