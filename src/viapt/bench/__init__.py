"""The laboratory: methods compared on tasks, with equal budgets, and every number with its protocol."""

from __future__ import annotations
