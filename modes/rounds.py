"""The prompt of numbered rounds ([Round 1] 问：… 答：…) of ChatGLM-6B and ChatGLM2-6B: from records to rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from conversation import Record
from modes import rows
from modes.tokenizer import Tokenizer


@dataclass(frozen=True)
class RoundPrompt:
    """The text of a prompt, and its surrounding ids.

    text: (record, number of rounds to drop) -> the text of the prompt without its oldest rounds.
    marker: the end of the prompt, after which the model answers.
    before, behind: ids before and after the text. unsupervised: number of ids in `behind` that are not supervised.
    """

    text: rows.PromptText
    marker: str
    before: Callable[[Tokenizer], list[int]]
    behind: Callable[[Tokenizer], list[int]]
    unsupervised: int

    def encode_arrays(
        self, tokenizer: Tokenizer, records: Sequence[Record], max_len: int, max_src_len: int, loss_on: str = "last"
    ) -> rows.FlatRows:
        """Training rows, see `modes.rows.join_rows`. Only the last answer is supervised, for any `loss_on`: every
        other one needs its own row."""
        before, behind, end = self.before(tokenizer), self.behind(tokenizer), tokenizer.eos_token_id
        limit = rows.room_for_prompt(max_len, max_src_len, len(before) + len(behind))
        texts = [self.text(record) for record in records] + [rows.last_answer(record) for record in records]
        ids = rows.encode_all(tokenizer, texts)
        sources, answers = ids[: len(records)], ids[len(records) :]

        def cut_row(i: int) -> rows.Row:
            source, was_cut = rows.fit(tokenizer, records[i], self.text, sources[i].tolist(), limit, self.marker)
            supervised_from = len(before) + len(source) + self.unsupervised
            return rows.row(before + source + behind, supervised_from, answers[i].tolist(), end, max_len, was_cut)

        return rows.join_rows(
            sources,
            answers,
            before=before,
            behind=behind,
            unsupervised=self.unsupervised,
            end=end,
            limit=limit,
            max_len=max_len,
            odd_row=cut_row,
        )

    def prompt_ids(
        self, tokenizer: Tokenizer, record: Record, max_src_len: int | None = None, max_len: int | None = None
    ) -> list[int]:
        """All ids before the first answer token; with the limits of training, the same ids as in training."""
        before, behind = self.before(tokenizer), self.behind(tokenizer)
        source = tokenizer.encode_texts([self.text(record)], num_threads=1)[0]
        limit = rows.prompt_limit(max_len, max_src_len, len(before) + len(behind))
        return before + rows.fit(tokenizer, record, self.text, source, limit, self.marker)[0] + behind


def stop_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids that end an answer."""
    return [tokenizer.eos_token_id]


def answer_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of generated ids, up to the end token."""
    return tokenizer.decode(rows.until_stop(ids, stop_ids(tokenizer)))
