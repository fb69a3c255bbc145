"""scripts/write_flag_pages.py: the pages of flags are those of today's declarations."""

from options.chat import CHAT
from options.merge import MERGE
from options.predict import PREDICT
from options.serve import SERVE
from options.train import TRAIN
from scripts import write_flag_pages


def test_the_pages_are_current():
    for path, content in write_flag_pages.pages().items():
        assert path.read_text(encoding="utf-8") == content, f"run python scripts/write_flag_pages.py ({path.name})"


def test_every_flag_is_on_both_pages():
    for content in write_flag_pages.pages().values():
        for program in (TRAIN, PREDICT, MERGE, CHAT, SERVE):
            chapter = content.split(f"## {program.name}\n")[1]
            assert all(f"| `--{name}` |" in chapter for name in program.flags)
