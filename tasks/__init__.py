"""What is learned: task files, the variants of MNIST, and `save`, which makes a task file of anybody's arrays."""

from tasks.pack import save

__all__ = ["save"]
