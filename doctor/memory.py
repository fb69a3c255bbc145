"""What a run takes in memory, per rank, from the model's shapes: no weight is read.

    sizes = Sizes(layers=28, hidden=4096, …)
    setup = Setup(precision="bf16", stage=2, ranks=1, batch=Batch(rows=1, length=1560, supervised=500), …)
    result = estimate([(name, shape, trained), …], sizes, setup)
    result.gpu_peak, result.host_peak, result.parts      # bytes

The formulas, and how they were checked against runs, are in docs/memory.md. In short, with W values in the model, P of
them trained, N ranks and e bytes a value (2 in bf16 and fp16, 4 in fp32), one rank holds between two steps

    weights     W e (ZeRO-3: W e / N)       master copy 4 P / N         Adam's moments 8 P / N

and a step has three moments that may be the fullest: the loss, the backward of some block, and the optimiser. All are
followed in the order in which they happen; the largest is the peak.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from doctor.activations import LAYER, Batch, Sizes, block, head, prefix_encoder, shared, size_of, trained_parts

VALUE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
SUB_GROUP = 10**9  # values that ZeRO-3's optimiser takes at a time (DeepSpeed's sub_group_size)
SHARD_BYTES = 2 * 10**9  # of a checkpoint, held while it is written
GIB = 2**30
# Not counted by formulas, and not by torch.cuda.max_memory_allocated: CUDA's context, NCCL's buffers, fragments.
RESERVED_BYTES, RESERVED_SHARE = 1 * GIB, 0.03


@dataclass(frozen=True)
class Setup:
    """A run as far as memory is concerned.

    recomputed: number of blocks under gradient checkpointing (train.py's checkpoint_blocks), 0 for none.
    reduce_bucket_size, prefetch_bucket_size, max_live_parameters: values, as in the DeepSpeed file.
    pin_memory: of offloaded tensors; torch rounds each pinned block up to a power of two.
    on_gpu: False is a run on CPUs, whose memory `gpu` in the result then means.
    """

    precision: str
    stage: int
    ranks: int
    batch: Batch
    recomputed: int = 0
    accumulation: int = 1
    lora_dropout: bool = True
    offload_optimizer: bool = False
    offload_param: bool = False
    pin_memory: bool = True
    reduce_bucket_size: int = 5 * 10**8
    overlap_comm: bool = True
    prefetch_bucket_size: int = 5 * 10**7
    max_live_parameters: int = 10**9
    on_gpu: bool = True


@dataclass(frozen=True)
class Estimate:
    """Bytes of one rank.

    parts: what the accelerator holds at the peak: weights, optimizer, gradients, buffers, activations, logits, ….
    moments: the peak of each moment of a step on the accelerator: loss, backward, optimizer, save.
    host: what offload keeps in RAM; save_host: what rank 0 holds beside that while it writes a checkpoint.
    """

    parts: dict[str, int]
    moments: dict[str, int]
    host: dict[str, int] = field(default_factory=dict)
    save_host: int = 0

    @property
    def gpu_peak(self) -> int:
        """The fullest moment on the accelerator."""
        return max(self.moments.values())

    @property
    def host_peak(self) -> int:
        """Offloaded state and, on rank 0, a checkpoint's shard."""
        return sum(self.host.values()) + self.save_host


def read_setup(ds_config: dict, **others) -> Setup:
    """A Setup with the values of a resolved DeepSpeed configuration, or DeepSpeed's defaults where it is silent."""
    zero = ds_config["zero_optimization"]
    stage = zero["stage"]
    names = {
        "reduce_bucket_size": ("reduce_bucket_size", 5e8),
        "prefetch_bucket_size": ("stage3_prefetch_bucket_size", 5e7),
        "max_live_parameters": ("stage3_max_live_parameters", 1e9),
    }
    optimizer, param = zero.get("offload_optimizer"), zero.get("offload_param")
    return Setup(
        stage=stage,
        offload_optimizer=optimizer is not None,
        offload_param=param is not None,
        pin_memory=bool((optimizer or param or {}).get("pin_memory", False)),
        overlap_comm=bool(zero.get("overlap_comm", stage == 3)),
        **{name: int(zero.get(key, default)) for name, (key, default) in names.items()},
        **others,
    )


def estimate(parameters: list[tuple], sizes: Sizes, setup: Setup) -> Estimate:
    """What one rank holds at the fullest moments of a step.

    Args:
        parameters: (name, shape, trained) of every parameter of the prepared model; tied ones once.
    """
    e, n, stage = VALUE_BYTES[setup.precision], setup.ranks, setup.stage
    split = n if stage >= 1 else 1
    values = sum(size_of(shape) for _, shape, _ in parameters)
    trained = sum(size_of(shape) for _, shape, learnt in parameters if learnt)
    largest = max((size_of(shape) for _, shape, learnt in parameters if learnt), default=0)
    master = 0 if stage == 0 and e == 4 else 4 * trained // split
    optimizer = master + 8 * trained // split

    held = {"weights": values * e // (n if stage == 3 else 1), "optimizer": optimizer}
    host = offloaded(parameters, setup, e, trained, largest)
    for name in held.keys() & host.keys():
        del held[name]

    held["buffers"] = held_buffers(setup, e, largest, trained)
    held["gradients"] = trained // n * e if stage == 3 and not setup.offload_optimizer else 0
    if (stage == 3 and n > 1) or (setup.offload_param and setup.on_gpu):  # on one CPU rank all is there already
        # what is gathered stays while it will be used again; what is fetched ahead is there as a flat buffer first
        kept = min(values, setup.max_live_parameters + largest_values(parameters))
        ahead = min(values, setup.prefetch_bucket_size) if n > 1 else 0
        held["gathered"] = (kept + ahead) * e

    moments, at_peak = follow_step(parameters, sizes, setup, held, trained, largest, e)
    save = sum(held.values())  # parameters are gathered one by one, and copied to the host
    moments["save"] = save - held.get("gathered", 0) + (largest * e if stage == 3 and n > 1 else 0)
    save_host = trained * e if trained * e < SHARD_BYTES else SHARD_BYTES + largest * e
    if not setup.on_gpu:
        moments["save"] += save_host
        save_host = 0
    return Estimate(parts=at_peak, moments=moments, host=host, save_host=save_host)


def offloaded(parameters, setup: Setup, e: int, trained: int, largest: int) -> dict[str, int]:
    """Bytes in RAM, for one rank. Blocks are pinned one by one; Adam's moments are never pinned."""
    pin = setup.pin_memory and setup.on_gpu
    part, host = trained // setup.ranks, {}

    def blocks(count, value_bytes):
        """So many values, in ZeRO-3 at most SUB_GROUP of them in a block."""
        size = min(count, SUB_GROUP) if setup.stage == 3 else count
        whole, rest = divmod(count, max(size, 1))
        sizes = [size * value_bytes] * whole + [rest * value_bytes]
        return sum(pinned(block) if pin else block for block in sizes)

    if setup.offload_param:
        frozen = [size_of(shape) // setup.ranks * e for _, shape, learnt in parameters if not learnt]
        host["weights"] = (pinned(part * e) if pin else part * e) + sum(pinned(s) if pin else s for s in frozen)
    if setup.offload_optimizer:
        master = blocks(part, 4) if setup.stage < 3 else 4 * part
        host["optimizer"] = master + 8 * part
        # float32 gradients, and low-precision staging: ZeRO-2 of weights and the largest gradient, ZeRO-3 of gradients
        host["gradients"] = blocks(part, 4) + (pinned(part * e) if pin else part * e)
        if setup.stage < 3:
            host["gradients"] += pinned(largest * e) if pin else largest * e
        if setup.accumulation > 1 and setup.stage < 3:
            shapes = (size_of(shape) * e for _, shape, learnt in parameters if learnt)
            host["gradients"] += sum(pinned(s) if pin else s for s in shapes)
    return host


def pinned(size: int) -> int:
    """Bytes that torch's pinned allocator takes for one block: the next power of two."""
    return 1 << max(size - 1, 0).bit_length() if size else 0


def largest_values(parameters) -> int:
    """Values of the largest parameter, trained or not."""
    return max(size_of(shape) for _, shape, _ in parameters)


def held_buffers(setup: Setup, e: int, largest: int, trained: int) -> int:
    """Buffers that are there for good."""
    if not trained:
        return 0
    if setup.stage == 3:
        return setup.reduce_bucket_size * e
    return largest * e if setup.offload_optimizer else 0


def follow_step(parameters, sizes, setup, held, trained, largest, e) -> tuple[dict[str, int], dict[str, int]]:
    """The fullest points of loss, backward and optimiser, and what is held at the fullest of all."""
    batch, stage = setup.batch, setup.stage
    base = sum(held.values())
    names = [name for name, _, learnt in parameters if learnt]
    in_prefix = any("prefix_encoder." in name for name in names)
    in_embedding = any("word_embeddings." in name for name in names)
    tied = in_embedding and not any("output_layer." in name or "lm_head." in name for name in names) and not sizes.gated
    row = batch.rows * (batch.length + sizes.prefix_rows) * sizes.hidden * e  # one tensor of hidden states

    # what each block keeps, lowest first; blocks below the lowest trained tensor are not in the graph
    layers, below = [], in_embedding or (in_prefix and sizes.prefix_rows > 0)
    for i in range(sizes.layers):
        parts = trained_parts(parameters, i)
        if below or parts[0] or parts[1] or (in_prefix and sizes.prefix):
            layers.append(block(sizes, batch, trained=parts, below=below, lora_dropout=setup.lora_dropout,
                                value_bytes=e, on_gpu=setup.on_gpu, keeps_inputs=stage == 3))  # fmt: skip
            below = True
        else:
            layers.append(None)
    recomputed = {i for i, layer in enumerate(layers) if layer and i >= sizes.layers - setup.recomputed}
    kept = sum(row if i in recomputed else layer.saved for i, layer in enumerate(layers) if layer)

    final = [name for name in names if "final_layernorm." in name]
    norm = 0
    if below or final:
        norm = row if setup.on_gpu or not sizes.gated else 2 * row * (4 // e) // (1 if final else 2)
    out = head(sizes, batch, trained=any("output_layer." in name or "lm_head." in name for name in names) or tied
               or stage == 3, value_bytes=e)  # fmt: skip
    activations = kept + norm + shared(sizes, batch, value_bytes=e)
    if in_prefix and sizes.prefix:
        activations += prefix_encoder(sizes, batch, value_bytes=e, on_gpu=setup.on_gpu)

    gradients = Gradients(setup, trained, e)
    points = [("loss", activations, out.saved + max(out.forward, out.backward), gradients.bytes())]
    left = activations - norm + row  # from here on the gradient of the hidden states is there
    top = [s for name, s, t in parameters if t and not LAYER.search(name) and "prefix_" not in name]
    if tied:
        gradients.raw += largest * e  # waits for the embedding's own share
        top = [s for s in top if size_of(s) != largest]
    elif in_embedding:  # comes last
        embedding = next(s for name, s, t in parameters if t and "word_embeddings." in name)
        top.remove(embedding)
    for shape in top:
        gradients.add(size_of(shape))
    points.append(("backward", left, 0, gradients.bytes()))
    for i in reversed(range(sizes.layers)):
        layer = layers[i]
        if layer is None:
            break
        peak = layer.extra + (layer.saved if i in recomputed else 0)
        shapes = [s for name, s, t in parameters if t and (m := LAYER.search(name)) and int(m[1]) == i]
        for shape in sorted(shapes, key=size_of)[-1:]:  # the feed-forward part comes first, with its last matrix
            gradients.add(size_of(shape))
        points.append(("backward", left + peak, 0, gradients.bytes()))
        for shape in sorted(shapes, key=size_of)[:-1]:
            gradients.add(size_of(shape))
        left -= row if i in recomputed else layer.saved
    for name, shape, learnt in parameters:
        if learnt and not LAYER.search(name) and ("prefix_" in name or "word_embeddings." in name):
            points.append(("backward", left, 0, gradients.bytes() + size_of(shape) * e))
            gradients.add(size_of(shape))
    gradients.finish()
    points.append(("backward", 0, 0, gradients.bytes()))

    moments, fullest = {}, None
    for name, active, logits, grads in points:
        total = base + active + logits + grads
        moments[name] = max(moments.get(name, 0), total)
        if fullest is None or total > sum(fullest.values()):
            extra = {"activations": active, "logits": logits}
            buffers = gradients.buckets if grads else 0
            fullest = {**held, **extra, "gradients": held["gradients"] + grads - buffers,
                       "buffers": held["buffers"] + buffers}  # fmt: skip
    kept = {name: size for name, size in held.items() if name != "gathered"}  # given back at the end of backward
    moments["optimizer"] = sum(kept.values()) + optimizer_extra(setup, trained, e)
    if moments["optimizer"] > sum(fullest.values()):
        fullest = {**kept, "gradients": kept["gradients"] + optimizer_extra(setup, trained, e)}
    return moments, {name: size for name, size in fullest.items() if size}


def optimizer_extra(setup: Setup, trained: int, e: int) -> int:
    """Gradients as the optimiser takes them, beside what a rank holds anyway."""
    part = trained // setup.ranks
    if setup.offload_optimizer:
        return 0
    if setup.stage == 3:
        return 4 * min(part, SUB_GROUP)
    if setup.stage == 0 and e == 4:
        return 4 * trained
    # stage 1 keeps the gradients of all; then a flat copy, and that one in float32
    flat = 4 * part if e == 4 else (e + 4) * part
    return (trained if setup.stage < 2 else part) * e + flat


class Gradients:
    """Where gradients go in backward: autograd's own tensor, a bucket, and this rank's part once a bucket is full."""

    def __init__(self, setup: Setup, trained: int, e: int):
        self.setup, self.e, self.trained = setup, e, trained
        self.raw = 0  # bytes of gradients that wait outside of any bucket
        self.in_bucket = 0
        count = 2 if setup.overlap_comm else 1
        self.buckets = setup.reduce_bucket_size * e * count if setup.stage in (1, 2) and trained else 0
        part = trained // (setup.ranks if setup.stage >= 2 else 1) * e
        self.part = 0 if setup.offload_optimizer or setup.stage == 3 else part
        self.reduced = self.started = False
        if setup.accumulation > 1:
            self.raw += self.part  # sums of the micro-batches before

    def add(self, values: int) -> None:
        """A parameter's gradient is there."""
        self.started = True
        if self.setup.stage == 0:
            self.raw += values * self.e
        elif self.in_bucket + values > self.setup.reduce_bucket_size:
            self.reduced = True
            self.in_bucket = 0
        self.in_bucket += values

    def finish(self) -> None:
        """The last bucket is reduced."""
        self.reduced = True

    def bytes(self) -> int:
        """Bytes of all, now."""
        if not self.started:
            return self.raw
        copy = min(self.in_bucket, self.setup.reduce_bucket_size) * self.e if self.setup.ranks > 1 else 0
        return self.raw + self.buckets + (self.part if self.reduced else 0) + copy


# --ds_file, stage, offload of optimiser and parameters, checkpointing: the fastest first.
CHOICES = (
    ("ds_zero2_no_offload.json", 2, False, False, False),
    ("ds_zero2_no_offload.json", 2, False, False, True),
    ("ds_zero3_no_offload.json", 3, False, False, False),
    ("ds_zero3_no_offload.json", 3, False, False, True),
    ("ds_zero2_offload.json", 2, True, False, False),
    ("ds_zero2_offload.json", 2, True, False, True),
    ("ds_zero3_offload.json", 3, True, True, True),
)


@dataclass(frozen=True)
class Suggestion:
    """A configuration that fits: the flags, and what it takes."""

    ds_file: str
    checkpointing: bool
    setup: Setup
    estimate: Estimate

    def flags(self) -> str:
        """The flags to run it with."""
        checkpointing = " --gradient_checkpointing" if self.checkpointing else ""
        return f"--ds_file {self.ds_file}{checkpointing} --per_device_train_batch_size {self.setup.batch.rows}"


def usable(gpu_bytes: int) -> int:
    """What of a GPU's memory tensors may take."""
    return int(gpu_bytes * (1 - RESERVED_SHARE)) - RESERVED_BYTES


def suggest(
    parameters: list[tuple], sizes: Sizes, setup: Setup, gpu_bytes: int, *, batches: list[Batch], recomputed: int,
    host_bytes: int | None = None,
) -> Suggestion | None:  # fmt: skip
    """The fastest configuration that fits, or None.

    Args:
        setup: ranks, precision and all that is not chosen here.
        gpu_bytes: memory of one GPU. host_bytes: RAM of the machine, for all of its ranks; None does not limit it.
        batches: what a micro-batch may be, the wanted one first (a smaller one needs more accumulation).
        recomputed: blocks that gradient checkpointing would recompute.
    """
    for batch in batches:
        for ds_file, stage, optimizer, param, checkpointing in CHOICES:
            if stage == 3 and setup.ranks == 1 and not param:
                continue  # nothing to partition
            changed = replace(
                setup, batch=batch, stage=stage, offload_optimizer=optimizer, offload_param=param,
                recomputed=recomputed if checkpointing else 0,
            )  # fmt: skip
            found = estimate(parameters, sizes, changed)
            fits_host = host_bytes is None or found.host_peak * setup.ranks <= host_bytes
            if found.gpu_peak <= usable(gpu_bytes) and fits_host:
                return Suggestion(ds_file, checkpointing, changed, found)
    return None


def blocks_in_graph(parameters: list[tuple], sizes: Sizes) -> int:
    """Blocks that backward runs through: those that --gradient_checkpointing recomputes."""
    lowest = sizes.layers
    for name, _, trained in parameters:
        layer = LAYER.search(name)
        if trained and layer:
            lowest = min(lowest, int(layer[1]))
        elif trained and ("word_embeddings." in name or "prefix_encoder." in name):
            lowest = 0
    return sizes.layers - lowest


def describe(result: Estimate, setup: Setup) -> str:
    """An estimate in a few lines."""
    where = "GPU" if setup.on_gpu else "RAM"
    parts = sorted(result.parts.items(), key=lambda part: -part[1])
    lines = [
        f"{where} memory of a rank: {result.gpu_peak / GIB:.2f} GiB at most, in tensors",
        "  then: " + ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts),
        "  fullest moments: " + ", ".join(f"{name} {size / GIB:.2f}" for name, size in result.moments.items()),
    ]
    if result.host:
        kept = ", ".join(f"{name} {size / GIB:.2f}" for name, size in result.host.items())
        lines.append(f"RAM of a rank: {sum(result.host.values()) / GIB:.2f} GiB offloaded ({kept})")
    if result.save_host:
        lines.append(f"RAM of rank 0 while it saves: {result.save_host / GIB:.2f} GiB more")
    return "\n".join(lines)


def largest_batch(micro_batches: Iterable[list[int]], lengths, supervised, multiple: int = 8) -> Batch:
    """The most that a micro-batch of an epoch's plan asks for, in each respect.

    Args:
        micro_batches: sample numbers of each; negative ones are filler.
        lengths, supervised: tokens of each sample, and those that count in the loss.
        multiple: the padded length is a multiple of it.
    """
    rows = length = counted = 0
    for batch in micro_batches:
        real = [i for i in batch if i >= 0]
        if real:
            rows, longest = max(rows, len(real)), max(int(lengths[i]) for i in real)
            length = max(length, -(-longest // multiple) * multiple)
            counted = max(counted, sum(int(supervised[i]) for i in real))
    return Batch(rows=rows, length=length, supervised=counted)


def smaller_batches(batch: Batch, most_supervised: int) -> list[Batch]:
    """A batch, and those of half, a quarter, … of its rows down to one.

    Args:
        most_supervised: tokens that count in the loss, of the sample that has most.
    """
    found, rows = [batch], batch.rows // 2
    while rows:
        found.append(replace(batch, rows=rows, supervised=min(batch.supervised, rows * most_supervised)))
        rows //= 2
    return found
