"""Says what goes on: one line in place on a terminal, a line for each step elsewhere."""
import shutil
import sys
import threading
import time

TICK = 0.5  # seconds: on a terminal the clock runs, so that a long step is seen to be alive


class Progress:
    """STEP is what is being done; DETAIL changes often, and shows on a terminal only."""

    def __init__(self, stream=sys.stderr):
        self.stream = stream
        self.in_place = stream.isatty()
        self.started = time.monotonic()
        self.lock = threading.Lock()
        self.text = self.step_text = None
        if self.in_place:
            threading.Thread(target=self._tick, daemon=True).start()

    def step(self, text):
        self.finish()
        self._show(text, text)

    def detail(self, text):
        if self.in_place:
            self._show(self.step_text, f"{self.step_text}: {text}")

    def finish(self, result=None):
        """Leaves the step's line standing, with its result."""
        if self.step_text and result:
            self._show(self.step_text, f"{self.step_text}: {result}")
        with self.lock:
            if self.step_text and self.in_place:
                self.stream.write("\n")
                self.stream.flush()
            self.step_text = None

    def _show(self, step, text):
        with self.lock:
            self.step_text, self.text = step, text
            self._write()

    def _write(self):
        line = f"[{time.monotonic() - self.started:5.1f} s] {self.text}"
        if self.in_place:
            self.stream.write(f"\r\033[K{line[: shutil.get_terminal_size().columns - 1]}")
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def _tick(self):
        while True:
            time.sleep(TICK)
            with self.lock:
                if self.step_text:
                    self._write()
