"""One fork's life in the demo: started, asked, measured, checked, ended."""
import contextlib
import json
import random
import threading
import time

from vm import answer, proc, qemu
from vm.server import finish


class CheckFailed(Exception):
    """A guest or the server did not do what it must."""


class Runner:
    """What all forks share. Forks are started by the main thread and driven by any."""

    def __init__(self, template, server, preload, directory, interruptions):
        self.template, self.server, self.preload, self.directory = template, server, preload, directory
        self.interruptions = interruptions
        self.hot_list = directory / "hot-list"
        self.started = 0
        self.runs = []  # the figures of all forks so far

    def run(self, way, keep_list=False):
        """A fork alone, start to end."""
        with contextlib.ExitStack() as stack:
            fork = self._start(stack, way, at_once=1)
            fork.drive()
            if keep_list:
                self.server.run("fork", "hot-list", fork.name, "-o", self.hot_list)
        self.runs.append(fork.figures)

    def run_at_once(self, way, count):
        """So many forks at the same time."""
        forks, threads = [], []
        with contextlib.ExitStack() as stack:
            for _ in range(count):
                forks.append(self._start(stack, way, at_once=count))
                threads.append(threading.Thread(target=forks[-1].drive_quietly, daemon=True))
                threads[-1].start()
            for thread in threads:
                thread.join()
        for fork in forks:
            if fork.failure:
                raise fork.failure
            self.runs.append(fork.figures)

    def _start(self, stack, way, at_once):
        self.started += 1
        with self.interruptions.held():
            return stack.enter_context(Fork(self, way, at_once, f"{way}-{self.started}"))


class Fork:
    def __init__(self, runner, way, at_once, name):
        self.way, self.name, self.server, self.template = way, name, runner.server, runner.template
        self.failure = None
        self.prefetched = None
        self.figures = {"name": name, "way": way, "at_once": at_once}
        socket = self._create(runner.hot_list)
        if way == "prefetch":
            self.prefetched = self.server.wait(name, "prefetched")
        self.vm = qemu.fork(runner.template, runner.directory, name, preload=runner.preload, uffd_socket=socket)

    def _create(self, hot_list):
        if self.way == "plain":
            return None
        options = {"demand": [], "record": ["--record"], "prefetch": ["--prefetch", "eager", "--hot-list", hot_list]}[self.way]
        return self.server.run("fork", "create", "base", "--id", self.name, *options).strip()

    def drive_quietly(self):
        try:
            self.drive()
        except Exception as error:  # pylint: disable=broad-except # raised again by the main thread
            self.failure = error

    def drive(self):
        vm = self.vm
        vm.prepare_incoming()
        region = self._wait_prefetched()
        vm.resume(self.template.state)
        number = random.randrange(2**32)
        said = vm.ask(f"answer {number}")
        answered = time.monotonic()

        self.figures.update(answer_ms=(answered - vm.spawned) * 1e3, resume_ms=(vm.resumed - vm.spawned) * 1e3)
        vm.qmp.execute("stop")  # so that all that is looked at belongs to the same moment
        self._look(region)
        vm.qmp.execute("cont")
        if said != f"{number} {answer.answer(number)}":
            raise CheckFailed(f"fork {self.name} answered `{said}` to `{number}`")
        checksum = vm.ask("checksum")
        if checksum != self.template.guest.checksum:
            raise CheckFailed(f"the memory of fork {self.name} is wrong: its checksum is {checksum}")
        if vm.said():
            raise CheckFailed(f"fork {self.name}: {vm.said()}")

    def _wait_prefetched(self):
        """Once the hot pages are there, forgets that they have been touched, to see which ones the guest touches."""
        if not self.prefetched:
            return None
        region = json.loads(finish(self.prefetched))["regions"][0]
        proc.forget_touches(self.vm.pid)
        return region

    def _look(self, prefetched_region):
        """Everything about the fork at its first answer."""
        rss, pss = proc.resident(self.vm.pid)
        figures = dict.fromkeys(("faults", "stall_ms", "prefetched_pages", "used_pages", "prefetch_ms"))
        if self.way != "plain":
            if self.way == "record":
                self.server.run("fork", "ready", self.name)
            shown = self.server.show(self.name)
            if shown["pid"] != self.vm.pid or shown["poisoned_pages"]:
                raise CheckFailed(f"the server has this of fork {self.name}: {shown}")
            figures.update({key: shown[key] for key in ("faults", "stall_ms")})
            if self.way == "record" and not shown["recorded_pages"]:
                raise CheckFailed(f"nothing was recorded of fork {self.name}")
            if prefetched_region:
                touched = proc.touched_pages(self.vm.pid, prefetched_region["address"], prefetched_region["size"])
                figures.update({key: shown[key] for key in ("prefetched_pages", "prefetch_ms")})
                figures["used_pages"] = touched - shown["copied_pages"] - shown["zeroed_pages"]
        self.figures.update(figures, rss=rss, pss=pss)

    def stop(self):
        self.vm.stop()
        if self.prefetched and self.prefetched.poll() is None:
            self.prefetched.kill()
            self.prefetched.communicate()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
