"""The flags of all programs, each declared once as a field of a frozen dataclass. Imports no torch or deepspeed."""
