"""memory/gradients.py and memory/groups.py: a rank's part of the optimizer's groups."""

from memory.gradients import largest_part
from memory.groups import largest_group


def test_a_part_holds_the_parameters_that_it_touches_whole():
    assert largest_part([[4, 4, 4, 4]], 2) == 8
    assert largest_part([[2, 12, 2]], 2) == 14
    assert largest_group(1) == 10**8 and largest_group(8) > 6.3e9
    assert largest_part([], 2) == 0 and largest_part([[5]], 1) == 5
    assert largest_part([[4, 4, 4, 4], [6]], 2) == 14  # a group of one belongs to all ranks
