"""What a command line of train.py gets wrong that can be said before torch is loaded."""

from options import parser
from options.train import TRAIN, parse_train
from training import launch


def refuse_early() -> None:
    """End the process on --help and --version, and on a command line that is not understood.

    On several machines mistakes wait until the ranks have met: no machine then waits for one that has left.

    Raises:
        UserError: everything that is wrong with the values of the command line.
    """
    parser.refuse_early(TRAIN, lambda: parse_train()[1], ready=not launch.on_several_machines())
