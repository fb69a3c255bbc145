"""Generation: left-padded batches, prefixes, beams, and positions that the cache cannot upset."""

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from generation.cache import ROOM, batch_cache, count_shared, share_start
from generation.generate import generate_batch, share_prompts
from modes import MODES
from modes.glm import positions
from tests import golden

EMBEDDING = {"pre_seq_len": 5, "prefix_layers": "embedding"}
PREFIXES = {
    "none": {},
    "all layers": {"pre_seq_len": 5},
    "all layers, MLP": {"pre_seq_len": 5, "prefix_projection": True},
    "embedding": EMBEDDING,
    "embedding, MLP": {**EMBEDDING, "prefix_projection": True},
}


@pytest.fixture(params=MODES)
def mode(request):
    return request.param


def model_with(mode, prefix, dtype=torch.float32):
    torch.manual_seed(1)
    return golden.load_model(mode, dtype=dtype, **PREFIXES[prefix])


def prompts(mode):
    """Three prompts of different lengths."""
    return [MODES[mode].prompt_ids(golden.tokenizer(mode), record) for record in golden.RECORDS[:4:1]][1:]


def pad(mode, rows):
    """A left-padded batch of id lists."""
    return golden.tokenizer(mode).pad({"input_ids": rows}, return_tensors="pt", padding_side="left")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padded_batch_equals_one_by_one(mode, prefix, attention):
    model = model_with(mode, prefix)
    model.set_attn_implementation(attention)
    assert model.config._attn_implementation == attention
    rows = prompts(mode)
    assert len({len(row) for row in rows}) > 1
    options = {"max_new_tokens": 10, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    batch = model.generate(**pad(mode, rows), **options)
    for i, row in enumerate(rows):
        alone = model.generate(torch.tensor([row]), **options)
        new = alone.sequences[0, len(row) :].tolist()
        assert batch.sequences[i, -10:].tolist()[: len(new)] == new
        for together, single in zip(batch.logits, alone.logits, strict=False):
            torch.testing.assert_close(together[i], single[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_cache_equals_recomputing(mode, prefix):
    model = model_with(mode, prefix)
    inputs = pad(mode, prompts(mode))
    options = {"max_new_tokens": 10, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    cached = model.generate(**inputs, **options)
    recomputed = model.generate(**inputs, **options, use_cache=False)
    assert cached.sequences.tolist() == recomputed.sequences.tolist()
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(recomputed.logits), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", ["none", "all layers", "embedding"])
def test_generation_sees_what_training_sees(mode, prefix):
    """Logits of generated tokens are those of one pass over the whole row."""
    model = model_with(mode, prefix)
    row = prompts(mode)[0]
    output = model.generate(
        torch.tensor([row]), max_new_tokens=8, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    whole = model(input_ids=output.sequences).logits[0, len(row) - 1 : -1]
    torch.testing.assert_close(torch.cat(output.logits), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", ["none", "all layers", "embedding"])
def test_beams_and_samples(mode, prefix):
    model = model_with(mode, prefix)
    inputs = pad(mode, prompts(mode))
    beams = model.generate(**inputs, max_new_tokens=5, num_beams=3, num_return_sequences=3, do_sample=False)
    assert beams.shape[0] == 3 * len(prompts(mode))
    one_beam = model.generate(**inputs, max_new_tokens=5, num_beams=1, do_sample=False)
    torch.manual_seed(0)
    samples = model.generate(**inputs, max_new_tokens=5, do_sample=True, top_k=1, num_return_sequences=2)
    assert samples[::2].tolist() == samples[1::2].tolist() == one_beam.tolist()


def test_prefix_changes_the_answer(mode):
    ids = torch.tensor([prompts(mode)[0]])
    plain = model_with(mode, "none")(input_ids=ids).logits
    for prefix in list(PREFIXES)[1:]:
        logits = model_with(mode, prefix)(input_ids=ids).logits
        assert logits.shape == plain.shape
        assert (logits - plain).abs().max() > 1e-3


def test_half_precision_generates(mode):
    output = model_with(mode, "all layers", torch.bfloat16).generate(
        **pad(mode, prompts(mode)), max_new_tokens=3, do_sample=False
    )
    assert output.shape[0] == len(prompts(mode))


# ChatGLM-6B's positions

CONFIG = MODES["glm"].config_class(bos_token_id=9, gmask_token_id=7, mask_token_id=8, vocab_size=20)


def check_positions(ids, position, block, mask=None):
    actual = positions.from_ids(torch.tensor([ids]), None if mask is None else torch.tensor([mask]), CONFIG)
    assert actual.tolist() == [[position, block]]


def test_positions_of_a_row():
    check_positions([1, 2, 7, 9, 3, 4], [0, 1, 2, 2, 2, 2], [0, 0, 0, 1, 2, 3])


def test_positions_do_not_count_left_padding():
    check_positions([0, 0, 1, 7, 9, 3], [0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 2], [0, 0, 1, 1, 1, 1])


def test_positions_of_infilling_use_the_official_rule():
    check_positions([1, 8, 2, 9, 3], [0, 1, 2, 1, 1], [0, 0, 0, 1, 2])
    check_positions([8, 7, 2, 9, 3], [0, 1, 2, 1, 1], [0, 0, 0, 1, 2])


def test_a_sop_that_a_user_typed_does_not_begin_the_answer():
    check_positions([1, 9, 2, 7, 9, 3], [0, 1, 2, 3, 3, 3], [0, 0, 0, 0, 1, 2])
    check_positions([7, 1, 2, 7, 9, 3], [0, 1, 2, 3, 3, 3], [0, 0, 0, 0, 1, 2])


def test_without_sop_everything_is_prompt():
    check_positions([1, 2, 3], [0, 1, 2], [0, 0, 0])


def test_following_positions():
    begun = torch.tensor([[[0, 1, 1], [0, 0, 1]]])
    assert positions.following(begun, 2).tolist() == [[[1, 1], [2, 3]]]
    prompt = torch.tensor([[[0, 1, 2], [0, 0, 0]]])
    assert positions.following(prompt, 2).tolist() == [[[3, 4], [0, 0]]]


def test_positions_are_asked_for_behind_a_cache():
    model = golden.shared_model("glm")
    cache = model(input_ids=torch.tensor([[353, 86, 89]]), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="position_ids"):
        model(input_ids=torch.tensor([[353]]), past_key_values=cache)


# what all prompts begin with, computed once; a cache with room

LOGITS = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        ([[1, 2, 3], [1, 2, 4, 5]], 2),
        ([[1, 2], [1, 2, 3]], 1),
        ([[1, 2, 3], [1, 2, 3]], 2),
        ([[1, 2], [2, 2]], 0),
        ([[1], [1, 2]], 0),
        ([[1, 2, 3]], 2),
    ],
)
def test_one_id_of_each_prompt_is_left(rows, count):
    assert count_shared(rows) == count


def rows_with(common, *lengths):
    """Random rows that start with the same ids and then differ."""
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 300, (common + sum(lengths),), generator=draw).split([common, *lengths])
    return [torch.cat([ids[0], rest]).tolist() for rest in ids[1:]]


@torch.no_grad()
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("mode", ["glm2", "glm3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "rows", [rows_with(20, 5, 11, 1), rows_with(20, 4, 4), rows_with(1, 9, 3), [rows_with(20, 5)[0]] * 2]
)
def test_a_shared_start_changes_no_logits(mode, prefix, attention, rows):
    model = model_with(mode, prefix)
    model.set_attn_implementation(attention)
    shared = share_start(model, rows, "cpu")
    assert shared.tokens == count_shared(rows) > 0
    assert shared.cache.get_seq_length() == shared.tokens + (model.config.pre_seq_len or 0)
    rests = pad(mode, [row[shared.tokens :] for row in rows])
    mask = torch.cat([torch.ones(len(rows), shared.tokens, dtype=torch.long), rests["attention_mask"]], dim=1)
    cache = batch_cache(len(rows), shared.cache)
    together = model.generate(
        rests["input_ids"], attention_mask=mask, past_key_values=cache, max_new_tokens=5, min_new_tokens=5, **LOGITS
    )
    for i, row in enumerate(rows):
        alone = model.generate(torch.tensor([row]), max_new_tokens=5, min_new_tokens=5, **LOGITS)
        assert together.sequences[i, -5:].tolist() == alone.sequences[0, len(row) :].tolist()
        difference = torch.stack(together.logits)[:, i] - torch.stack(alone.logits)[:, 0]
        assert difference.abs().max() < 1e-5
    assert shared.cache.get_seq_length() == shared.tokens + (model.config.pre_seq_len or 0)  # fit for more


def generated(model, mode, rows, shared=None, **options):
    tokenizer = golden.tokenizer(mode)
    generation = GenerationConfig(pad_token_id=tokenizer.pad_token_id, max_new_tokens=9, min_new_tokens=9, **options)
    with torch.no_grad():
        return generate_batch(
            model, rows, pad_id=tokenizer.pad_token_id, generation_config=generation, device="cpu", shared=shared
        )


@pytest.mark.parametrize("prefix", ["none", "all layers", "embedding"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_batches_write_what_each_prompt_alone_does(mode, prefix, num_beams):
    model = model_with(mode, prefix)
    rows = prompts(mode)
    alone = [
        model.generate(
            torch.tensor([row]), max_new_tokens=9, min_new_tokens=9, do_sample=False, num_beams=num_beams
        )[0, len(row) :].tolist()
        for row in rows
    ]  # fmt: skip
    assert generated(model, mode, rows, num_beams=num_beams) == alone
    if mode != "glm":
        with torch.no_grad():
            shared = share_start(model, rows, "cpu")
        assert generated(model, mode, rows, shared, num_beams=num_beams) == alone
        assert generated(model, mode, rows[1:2], shared, num_beams=num_beams) == alone[1:2]


def test_nothing_is_shared_where_nothing_is_gained(mode):
    model = golden.shared_model(mode)
    plain, penalised = GenerationConfig(), GenerationConfig(repetition_penalty=1.2)
    common = [[5, 6, 7], [5, 6, 8, 9]]
    assert share_prompts(model, [[5, 6, 7], [6, 6, 7]], generation_config=plain, device="cpu") is None
    assert share_prompts(model, [[5, 6, 7]], generation_config=plain, device="cpu") is None
    assert share_prompts(model, common, generation_config=penalised, device="cpu") is None
    if mode != "glm":
        assert share_prompts(model, common, generation_config=plain, device="cpu").tokens == 2


def test_a_cache_with_room_is_the_plain_one():
    draw = torch.Generator().manual_seed(0)
    plain, roomy = DynamicCache(), batch_cache(2)
    for length in (3, 1, 1, ROOM, 1, 2 * ROOM, 1):
        new = torch.randn(2, 2, 2, length, 4, generator=draw)  # key and value, [2, 2 rows, 2 heads, length, 4]
        for got, wanted in zip(roomy.update(*new, 0), plain.update(*new, 0), strict=True):
            assert torch.equal(got, wanted)
        for cache in (roomy, plain):
            cache.reorder_cache(torch.tensor([1, 0]))
    stores = set()
    for _ in range(ROOM):
        roomy.update(*new[..., :1, :], 0)
        stores.add(roomy.layers[0].key_store.data_ptr())
    assert len(stores) == 1  # nothing but the new token was written
