"""ChatGLM3-6B tokenizer: ChatGLM2's, with four roles after its commands."""

from collections.abc import Sequence

from transformers import BatchEncoding

from conversation import ROLES, Message, join_tools
from modes.glm2.tokenization import COMMANDS
from modes.glm2.tokenization import ChatGLMTokenizer as ChatGLM2Tokenizer


class ChatGLMTokenizer(ChatGLM2Tokenizer):
    """Chats are lists of messages, each a role command, a metadata line and its content."""

    commands = COMMANDS + tuple(f"<|{role}|>" for role in ROLES)

    def _convert_id_to_token(self, index: int) -> str:
        """As in ChatGLM2, but commands and roles are decoded to text."""
        return self.command_names[index] if index in self.command_names else super()._convert_id_to_token(index)

    def build_single_message(self, role: str, metadata: str, message: str) -> list[int]:
        """Ids of one message. `metadata` is a tool's name, or empty. Raises ValueError for an unknown role."""
        if role not in ROLES:
            raise ValueError(f"The role is {role!r}: use one of {', '.join(ROLES)}.")
        head, body = self.encode_texts([f"{metadata}\n", message], num_threads=1)
        return [self.get_command(f"<|{role}|>")] + head + body

    def build_chat_input(
        self, query: str, history: Sequence[Message] | None = None, role: str = "user"
    ) -> BatchEncoding:
        """Encode a chat up to the start of the assistant's message.

        Args:
            query: content of the last message, sent by `role`.
            history: earlier messages {"role", "content", "metadata"?, "tools"?}; a system message may have tools.

        Returns: BatchEncoding with `input_ids` and `attention_mask`, tensors [1, s].
        """
        ids: list[int] = []
        for message in history or []:
            content = message["content"]
            if message["role"] == "system" and "tools" in message:
                content = join_tools(content, message["tools"])
            ids += self.build_single_message(message["role"], message.get("metadata", ""), content)
        ids += self.build_single_message(role, "", query) + [self.get_command("<|assistant|>")]
        ids = self.build_inputs_with_special_tokens(ids)
        return BatchEncoding({"input_ids": [ids], "attention_mask": [[1] * len(ids)]}, tensor_type="pt")
