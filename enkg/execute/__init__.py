"""Adapters: how a simulator is run."""

from enkg.execute.function import Function, as_evaluator

__all__ = ["Function", "as_evaluator"]
