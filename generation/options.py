"""How answers are generated: greedily, sampled, or by a beam search."""

from dataclasses import dataclass

from transformers import GenerationConfig

from generation.models import FoundModel


@dataclass(frozen=True)
class GenerationOptions:
    """The flags of predict.py of these names."""

    max_new_tokens: int = 512
    max_len: int | None = None
    batch_size: int = 16
    do_sample: bool = False
    temperature: float = 0.95
    top_p: float = 0.7
    top_k: int = 0
    num_beams: int = 1
    repetition_penalty: float = 1.0
    seed: int = 1234

    @property
    def sampling(self) -> dict[str, float]:
        """What --do_sample gives a meaning."""
        return {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}


def generation_config(found: FoundModel, options: GenerationOptions) -> GenerationConfig:
    """The options as transformers takes them; sampling values only where sampling is on."""
    return GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        do_sample=options.do_sample,
        num_beams=options.num_beams,
        repetition_penalty=options.repetition_penalty,
        eos_token_id=found.mode.stop_ids(found.tokenizer),
        pad_token_id=found.tokenizer.pad_token_id,
        **(options.sampling if options.do_sample else {}),
    )
