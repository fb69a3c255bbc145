"""The version of this toolkit, for --version and the records of checkpoints."""

VERSION = "0.2.0"
