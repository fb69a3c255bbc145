"""modes/segments.py: the kernel for sequences of any lengths is called for what torch's sdpa computes by segments."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from compatibility import varlen_attention
from modes.segments import (
    attend_by_segment,
    attend_in_calls,
    expanded_sdpa,
    flash_runs,
    make_calls,
    make_masks,
    make_segments,
    takes_groups,
    varlen_runs,
)
from tests import golden

LAYOUTS = {
    "one sample": [(5, -1, 0)],
    "samples": [(5, -1, 0), (1, -1, 0), (7, -1, 0)],
    "a common beginning": [(6, -1, 0), (3, 0, 0), (1, 0, 0), (4, -1, 0)],
    "prompts both ways": [(6, -1, 4), (3, -1, 2), (5, -1, 5), (2, -1, 0)],
    "one prompt both ways": [(6, -1, 4)],
    "only prompts both ways": [(4, -1, 4), (3, -1, 3)],
}


def attend_sequences(query, key, value, ends_q, ends_k, longest_q, longest_k, causal):
    """What torch.nn.attention.varlen.varlen_attn computes, which has no CPU version: sequence by sequence.

    Its documentation: query [tokens, n, d], sequences end at `ends`; flash attention's causal mask belongs to the last
    query and the last key.
    """
    assert ends_q.dtype == ends_k.dtype == torch.int32 and ends_q[0] == ends_k[0] == 0
    assert ends_q[-1] == len(query) and ends_k[-1] == len(key) == len(value)
    assert longest_q == ends_q.diff().max() and longest_k == ends_k.diff().max()
    outputs, grouped = [], query.shape[1] != key.shape[1]
    sequences = zip(query.split(ends_q.diff().tolist()), key.split(ends_k.diff().tolist()),
                    value.split(ends_k.diff().tolist()), strict=True)  # fmt: skip
    for q, k, v in sequences:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
        mask = mask.tril(k.shape[2] - q.shape[2]) if causal else mask
        outputs.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)[0].transpose(0, 1))
    return torch.cat(outputs)


def kernel_of_2_12(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
):
    """The signature since torch 2.12, and what it refuses."""
    assert enable_gqa or query.shape[1] == key.shape[1] == value.shape[1]
    assert window_size in ((-1, 0), (-1, -1)) and scale is None
    causal = window_size == (-1, 0)
    return attend_sequences(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, causal)


def kernel_of_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    """The signature of torch 2.11: nothing but equal heads is documented."""
    return kernel_of_2_12(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)


def kernel_before_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    """The signature of torch 2.10 and of prereleases of 2.11."""
    assert query.shape[1] == key.shape[1] == value.shape[1] and return_aux is None
    return attend_sequences(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal)


KERNELS = [kernel_of_2_12, kernel_of_2_11, kernel_before_2_11]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("prefix_length", [0, 3])
@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_calls_compute_what_segments_do(layout, groups, prefix_length, kernel):
    torch.manual_seed(0)
    s, d = sum(length for length, _, _ in layout), 8
    row = [torch.randn(1, heads, s, d, requires_grad=True) for heads in (4, groups, groups)]
    prefix = [None, None]
    if prefix_length:
        prefix = [torch.randn(len(layout), groups, prefix_length, d, requires_grad=True) for _ in range(2)]
    inputs = row + [tensor for tensor in prefix if tensor is not None]
    by_segment = make_segments(layout, prefix_length, "cpu")
    in_calls = make_segments(layout, prefix_length, "cpu", (make_calls, None))
    expected = attend_by_segment(*row, by_segment, *prefix)
    outputs = attend_in_calls(kernel, *row, in_calls, *prefix)
    torch.testing.assert_close(outputs, expected)
    gradient = torch.randn_like(expected)
    for ours, theirs in zip(*(torch.autograd.grad(x, inputs, gradient) for x in (outputs, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_row_of_samples_is_read_as_it_lies():
    """Plain causal samples need no gathered copy of queries or keys; masks only where something stands in front."""
    (call,), places = make_calls(LAYOUTS["samples"], 0, "cpu")
    assert call.queries is None and call.keys is None and places is None and call.causal
    assert call.ends_q.tolist() == call.ends_k.tolist() == [0, 5, 6, 13]
    assert make_masks(LAYOUTS["samples"], 0, "cpu") == [None] * 3


HALF, AMPERE, VOLTA = torch.bfloat16, (8, 0), (7, 0)


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "masked", "flash", "groups"),
    [
        ("cuda", HALF, AMPERE, False, True, True),
        ("cuda", torch.float16, (9, 0), False, True, True),
        ("cuda", HALF, AMPERE, True, True, False),
        ("cuda", torch.float32, AMPERE, False, False, False),
        ("cuda", torch.float16, (7, 5), False, False, False),
        ("cuda", torch.float16, VOLTA, True, False, False),
        ("cpu", HALF, None, False, False, False),
    ],
)
def test_groups_are_left_to_flash_attention(device, dtype, capability, masked, flash, groups):
    """On a GPU without it `enable_gqa` falls back to torch's slowest kernel, which writes out all scores."""
    assert flash_runs(device, dtype, capability) == flash
    assert takes_groups(device, dtype, capability, 0, masked) == groups  # 0: less than any CPU has threads


@pytest.mark.parametrize("way", ["causal", "masked", "all"])
@pytest.mark.parametrize(("rows", "groups"), [(1, 2), (3, 1), (2, 4)])
def test_expanded_groups_compute_what_groups_do(rows, groups, way):
    torch.manual_seed(0)
    s, d = 9, 16
    query, key, value = (torch.randn(rows, heads, s, d, requires_grad=True) for heads in (8, *[groups] * 2))
    mask = torch.rand(rows, 1, s, s).lt(0.5).logical_or(torch.eye(s, dtype=torch.bool)) if way == "masked" else None
    causal = way == "causal"
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=True)
    expected, output = expected.transpose(1, 2), expanded_sdpa(query, key, value, mask, causal)
    gradient = torch.randn_like(expected)
    torch.testing.assert_close(output, expected)
    inputs = (query, key, value)
    for ours, theirs in zip(*(torch.autograd.grad(x, inputs, gradient) for x in (output, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_signature_of_this_torch_is_known():
    """The kernel that is installed takes exactly what one of the stand-ins takes and a few things beyond."""
    from torch.nn.attention.varlen import varlen_attn

    signature = inspect.signature(varlen_attn).parameters
    asked = [name for name in ("window_size", "is_causal", "enable_gqa") if name in signature]
    assert asked in (["window_size", "enable_gqa"], ["window_size"], ["is_causal"])
    assert list(signature)[:7] == list(inspect.signature(kernel_of_2_12).parameters)[:7]


@pytest.mark.filterwarnings("error:Dynamo detected")
def test_compiled_layers_do_not_trace_the_choice_of_signature():
    """torch.compile takes the call into one graph, without a warning, and with heads repeated where they must be."""

    def kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
        return query * key * value + int(is_causal)

    query, key, ends = torch.ones(5, 4, 8), torch.full((5, 2, 8), 2.0), torch.tensor([0, 5], dtype=torch.int32)
    compiled = torch.compile(varlen_attention, fullgraph=True, backend="eager")
    assert torch.equal(compiled(kernel, query, key, key, ends, ends, 5, 5, True), torch.full((5, 4, 8), 5.0))


def test_varlen_is_for_half_precision_on_gpus():
    assert not varlen_runs(torch.device("cpu"), torch.bfloat16, 128)


@pytest.mark.gpu
@pytest.mark.parametrize("prefix", ["", "ptuning_proj"])
@pytest.mark.parametrize("mode", ["glm", "glm2", "glm3"])
def test_varlen_on_a_gpu(mode, prefix):
    """Loss and gradients in bf16 are those of sdpa, as far as bf16 goes."""
    from functools import partial

    from data.collate import collate, to_device
    from modes import MODES
    from training.kernels import use_kernels

    model = golden.load_model(mode, prefix, dtype=torch.bfloat16).cuda()
    rows = MODES[mode].encode_batch(golden.tokenizer(mode), golden.RECORDS[:4], max_len=256, max_src_len=160)
    batch = to_device(collate(rows, partial(MODES[mode].layout, model.config)), torch.device("cuda"))
    losses, gradients = [], []
    for attention in ("sdpa", "varlen"):
        use_kernels(model, attention, compiles=False)
        model.zero_grad()
        losses.append(model(**batch, use_cache=False).loss)
        losses[-1].backward()
        gradients.append(
            [parameter.grad.float().clone() for parameter in model.parameters() if parameter.grad is not None]
        )
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=3e-3)
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).norm() <= 0.05 * theirs.norm() + 1e-4
