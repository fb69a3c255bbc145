"""ChatGLM3-6B: the model of ChatGLM2-6B with ChatGLM3's config."""

from modes.glm2 import modeling
from modes.glm3.configuration import ChatGLMConfig


class ChatGLMForConditionalGeneration(modeling.ChatGLMForConditionalGeneration):
    """See `modes.glm2.modeling`; `from_pretrained` reads the config as ChatGLM3's."""

    config_class = ChatGLMConfig
    config: ChatGLMConfig
