"""Runs `faultline serve` and its command line."""
import json
import os
import pathlib
import select
import signal
import socket
import subprocess

TIMEOUT = 60  # seconds


class ServerError(Exception):
    """Says which command failed, with what it had to say."""


class Server:
    """A page server of our own. Start it from the main thread: it dies with the thread that started it."""

    def __init__(self, binary, directory, *options, environment=None):
        self.binary = str(binary)
        self.run_dir = pathlib.Path(directory) / "run"
        self.log = pathlib.Path(directory) / "serve.log"
        notify_path = pathlib.Path(directory) / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, open(self.log, "wb") as stderr:
            notify.bind(str(notify_path))
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", "--", self.binary, "serve", "--run-dir", str(self.run_dir), *options],
                env={**os.environ, **(environment or {}), "NOTIFY_SOCKET": str(notify_path)}, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr,
                start_new_session=True,
            )  # fmt: skip
            self._wait_ready(notify)
        notify_path.unlink()

    def _wait_ready(self, notify):
        ended = os.pidfd_open(self.process.pid)
        try:
            while True:
                ready, _, _ = select.select([notify, ended], [], [], TIMEOUT)
                if notify in ready and b"READY=1" in notify.recv(4096).split(b"\n"):
                    return
                if ended in ready or not ready:
                    raise ServerError(f"`faultline serve` did not start: {self.said() or 'it said nothing'}")
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            os.close(ended)

    def said(self):
        return self.log.read_text(errors="replace").strip()

    def command(self, *arguments):
        """The command line that does this on this server."""
        return [self.binary, *map(str, arguments), "--run-dir", str(self.run_dir)]

    def run(self, *arguments):
        """Does it, and returns what it printed."""
        return finish(subprocess.Popen(self.command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))

    def show(self, fork):
        return json.loads(self.run("fork", "show", fork, "--json"))

    def wait(self, fork, milestone):
        """Starts a `fork wait`; `finish` then gives what `show` would."""
        return subprocess.Popen(
            self.command("fork", "wait", fork, "--for", milestone, "--timeout", TIMEOUT, "--json"),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def stop(self):
        """SIGTERM; returns the exit status. Stopping twice is fine."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise ServerError(f"`faultline serve` did not end within {TIMEOUT} s of SIGTERM: {self.said()}") from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def finish(process):
    """Waits for a command that was started here; its output, or ServerError."""
    try:
        output, errors = process.communicate(timeout=2 * TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise ServerError(f"`{' '.join(process.args[:4])}` did not end") from None
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode != 0:
        raise ServerError(f"`{' '.join(process.args)}` failed with {process.returncode}: {errors.strip()}")
    return output
