"""ChatGLM3-6B: the official config keys, which are those of ChatGLM2-6B."""

from huggingface_hub.dataclasses import strict

from modes.glm2 import configuration


@strict
class ChatGLMConfig(configuration.ChatGLMConfig):
    """As ChatGLM2's, but `rope_ratio` of the long releases (32k, 128k) multiplies the base of the rotary angles."""

    @property
    def rotary_scale(self) -> tuple[float, float]:
        """(base of the rotary angles, divisor of the positions)."""
        return configuration.ROTARY_BASE * self.rope_ratio, 1
