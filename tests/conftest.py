"""What all tests share: nothing is downloaded, nothing is written to the home directory, GPU tests need a GPU."""

import contextlib
import os
import sys

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory):
    """Caches of the tests and of the programs they start lie in a directory that pytest removes."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    patch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("matplotlib")))
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def no_process_group_stays():
    """Destroy the process group of a program that ran in this process: other tests, and peft, would find it."""
    yield
    torch = sys.modules.get("torch")  # most tests of data need not import it
    if torch and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def no_process_stays(request):
    """Kill what a slow test started and did not end, most of all a run without an end after a failed assertion."""
    yield
    if request.node.get_closest_marker("slow"):
        import psutil  # as above

        from tests import forks

        stays = forks.server().pid if forks.server.cache_info().currsize else None
        for process in psutil.Process().children(recursive=True):
            if process.pid != stays:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


@pytest.fixture
def one_rank(no_process_group_stays):
    """A process group of this process alone."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)  # fast ones first
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_tests:
        import torch  # here, because most runs need not wait for it

        if not torch.cuda.is_available():
            for item in gpu_tests:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
