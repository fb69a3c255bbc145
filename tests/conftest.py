"""What all tests share: nothing is downloaded, nothing is written to the home directory, GPU tests need a GPU."""

import contextlib
import gc
import os
import subprocess
import sys

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
gc.disable()  # the libraries that tests import hold a million objects, none of which goes again


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

        forks.kill_all()
        stay = {process.pid for process in forks.servers}
        for child in psutil.Process().children():
            if child.pid not in stay:
                for process in [*child.children(recursive=True), child]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()


@pytest.fixture
def one_rank(no_process_group_stays):
    """A process group of this process alone."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


@pytest.fixture
def no_job_stays(tmp_path):
    """Kill what a failed test left."""
    from processes import is_alive
    from runs.job import kill
    from runs.reading import read

    yield
    for path in tmp_path.rglob("job.json"):
        if is_alive(read(path)):
            kill(path.parent)


@pytest.fixture
def sleeper():
    """A process that sleeps."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def pytest_collection_modifyitems(items):
    """Fast tests first; of several workers each begins with slow ones, so that all of them end at the same time."""
    slow = [item for item in items if item.get_closest_marker("slow")]
    fast = [item for item in items if not item.get_closest_marker("slow")]
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))  # each is given one of so many parts
    kinds = (fast, slow) if count == 1 else (slow, fast)
    part = lambda kind, i: kind[len(kind) * i // count : len(kind) * (i + 1) // count]  # noqa: E731
    items[:] = [item for i in range(count) for kind in kinds for item in part(kind, i)]
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_tests:
        import torch  # here, because most runs need not wait for it

        if not torch.cuda.is_available():
            for item in gpu_tests:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish():
    gc.freeze()
    gc.enable()
