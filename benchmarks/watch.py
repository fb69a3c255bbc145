"""Sample a value that has no peak counter, such as resident memory."""

import threading
from collections.abc import Callable
from typing import Self


class Peak(threading.Thread):
    """The highest value of a measure above its value at the start, while the block of `with` runs.

    measure: () -> such as bytes of resident memory. seconds: between two samples.
    """

    def __init__(self, measure: Callable[[], int], seconds: float):
        super().__init__(daemon=True)
        self.measure, self.seconds, self.ended = measure, seconds, threading.Event()
        self.before, self.peak = measure(), 0

    def run(self) -> None:
        ended = False
        while not ended:
            self.peak = max(self.peak, self.measure() - self.before)
            ended = self.ended.wait(self.seconds)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()
