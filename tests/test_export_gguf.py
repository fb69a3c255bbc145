"""GGUF files in llama.cpp: probabilities, greedy answers, quantized values, token ids and prompts are ours."""

import ctypes
import json
import random
import re
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece_model_pb2

import merge_lora
from errors import UserError
from export.gguf import check_gguf, write_gguf
from generation.models import load_answerer
from modes.directory import iterate_shards, read_base
from options.merge import MERGE
from tests import golden
from tests.bases import write_base
from tests.launch import GOLDEN, REPOSITORY

gguf = pytest.importorskip("gguf")
llama_cpp = pytest.importorskip("llama_cpp")
gguf_file = pytest.importorskip("export.gguf_file")
KINDS = MERGE.flags["quantize"].choices

SHAPES = {
    "every-head-a-group": ("glm3", {"multi_query_group_num": 4}),
    "one-group": ("glm2", {"multi_query_group_num": 1}),
    "head-size": ("glm3", {"num_attention_heads": 2, "kv_channels": 32}),
    "no-bias": ("glm2", {"add_qkv_bias": False}),
    "one-layer": ("glm3", {"num_layers": 1}),
    "long-glm2": ("glm2", {"rope_ratio": 8}),
    "long-glm3": ("glm3", {"rope_ratio": 50}),
    "rows-in-no-blocks": ("glm3", {"hidden_size": 48, "kv_channels": 12, "ffn_hidden_size": 80}),
}


@pytest.fixture(autouse=True)
def without_amx(monkeypatch):
    """llama-cpp-python 0.3.36 crashes with quantized weights in its code for AMX on some CPUs that have it."""
    default_params = llama_cpp.llama_cpp.llama_model_default_params

    def plain_params():
        params = default_params()
        params.use_extra_bufts = False
        return params

    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", plain_params)


def make_base(directory, mode, **config):
    """A random base with other sizes than the golden one."""
    return read_base(write_base(directory, mode, **config), mode)


def golden_base(mode):
    return read_base(golden.base_path(mode))


def write(base, directory, quantize="f16"):
    """The path of the base's GGUF file."""
    check_gguf(base)
    tensors = chain.from_iterable(shard.items() for _, shard in iterate_shards(base))
    size = write_gguf(base, tensors, directory, quantize)
    file = directory / f"model-{quantize}.gguf"
    assert file.stat().st_size == size
    return file


def load(file, **options):
    """A model in llama.cpp, with the keys and values of attention in float32."""
    given = {"n_ctx": 512, "n_threads": 1, "verbose": False, "type_k": 0, "type_v": 0, **options}
    return llama_cpp.Llama(str(file), **given)


def log_probs(llama, ids):
    """Log-probabilities [s, v] of the token after each id, in llama.cpp."""
    llama.reset()
    llama.eval(ids)
    return torch.from_numpy(np.array(llama.scores[: len(ids)])).log_softmax(-1)


def our_model(base):
    return base.generation.model_class.from_pretrained(base.path, dtype=torch.float32).eval().requires_grad_(False)


def our_greedy(model, ids, count):
    """The most probable next `count` ids, end tokens included."""
    for _ in range(count):
        ids = ids + [model(torch.tensor([ids])).logits[0, -1].argmax().item()]
    return ids[-count:]


def in_llama_as_ours(base, file, model=None):
    """Check probabilities and greedy ids of a float16 file; model: ours, if it is not the base's."""
    llama, model, mode = load(file, logits_all=True), model or our_model(base), base.generation
    tokenizer = base.make_tokenizer()
    ids = mode.prompt_ids(tokenizer, golden.RECORDS[4])
    assert len(ids) > 100
    ours = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert (ours - log_probs(llama, ids)).abs().max() < 5e-3
    llama.reset()
    theirs = [index for index, _ in zip(llama.generate(ids, temp=0.0), range(16), strict=False)]
    assert theirs == our_greedy(model, ids, 16)


@pytest.mark.parametrize("mode", ["glm2", "glm3"])
def test_a_golden_base_in_llama(mode, tmp_path):
    base = golden_base(mode)
    in_llama_as_ours(base, write(base, tmp_path))


@pytest.mark.parametrize("mode", ["glm2", "glm3"])
def test_a_merged_checkpoint_in_llama(mode, tmp_path, capsys):
    """The whole command, from an adapter to a file whose directory has any name."""
    base, adapter = golden_base(mode), GOLDEN / mode / "adapter_lora_all"
    words = ["--ori_model_dir", str(base.path), "--model_dir", str(adapter), "--output_dir", str(tmp_path / "my-llama")]
    merge_lora.main([*words, "--format", "gguf"])
    printed = capsys.readouterr().out
    before, after = re.search(
        r"perplexity on \d+ tokens of 5 general answers is (\S+) merged, (\S+) as f16", printed
    ).groups()
    assert float(after) == pytest.approx(float(before), rel=1e-3)
    in_llama_as_ours(base, tmp_path / "my-llama" / "model-f16.gguf", load_answerer(adapter, base.path).model)


@pytest.mark.parametrize("case", SHAPES)
def test_other_shapes_in_llama(case, tmp_path):
    mode, config = SHAPES[case]
    base = make_base(tmp_path / "phi-3-chatglm-6b", mode, **config)  # llama.cpp looks for other models in names
    in_llama_as_ours(base, write(base, tmp_path))


@pytest.mark.parametrize("quantize", ["q8_0", "q5_1", "q4_0"])
def test_quantized_values_are_those_of_llama(quantize, tmp_path):
    """Bytes are what ggml packs, and ggml unpacks the values that the file stands for."""
    base = golden_base("glm3")
    ggml = ctypes.CDLL(str(next((llama_cpp.llama_cpp._base_path).glob("libggml-base.*"))))
    floats = ctypes.POINTER(ctypes.c_float)
    sources = {name: tensor.float().numpy() for _, shard in iterate_shards(base) for name, tensor in shard.items()}
    embedding = sources["transformer.embedding.word_embeddings.weight"]
    reader = gguf.GGUFReader(write(base, tmp_path, quantize))
    stored = {tensor.name: tensor for tensor in reader.tensors}
    assert len(stored) == sum(not name.endswith("inv_freq") for name in sources)
    tensor = stored["token_embd.weight"]
    assert tensor.tensor_type.name == quantize.upper()
    packed = np.zeros(tensor.n_bytes, np.uint8)
    rows, columns = map(ctypes.c_int64, embedding.shape)
    ggml.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, floats, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
    ]  # fmt: skip
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk(
        tensor.tensor_type, embedding.ctypes.data_as(floats), packed.ctypes.data, 0, rows, columns, None
    )
    assert (packed == tensor.data.reshape(-1)).all()
    unpacked = np.zeros_like(embedding)
    unpack = ggml[f"dequantize_row_{quantize}"]
    unpack.argtypes = [ctypes.c_void_p, floats, ctypes.c_int64]
    unpack(tensor.data.ctypes.data, unpacked.ctypes.data_as(floats), embedding.size)
    assert (unpacked == gguf.dequantize(tensor.data, tensor.tensor_type)).all()
    steps = {"q8_0": 127, "q5_1": 15, "q4_0": 7}[quantize]
    assert np.abs(unpacked - embedding).max() < np.abs(embedding).max() / steps


def test_types_of_tensors(tmp_path):
    """Norms and biases are float32, the output layer has 8 bits, rows that are not whole blocks are float16."""
    base = golden_base("glm2")  # whose MLP has rows of 112
    stored = {t.name: t.tensor_type.name for t in gguf.GGUFReader(write(base, tmp_path, "q4_0")).tensors}
    assert stored["output.weight"] == "Q8_0" and stored["token_embd.weight"] == "Q4_0"
    assert stored["blk.0.attn_norm.weight"] == stored["blk.0.attn_qkv.bias"] == "F32"
    assert stored["blk.0.ffn_down.weight"] == "F16" and stored["blk.0.ffn_up.weight"] == "Q4_0"


@pytest.mark.parametrize("mode", ["glm2", "glm3"])
def test_ids_of_plain_text(mode, tmp_path):
    """Texts with the names of special tokens, bytes and parts of words; the names stay text."""
    base = golden_base(mode)
    llama, tokenizer = load(write(base, tmp_path), vocab_only=True), base.make_tokenizer()
    draw = random.Random(0)
    pieces = [tokenizer.sp_model.id_to_piece(i).replace("▁", " ") for i in range(3, 2400)]
    odd = " |  |\n|\r\n|\t|<s>|</s>|<unk>|<0x0A>|philosophy|people|sop|<sop>|[gMASK]|[PAD2420]|▁|😀|\ufeff|\x00|é"
    parts = pieces + [*odd.split("|"), "<|user|>", "<|endoftext|>"] * 20
    for _ in range(3000):
        text = "".join(draw.choice(parts) for _ in range(draw.randint(0, 12)))
        theirs = llama.tokenize(text.encode(), add_bos=True, special=False)
        assert theirs == tokenizer.encode_texts([text])[0], repr(text)


@pytest.mark.parametrize("mode", ["glm2", "glm3"])
def test_special_tokens(mode, tmp_path):
    """Ids that end an answer; in a prompt only names of special tokens are recognized, not HTML or parts of words."""
    base = golden_base(mode)
    llama, tokenizer = load(write(base, tmp_path), vocab_only=True), base.make_tokenizer()
    vocab = llama._model.vocab
    ends = [index for index in range(llama.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocab, index)]
    assert ends == sorted(base.generation.stop_ids(tokenizer))
    text = "philosophy of people: <s>old</s> <unk> sop eop"
    assert llama.tokenize(text.encode(), special=True) == tokenizer.encode_texts([text])[0]
    assert llama.tokenize(b"[gMASK]<sop>", special=True) == tokenizer.get_prefix_tokens()


def conversations(draw, roles):
    """Conversations of all roles, with contents that begin with spaces, are empty, or hold what templates use."""
    parts = ["你好", "Hello", " ", "  ", "\n", "philosophy", "sop", "<s>", "问：", "[Round 1]", "{{ x }}", "&<>'\""]

    def text():
        return "".join(draw.choice(parts) for _ in range(draw.randint(0, 5)))

    for _ in range(300):
        messages = [{"role": "system", "content": text()}] if draw.random() < 0.4 else []
        for _ in range(draw.randint(0, 3)):
            messages.append({"role": "user", "content": text()})
            if "observation" in roles and draw.random() < 0.3:
                call = {"role": "assistant", "metadata": draw.choice(["", "get_weather"]), "content": "x"}
                messages += [call, {"role": "observation", "content": text()}]
            # llama.cpp gives answers with the space in front of them, which the template does not repeat
            messages.append({"role": "assistant", "content": text().lstrip(" ")})
        yield [*messages, {"role": "user", "content": text()}]


@pytest.mark.parametrize("mode", ["glm2", "glm3"])
def test_chat_template(mode, tmp_path):
    """The ids of a chat are those of training, in the file's own template, also after an answer as generated."""
    base = golden_base(mode)
    llama, tokenizer, generation = load(write(base, tmp_path), vocab_only=True), base.make_tokenizer(), base.generation
    template = llama_cpp.llama_chat_format.Jinja2ChatFormatter(
        template=llama.metadata["tokenizer.chat_template"], eos_token="<|endoftext|>", bos_token=""
    )
    for messages in conversations(random.Random(2), generation.roles):
        expected = generation.prompt_ids(tokenizer, {"messages": messages, "ready": False})
        generated = [
            {**message, "content": " " + message["content"]}
            if message["role"] == "assistant" and message["content"]
            else message
            for message in messages
        ]
        for said in (messages, generated):
            ids = llama.tokenize(template(messages=said).prompt.encode(), special=True)
            assert ids == expected, said


def test_chat_completion(tmp_path):
    """The whole way through llama-cpp-python: the answer to a chat is the greedy answer to our prompt."""
    base = golden_base("glm3")
    llama = load(write(base, tmp_path))
    record = {"instruction": "你是谁", "input": "？"}
    chat = llama.create_chat_completion([{"role": "user", "content": "你是谁？"}], temperature=0, max_tokens=8)
    ids = base.generation.prompt_ids(base.make_tokenizer(), record)
    assert chat["usage"]["prompt_tokens"] == len(ids)
    expected = llama.detokenize(our_greedy(our_model(base), ids, 8)).decode("utf-8", errors="ignore")
    assert chat["choices"][0]["message"]["content"] == expected


def test_modelfile(tmp_path):
    base = golden_base("glm3")
    write(base, tmp_path, "q4_0")
    first, *_, end, user, observation, context = (tmp_path / "Modelfile").read_text(encoding="utf-8").splitlines()
    assert first == "FROM ./model-q4_0.gguf"
    assert (end, context) == ('PARAMETER stop "<|endoftext|>"', "PARAMETER num_ctx 8192")
    assert (user, observation) == ('PARAMETER stop "<|user|>"', 'PARAMETER stop "<|observation|>"')


@pytest.mark.parametrize("mode", ["glm2", "glm3"])
@pytest.mark.skipif(shutil.which("go") is None, reason="Ollama's templates are Go's, which is not installed")
def test_template_of_ollama(mode, tmp_path):
    """Go renders the Modelfile's template to our prompt."""
    base = golden_base(mode)
    llama, tokenizer = load(write(base, tmp_path), vocab_only=True), base.make_tokenizer()
    template = (tmp_path / "Modelfile").read_text(encoding="utf-8").split('"""')[1]
    chats = [
        [{**message, "metadata": ""} for message in messages]  # Ollama has none
        for messages in conversations(random.Random(3), base.generation.roles)
    ]
    lines = "".join(
        json.dumps({"Template": template, "Messages": chat}).replace('"observation"', '"tool"') for chat in chats
    )
    program = Path(__file__).with_name("render_go_template.go")
    rendered = subprocess.run(["go", "run", program], input=lines, capture_output=True, text=True, check=True).stdout
    for chat, line in zip(chats, rendered.splitlines(), strict=True):
        ids = llama.tokenize(json.loads(line).encode(), special=True)
        assert ids == base.generation.prompt_ids(tokenizer, {"messages": chat, "ready": False}), chat


def trained(base, ids):
    """Tensors of a base after a few steps on a text, which give meaningful probabilities."""
    model = our_model(base).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    draw = random.Random(4)
    for _ in range(60):
        firsts = [draw.randrange(len(ids) - 128) for _ in range(4)]
        rows = torch.tensor([ids[first : first + 128] for first in firsts])
        logits = model(rows).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def test_perplexity_of_8_bits(tmp_path):
    base = golden_base("glm3")
    lines = (REPOSITORY / "data" / "spo_0.json").read_text(encoding="utf-8").splitlines()[:400]
    ids = base.make_tokenizer().encode_texts(["".join(json.loads(line)["input"] for line in lines)])[0]
    tensors, text = trained(base, ids[:-4000]), ids[-4000:]
    order = [name for _, shard in iterate_shards(base) for name in shard if name in tensors]
    losses = {}
    for quantize in ("f16", "q8_0"):
        write_gguf(base, [(name, tensors[name]) for name in order], tmp_path, quantize)
        found = log_probs(load(tmp_path / f"model-{quantize}.gguf", logits_all=True, n_ctx=4096), text)
        losses[quantize] = -found[:-1].gather(1, torch.tensor(text[1:])[:, None]).mean().item()
    assert losses["f16"] < 2.5  # nats; the random base has 7.8
    assert abs(np.exp(losses["q8_0"] - losses["f16"]) - 1) < 1e-3


@pytest.mark.parametrize("quantize", KINDS)
def test_every_quantization_answers(quantize, tmp_path):
    llama = load(write(golden_base("glm2"), tmp_path, quantize))
    assert (
        llama.create_completion("[gMASK]<sop>[Round 1]\n\n问：你是谁\n\n答：", max_tokens=4)["usage"][
            "completion_tokens"
        ]
        > 0
    )


def test_heads_of_another_width(tmp_path):
    base = make_base(tmp_path / "base", "glm3", kv_channels=32)
    with pytest.raises(UserError, match="num_attention_heads 4, kv_channels 32 and hidden_size 64"):
        check_gguf(base)


def test_biases_that_the_architecture_lacks(tmp_path):
    base = make_base(tmp_path / "base", "glm3", add_bias_linear=True)
    with pytest.raises(UserError, match="add_bias_linear true"):
        check_gguf(base)


def edit_vocabulary(base, edit):
    """Change the sentencepiece model of a base."""
    model = sentencepiece_model_pb2.ModelProto.FromString(base.vocabulary.read_bytes())
    edit(model)
    base.vocabulary.write_bytes(model.SerializeToString())


def test_vocabularies_that_llama_splits_differently(tmp_path):
    def without_space(model):
        model.normalizer_spec.add_dummy_prefix = False

    base = make_base(tmp_path / "base", "glm3")
    check_gguf(base)
    edit_vocabulary(base, without_space)
    with pytest.raises(UserError, match="is not a BPE model like the official one"):
        check_gguf(base)


def test_a_piece_with_the_name_of_a_special_token(tmp_path):
    """llama.cpp aborts the process if two ids have the same text."""

    def name_a_piece(model):
        model.pieces[-1].piece = "<sop>"

    base = make_base(tmp_path / "base", "glm3")
    edit_vocabulary(base, name_a_piece)
    with pytest.raises(UserError, match="has a piece '<sop>', the name of a special token in GGUF"):
        check_gguf(base)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=re.escape("is not installed: pip install -c constraints.txt -e '.[gguf]'")):
        check_gguf(golden_base("glm3"))


def test_values_that_float16_cannot_hold(tmp_path):
    base = golden_base("glm3")
    huge = ((name, tensor.float() * 1e6) for _, shard in iterate_shards(base) for name, tensor in shard.items())
    with pytest.raises(UserError, match="float16 cannot hold: use --quantize q8_0"):
        write_gguf(base, huge, tmp_path, "f16")


@pytest.mark.parametrize("quantize", KINDS)
def test_a_file_is_read_back(quantize, tmp_path):
    """As --verify does: the tensors by official name, off by no more than the type's precision."""
    base = golden_base("glm2")
    tensors = {name: tensor for _, shard in iterate_shards(base) for name, tensor in shard.items()}
    found = gguf_file.read_file(write(base, tmp_path, quantize), base)
    assert found.keys() == {name for name in tensors if not name.endswith("inv_freq")}
    for name, tensor in found.items():
        limit = {"f16": 0, "q8_0": 0.01, "q5_1": 0.05, "q4_0": 0.15}[quantize]
        assert (tensor - tensors[name].float()).abs().max() <= limit * tensors[name].float().abs().max()
