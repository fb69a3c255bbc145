"""memory/setup.py: what a DeepSpeed file says, or its defaults."""

from dataclasses import replace

from memory.estimate import pinned
from memory.setup import read_setup
from tests.shapes import SETUP


def test_setup_reads_a_deepspeed_file():
    zero = {"stage": 3, "reduce_bucket_size": 7, "offload_param": {"device": "cpu", "pin_memory": True}}
    setup = read_setup({"zero_optimization": zero}, precision="bf16", ranks=2, batch=SETUP.batch)
    assert (setup.stage, setup.reduce_bucket_size, setup.prefetch_bucket_size) == (3, 7, 5 * 10**7)
    assert setup.offload_param and setup.pin_memory and not setup.offload_optimizer and setup.overlap_comm
    assert [pinned(n, setup) for n in (0, 1, 1024, 1025)] == [0, 1, 1024, 2048]
    bounded = replace(setup, rounded_up_to=1024)
    assert [pinned(n, bounded) for n in (1023, 1024, 1025)] == [1024, 1024, 1025]
