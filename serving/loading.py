"""Load models one after another into a server that runs; LoRA checkpoints of a base share its weights with it.

loader = Loader(options.limits)                        # loader.app answers at /v1
loaded = loader.load(find_models(options), options)    # takes as long as the weights; in any thread, one at a time
loader.service.add(loaded.served)                      # in the server's thread
loader.service.remove(loaded.served.name)
loaded.served.engine.close()
"""

import gc
import weakref
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from itertools import chain

import torch

from generation.adapters import add_adapter, share_weights
from generation.answerer import Answerer
from generation.engines import free_memory
from generation.models import UnloadedModel, choose_device, choose_dtype, find_base, load_model
from generation.request import Engine
from methods.adapter import Adapter
from options.serve import LimitOptions, ServeOptions
from serving.app import make_app
from serving.models import Found, ServedModel
from serving.service import Service
from training.guards import explain_full_memory

CACHE_BYTES = 2 * 2**30  # of a model's keys and values, at most
CACHE_FRACTION = 0.25  # of the free memory, at most


@dataclass(frozen=True, eq=False)
class Loaded:
    """A loaded model.

    weights: of its base, kept for others to share; None if it shares none.
    tensors: address of each tensor's memory -> bytes.
    """

    served: ServedModel
    unloaded: UnloadedModel
    weights: Answerer | None
    tensors: dict[int, int]


class Loader:
    """Loads models into a service. app: its application."""

    def __init__(self, limits: LimitOptions):
        self.service = Service(limits)
        self.app = make_app(self.service, None)
        self._engines: weakref.WeakSet[Engine] = weakref.WeakSet()
        self._bases: weakref.WeakValueDictionary[Hashable, Answerer] = weakref.WeakValueDictionary()

    def load(self, found: Found, options: ServeOptions) -> Loaded:
        """Load the weights and start the engine of a model without --lora.

        Raises:
            UserError: they cannot be used, or the memory is full.
        """
        host, gpu = "choose --precision bf16, or unload another model", "unload another model, or quantize this one"
        return explain_full_memory(self._load, host=host, GPU=gpu)(found, options)

    def _load(self, found: Found, options: ServeOptions) -> Loaded:
        device = choose_device(options.model.device)
        answerer, weights = self._answerer(found.base, options.model.precision, device)
        cache_bytes = min(CACHE_BYTES, int(free_memory(device) * CACHE_FRACTION))
        served = found.start({found.name: answerer}, options, device, cache_bytes)[0]
        self._engines.add(served.engine)
        return Loaded(served, found.base, weights, tensors_of(answerer))

    def close(self) -> None:
        """End all engines, also those that the service does not have; they would keep the process alive."""
        for engine in list(self._engines):
            engine.close()

    def _answerer(
        self, unloaded: UnloadedModel, precision: str, device: torch.device
    ) -> tuple[Answerer, Answerer | None]:
        """(the model, the weights that it shares or None)."""
        is_adapter = isinstance(unloaded.checkpoint.saved, Adapter)
        if not (is_adapter or unloaded.checkpoint.train_type == "all"):
            return load_model(unloaded, precision, device), None
        base = find_base(unloaded) if is_adapter else unloaded
        quantization = base.quantization_bit or 0, base.double_quantization
        key = (base.base.path.resolve(), base.base.mode, *quantization, choose_dtype(precision, device), device)
        weights = self._bases.get(key)
        if weights is None:
            weights = self._bases[key] = load_model(base, precision, device)
        if is_adapter:
            return add_adapter(weights, unloaded), weights
        model = share_weights(weights.model)  # which its engine changes
        return Answerer(weights.mode, weights.tokenizer, model, unloaded.limits), weights


def tensors_of(answerer: Answerer) -> dict[int, int]:
    """Address of each tensor's memory -> bytes."""
    tensors = chain(answerer.model.parameters(), answerer.model.buffers())
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


def memory_of(models: Iterable[Loaded]) -> dict[str, tuple[int, int]]:
    """Name -> (bytes of its own weights, bytes that it shares with others of these models)."""
    tensors = {loaded.served.name: loaded.tensors for loaded in models}
    users = Counter(chain.from_iterable(tensors.values()))
    own = {name: sum(size for place, size in of.items() if users[place] == 1) for name, of in tensors.items()}
    return {name: (own[name], sum(of.values()) - own[name]) for name, of in tensors.items()}


def free() -> None:
    """Return the memory of models that nothing refers to any more; engines and models refer to each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
