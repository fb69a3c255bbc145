"""Model generations: a folder each, whose `MODE` declares what differs, and MODES, the table from --mode to it."""

from modes import glm, glm2, glm3
from modes.mode import Mode

__all__ = ["MODES", "Mode"]

MODES = {mode.name: mode for mode in (glm.MODE, glm2.MODE, glm3.MODE)}
