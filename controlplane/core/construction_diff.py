"""Moved to stairlib.model.construction_diff."""

from stairlib.model.construction_diff import *  # noqa: F403
