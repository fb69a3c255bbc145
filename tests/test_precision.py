"""modes/loading.py, training/precision.py: bf16 is chosen on GPUs that compute in it, not on those that emulate it."""

import contextlib
import re
from types import SimpleNamespace

import pytest
import torch

from generation.models import choose_dtype
from modes.loading import gpus_have_bf16
from tests.launch import REPOSITORY

V100, T4, A100, H100 = (7, 0), (7, 5), (8, 0), (9, 0)


@pytest.fixture
def cards(monkeypatch):
    """A function that makes torch see cards of these compute capabilities; what it says of bf16 is its own."""

    def see(*capabilities):
        current = [0]

        @contextlib.contextmanager
        def device(index):
            before, current[0] = current[0], index
            yield
            current[0] = before

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "device", device)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
        monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda index: True)  # as it is on a V100
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda index: SimpleNamespace(major=capabilities[index][0])
        )

    return see


@pytest.mark.parametrize(("card", "dtype"), [(V100, torch.float16), (T4, torch.float16), (A100, torch.bfloat16)])
def test_predict(card, dtype, cards):
    cards(card)
    assert choose_dtype("auto", torch.device("cuda")) == dtype


def test_each_rank_has_its_own_card_and_all_of_a_machine_agree(cards):
    cards(H100, V100)
    assert gpus_have_bf16([0]) and not gpus_have_bf16([1])
    assert not gpus_have_bf16([0, 1]) and not gpus_have_bf16([1, 0])


def test_nothing_else_asks_torch():
    asks = re.compile(r"is_bf16_supported\((.*)\)")
    files = [path for path in REPOSITORY.rglob("*.py") if path.parts[len(REPOSITORY.parts)] not in ("tests", ".venv")]
    calls_by_file = {
        str(path.relative_to(REPOSITORY)): asks.findall(path.read_text(encoding="utf-8")) for path in files
    }
    assert {path: calls for path, calls in calls_by_file.items() if calls} == {
        "modes/loading.py": ["including_emulation=False"]
    }
