"""Every flag of every program, declared once: a field of a frozen dataclass. Imports neither torch nor deepspeed."""
