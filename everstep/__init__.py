"""Everstep: training that never loses a step."""

__version__ = "0.1.0"
