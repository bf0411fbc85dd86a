#!/usr/bin/python3
"""What the kernel sees of guests under KVM is what happened: each fault and each touch once, of the right fork, in the guest's own order."""
import sys
import unittest

import kvm

PAGES = kvm.ServedTest.PAGES
# Who takes the faults: the vCPUs' threads, or, where the guest can be interrupted meanwhile, kernel threads in their names.
WAYS = {"vCPU threads": [], "kernel threads": ["--irqchip"]}


class Checks:
    """The same for each tier, below."""

    def setUp(self):
        super().setUp()
        self.server = self.serve("--observe", "require", environment={"FAULTLINE_OBSERVE_TIER": self.tier})

    def fork(self, name, script, *options, create=("--record",)):
        """A guest that has run to its end, and what the server's observer says of it."""
        socket = self.server.run("fork", "create", "base", "--id", name, *create).strip()
        truth = kvm.run_vmm(self.image, script, *options, socket=socket)
        return truth, self.shown(name)

    def shown(self, name):
        shown = kvm.show_gone(self.server, name)
        self.assertEqual(shown["observe_tier"], self.tier)
        self.assertEqual(shown["observed"]["events_lost"], 0)
        return shown

    def check_counts(self, truth, shown):
        """N pages absent are N faults, for the server and for the kernel, and all of them joined; the pages that were there are touches."""
        observed = shown["observed"]
        self.assertEqual(truth.end["wrong"], 0)
        self.assertEqual(shown["faults"], truth.end["absent"])
        self.assertEqual(observed["faults"], truth.end["absent"])
        self.assertEqual(observed["unjoined_faults"], 0)
        for phase in ("total", "queue", "source", "copy", "wake"):
            self.assertEqual(observed["latency"][phase]["count"], truth.end["absent"], phase)
        self.assertEqual(observed["present_touches"], truth.end["pages"] - truth.end["absent"])

    def check_order(self, truth, name):
        rows = kvm.kernel_list(self.server, name)
        self.assertEqual(kvm.order_of(rows), truth.order())
        return rows

    def test_one_vcpu(self):
        for number, (way, options) in enumerate(WAYS.items()):
            with self.subTest(way):
                name = f"f{number}"
                truth, shown = self.fork(name, kvm.deal(kvm.shuffled(PAGES)), *options)
                self.check_counts(truth, shown)
                rows = self.check_order(truth, name)
                self.assertEqual([row["kind"][0] for row in rows], [{"x": "f"}.get(t["kind"], t["kind"]) for t in truth.first])

    def test_two_vcpus_that_take_turns(self):
        for number, (wait, options) in enumerate((("spin", []), ("spin", ["--irqchip"]), ("halt", ["--irqchip"]))):
            with self.subTest(wait=wait, options=options):
                name = f"f{number}"
                truth, shown = self.fork(name, kvm.deal(kvm.shuffled(PAGES), 2, wait), *options)
                self.check_counts(truth, shown)
                rows = sorted(kvm.kernel_list(self.server, name), key=lambda row: int(row["first_touch_ns"]))
                self.assertEqual(kvm.order_of(rows), truth.order())

    def test_pages_that_are_there_are_seen_in_their_place(self):
        order = kvm.shuffled(PAGES)
        hot = self.write_list(order[::2])
        for number, (way, options) in enumerate(WAYS.items()):
            with self.subTest(way):
                name = f"f{number}"
                create = ("--record", "--prefetch", "eager", "--hot-list", hot)
                truth, shown = self.fork(name, kvm.deal(order), "--wait-prefetched", *options, create=create)
                self.assertEqual(truth.end["absent"], PAGES // 2)
                self.check_counts(truth, shown)
                rows = self.check_order(truth, name)
                there = [row["present"] in ("1", "true", "yes") for row in rows]
                self.assertEqual(there, [touch["present"] for touch in truth.first])

    def test_pages_that_were_not_touched_are_not_listed(self):
        order = kvm.shuffled(PAGES)
        hot = self.write_list(order)
        create = ("--record", "--prefetch", "eager", "--hot-list", hot)
        truth, shown = self.fork("f", kvm.deal(order[: PAGES // 4]), "--wait-prefetched", create=create)
        self.assertEqual(truth.end["absent"], 0)
        self.check_counts(truth, shown)
        self.check_order(truth, "f")

    def test_two_slots(self):
        truth, shown = self.fork("f", kvm.deal(kvm.shuffled(PAGES)), "--split", "100")
        self.check_counts(truth, shown)
        self.check_order(truth, "f")

    def test_forks_at_the_same_time_are_told_apart(self):
        for number, (way, options) in enumerate(WAYS.items()):
            with self.subTest(way):
                names = [f"a{number}", f"b{number}"]
                vmms = []
                for index, name in enumerate(names):
                    socket = self.server.run("fork", "create", "base", "--id", name, "--record").strip()
                    # Of the same pages, in another order, and not as many.
                    order = kvm.shuffled(PAGES, seed=10 + index)[: PAGES - 100 * index]
                    vmms.append(kvm.start_vmm(self.image, kvm.deal(order), *options, socket=socket))
                for name, vmm in zip(names, vmms):
                    truth = kvm.finish_vmm(vmm)
                    self.check_counts(truth, self.shown(name))
                    self.check_order(truth, name)


class ByFentry(Checks, kvm.ServedTest):
    tier = "fentry"


class ByKprobe(Checks, kvm.ServedTest):
    tier = "kprobe"


class ByTracepoint(Checks, kvm.ServedTest):
    tier = "tp_btf"


if __name__ == "__main__":
    kvm.require_known_kernel()
    sys.exit(unittest.main(verbosity=2))
