"""Ctrl-C and SIGTERM at a moment that suits us."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn


class Interruption:
    """While entered, it only notes the first SIGINT or SIGTERM; on exit it raises it again. A second one acts at once.

    Signals that are ignored stay ignored. Outside the main thread, where Python handles no signals, it does nothing.

    Attributes:
        signal: the one that was noted, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.handlers: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self.handlers[number] = signal.signal(number, self.note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.restore()
        if self.signal is not None:
            signal.raise_signal(self.signal)

    def stop(self, number: int) -> NoReturn:
        """Stop here, because this signal was noted, by this process or by one that trains with it.

        Raises:
            KeyboardInterrupt: likewise.
        """
        self.signal = self.signal or number
        raise KeyboardInterrupt

    def heed(self) -> None:
        """Stop if this process was asked to."""
        if self.signal is not None:
            self.stop(self.signal)

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.signal is not None:
            self.restore()
            signal.raise_signal(number)
        self.signal = number

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        while self.handlers:
            number, handler = self.handlers.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
