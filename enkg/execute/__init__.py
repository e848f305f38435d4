"""Adapters: how a simulator is run."""

from enkg.execute.cache import Cached
from enkg.execute.function import Function, as_evaluator, opened
from enkg.execute.program import Program
from enkg.execute.umbridge import UMBridge

__all__ = ["Cached", "Function", "Program", "UMBridge", "as_evaluator", "opened"]
