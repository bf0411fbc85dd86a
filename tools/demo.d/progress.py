"""Says what goes on: one line in place on a terminal, a line for each step elsewhere."""
import shutil
import sys
import time


class Progress:
    """STEP is what is being done; DETAIL changes often, and shows on a terminal only."""

    def __init__(self, stream=sys.stderr):
        self.stream = stream
        self.in_place = stream.isatty()
        self.started = time.monotonic()
        self.step_text = None

    def step(self, text):
        self.finish()
        self.step_text = text
        self._show(text)

    def detail(self, text):
        if self.in_place:
            self._show(f"{self.step_text}: {text}")

    def finish(self, result=None):
        """Leaves the step's line standing, with its result."""
        if self.step_text and (self.in_place or result):
            self._show(f"{self.step_text}: {result}" if result else self.step_text)
        if self.step_text and self.in_place:
            self.stream.write("\n")
        self.step_text = None
        self.stream.flush()

    def _show(self, text):
        line = f"[{time.monotonic() - self.started:5.1f} s] {text}"
        if self.in_place:
            width = shutil.get_terminal_size().columns
            self.stream.write(f"\r\033[K{line[: width - 1]}")
        else:
            self.stream.write(line + "\n")
        self.stream.flush()
