"""Which generation a base directory is: "glm", "glm2" or "glm3". All three call themselves "chatglm".

ChatGLM-6B has config keys of its own. ChatGLM2 and ChatGLM3 have the same keys, the same tensors and the same
tokenizer.model; only ChatGLM3's code gives roles such as <|user|> an id. What tells them apart is listed in `_clues`,
most reliable first. Nothing that transformers adds when it saves a base again (`classifier_dropout`, versions) does.
"""

import json
import re

from errors import UserError

MODEL_NAMES = {"glm": "ChatGLM-6B", "glm2": "ChatGLM2-6B", "glm3": "ChatGLM3-6B"}
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
# Where role tokens stand in a base whose tokenizer knows them. The code is searched for them, never run.
TOKENIZER_TEXTS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
CODE = ("tokenization_chatglm.py", "modeling_chatglm.py")
GLM2_PROMPT = "build_prompt"  # the method of ChatGLM2's tokenizer that writes a chat
LARGEST_TEXT = 10 * 2**20  # bytes; a larger file is not searched
# Context lengths that one generation alone was published with: ChatGLM3-6B and ChatGLM3-6B-128k.
LENGTHS = {8192: "glm3", 131072: "glm3"}
HUB = re.compile(r"(?:THUDM|zai-org|ZhipuAI|AI-ModelScope)(?:/|--)(chatglm[23]-6b|codegeex2-6b)", re.IGNORECASE)
NAME = re.compile(r"(chatglm[23]|codegeex2)-6b", re.IGNORECASE)
GLM4_VOCABULARY = 151552


def choose_mode(path, config, tokenizer_config, given=None, recorded=None):
    """(generation of a base, a note for the user where only `given` or a weak clue decides, else "").

    Args:
        path: the base directory (Path), whose tokenizer and code files are searched.
        config, tokenizer_config: contents of its JSON files; {} for a missing tokenizer_config.json.
        given: what --mode says. It decides where the files do not.
        recorded: what the record of a checkpoint says that was trained on the base. It decides where `given` is None.

    Raises UserError: it is none of the three, it is another one than `given`, or nothing tells which.
    """
    sure, found, clue = _detect(path, config, tokenizer_config)
    if sure and given not in (None, found):
        raise UserError(f"{path} holds a {found} model, not {given}: use --mode {found} ({clue}).")
    if sure or (found and found == given):
        return found, ""
    if given == "glm":
        raise UserError(f"{path} holds a glm2 or glm3 model, not glm: use --mode glm2 or --mode glm3 ({clue}).")
    if given:
        reason = f"{clue} suggests {found}" if found else "its files fit ChatGLM2-6B and ChatGLM3-6B alike"
        return given, f"{path} is used as {MODEL_NAMES[given]}, as --mode says; {reason}."
    chosen = recorded if recorded in ("glm2", "glm3") else found
    if chosen is None:
        raise UserError(f"{path} fits ChatGLM2-6B and ChatGLM3-6B alike: add --mode glm2 or --mode glm3.")
    return chosen, ""


def _detect(path, config, tokenizer_config):
    """(is the clue reliable, generation or None, the clue in words). Raises UserError if it is no ChatGLM."""
    if "position_encoding_2d" in config or "inner_hidden_size" in config:
        return True, "glm", "config.json has keys of ChatGLM-6B"
    if config.get("padded_vocab_size") == GLM4_VOCABULARY:
        raise UserError(
            f"{path / 'config.json'} describes GLM-4 (padded_vocab_size {GLM4_VOCABULARY}), which is not supported: "
            "use a ChatGLM-6B, ChatGLM2-6B or ChatGLM3-6B base."
        )
    if "multi_query_group_num" not in config or "padded_vocab_size" not in config:
        found = config.get("model_type", "no model_type")
        raise UserError(
            f"config.json describes {found}, not ChatGLM: use a ChatGLM-6B, ChatGLM2-6B or ChatGLM3-6B base."
        )
    return next(_clues(path, config, tokenizer_config), (False, None, "config.json has no key of ChatGLM-6B"))


def _clues(path, config, tokenizer_config):
    """Yields (is it reliable, generation, the clue in words) of a ChatGLM2 or ChatGLM3, most reliable first."""
    for name in TOKENIZER_TEXTS:
        token = _first_role(_read(path / name))
        if token:
            yield True, "glm3", f"{name} has {token}"
    code = {name: _read(path / name) for name in CODE}
    for name, text in code.items():
        if _first_role(text):
            yield True, "glm3", f"{name} has {_first_role(text)}"
    for name, text in code.items():
        if GLM2_PROMPT in text:
            yield True, "glm2", f"{name} has {GLM2_PROMPT}"
    names = [config.get("_name_or_path"), json.dumps(config.get("auto_map")), tokenizer_config.get("name_or_path")]
    for pattern, reliable in ((HUB, True), (NAME, False)):
        for name in names:
            match = pattern.search(str(name))
            if match:
                yield reliable, "glm3" if "3" in match[1] else "glm2", f"the name {match[0]}"
    if "interleaved_qkv" in config:
        yield False, "glm2", "interleaved_qkv of CodeGeeX2"
    length = config.get("seq_length")
    if type(length) is int and length in LENGTHS:
        yield False, LENGTHS[length], f"seq_length {length}"


def _first_role(text):
    return next((token for token in ROLE_TOKENS if token in text), None)


def _read(file):
    """The text of a file; "" where it is missing, unreadable or too large to be what it should."""
    try:
        if file.stat().st_size > LARGEST_TEXT:
            return ""
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
