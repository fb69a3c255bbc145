"""Compare values over all ranks; a difference is an error."""

import json
from collections.abc import Mapping

from errors import UserError
from parallel import ranks

SHOWN = 3  # differences that an error names


def agree(facts: Mapping[str, object], remedy: str) -> None:
    """Compare facts over all ranks; collective.

    Args:
        facts: short values by their name in the error.
        remedy: how to make them equal.

    Raises:
        UserError: what differs and where; the same on every rank.
    """
    everyone = ranks.gathered(facts)
    names = list(dict.fromkeys(name for theirs in everyone for name in theirs))
    different = [name for name in names if any(theirs.get(name) != everyone[0].get(name) for theirs in everyone)]
    if different:
        clauses = [describe(name, [theirs.get(name) for theirs in everyone]) for name in different[:SHOWN]]
        more = f"; {len(different) - SHOWN} more differ" if len(different) > SHOWN else ""
        raise UserError(f"the ranks differ: {'; '.join(clauses)}{more}: {remedy}.")


def describe(name: str, values: list) -> str:
    """ "--max_len is 256 on rank 0 and 1 (host a), 128 on rank 2 (host b)"; `values` are in rank order."""
    texts = [json.dumps(value, default=str) for value in values]
    parts = []
    for text in dict.fromkeys(texts):
        members = [peer for peer, its_text in zip(ranks.peers(), texts, strict=True) if its_text == text]
        numbers = " and ".join(str(peer.rank) for peer in members)
        hosts = " and ".join(dict.fromkeys(peer.host for peer in members))
        parts.append(f"{text.strip(chr(34))} on rank {numbers} ({hosts})")
    return f"{name} is {', '.join(parts)}"
