"""Check a command line of train.py before torch is loaded."""

from options import parser
from options.train import TRAIN, parse_train
from parallel import launch


def refuse_early() -> None:
    """Exit on --help and --version, and on an invalid command line.

    On several machines errors are reported after the ranks connect, so that no machine waits for one that has exited.

    Raises:
        UserError: all invalid values of the command line.
    """
    parser.refuse_early(TRAIN, lambda: parse_train()[1], ready=not launch.on_several_machines())
