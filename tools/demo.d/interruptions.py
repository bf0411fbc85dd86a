"""Ctrl-C and SIGTERM as an exception that never comes between the start of something and the note that it must be ended."""
import contextlib
import signal

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asked for the end: all that was started is ended on the way out."""

    def __init__(self, number):
        super().__init__(number)
        self.number = number


class Interruptions:
    """Takes the signals over, for the main thread."""

    def __init__(self):
        self.holds, self.number = 0, None
        for number in SIGNALS:
            signal.signal(number, self._arrive)

    def _arrive(self, number, _frame):
        for ignored in SIGNALS:
            signal.signal(ignored, signal.SIG_IGN)  # ending takes a moment, and is not to be interrupted itself
        self.number = number
        if not self.holds:
            raise Interrupted(number)

    @contextlib.contextmanager
    def held(self):
        """Puts an interruption off until the block has ended."""
        self.holds += 1
        try:
            yield
        finally:
            self.holds -= 1
        if self.number and not self.holds:
            raise Interrupted(self.number)
