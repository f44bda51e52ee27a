"""Disposable sandboxes: commands run under bubblewrap and see programs, the buckets mounted inside, and nothing else."""

from sluicefs.sandbox.box import ExecResult, Sandbox

__all__ = ["ExecResult", "Sandbox"]
