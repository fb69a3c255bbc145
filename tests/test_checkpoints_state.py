"""checkpoints/state.py: the state of a CPU run on a GPU, and the other way round."""

import pytest
import torch
from safetensors.torch import save_file

from checkpoints.state import generators, set_generators


@pytest.mark.parametrize("of_gpu", [False, True])
def test_generators_of_another_device(of_gpu, one_rank, tmp_path):
    """Generators without a saved state continue unchanged; states without a device on this machine are ignored."""
    of_all = {"cpu-0": torch.Generator().manual_seed(7).get_state()}
    if of_gpu:
        of_all["cuda-0"] = generators().get("cuda-0", torch.zeros(16, dtype=torch.uint8))
    save_file(of_all, tmp_path / "rng.safetensors")
    torch.manual_seed(8)
    before = generators()
    set_generators(tmp_path / "rng.safetensors")
    after = generators()
    assert torch.equal(after["cpu-0"], of_all["cpu-0"]) and not torch.equal(after["cpu-0"], before["cpu-0"])
    assert after.keys() == before.keys()
    assert not torch.cuda.is_available() or torch.equal(after["cuda-0"], before["cuda-0"])
