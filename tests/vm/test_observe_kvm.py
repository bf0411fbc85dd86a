#!/usr/bin/python3
"""What the kernel sees of guests under KVM is what happened: each fault and each touch once, of the right fork, in the guest's own order."""
import sys
import unittest

import kvm

PAGES = kvm.ServedTest.PAGES
# Who takes the faults: the vCPUs' threads, or, where the guest can be interrupted meanwhile, kernel threads in their names.
VCPU_THREADS, KERNEL_THREADS = (), ("--irqchip",)
KINDS = {"r": "read", "w": "write", "x": "fetch"}


class Observed(kvm.ServedTest):
    SERVE = ("--observe", "require")

    def run_fork(self, script, *options, create=()):
        """A guest that has run to its end; the truth, what the server says of it, and the kernel's list of its touches."""
        name, socket = self.create("--record", *create)
        return (kvm.run_vmm(self.image, script, *options, socket=socket), *self.seen(name))

    def seen(self, name):
        shown = kvm.show_gone(self.server, name)
        self.assertEqual(shown["observe_tier"], self.ENVIRONMENT["FAULTLINE_OBSERVE_TIER"])
        self.assertEqual(shown["observed"]["events_lost"], 0)
        return shown, kvm.kernel_list(self.server, name)

    def check_served(self, truth, shown):
        self.assertEqual(truth.end["wrong"], 0)
        self.assertEqual(shown["faults"], truth.end["absent"])

    def prefetched(self, pages):
        return ("--prefetch", "eager", "--hot-list", self.write_list(pages))


class Exact:
    """Tiers that see the userfaultfd itself: N absent pages touched are N faults, for the kernel and for the server, all of them joined."""

    def check(self, truth, shown, rows, refaults=False):
        observed, absent = shown["observed"], truth.end["absent"]
        self.check_served(truth, shown)
        self.assertEqual(observed["faults"], absent)
        self.assertEqual(observed["unjoined_faults"], 0)
        for phase in ("total", "queue", "source", "copy", "wake"):
            self.assertEqual(observed["latency"][phase]["count"], absent, phase)
        # An interrupt lets a guest that stands still for a page touch it once more, which is seen as well.
        check_present = self.assertGreaterEqual if refaults else self.assertEqual
        check_present(observed["present_touches"], truth.end["pages"] - absent)
        self.assertEqual(kvm.order_of(rows), truth.order())
        self.assertEqual([row["kind"] for row in rows], [KINDS[touch["kind"]] for touch in truth.first])
        self.assertEqual([row["present"] for row in rows], [str(int(touch["present"])) for touch in truth.first])

    def test_vcpu_threads_fault(self):
        self.check(*self.run_fork(kvm.deal(kvm.shuffled(PAGES)), *VCPU_THREADS))

    def test_kernel_threads_fault(self):
        self.check(*self.run_fork(kvm.deal(kvm.shuffled(PAGES)), *KERNEL_THREADS), refaults=True)

    def test_pages_that_are_there_are_seen_in_their_place(self):
        order = kvm.shuffled(PAGES)
        for options in (VCPU_THREADS, KERNEL_THREADS):
            with self.subTest(options=options):
                seen = self.run_fork(kvm.deal(order), "--wait-prefetched", *options, create=self.prefetched(order[::2]))
                self.assertEqual(seen[0].end["absent"], PAGES // 2)
                self.check(*seen, refaults=bool(options))

    def test_pages_that_are_not_touched_are_not_listed(self):
        order = kvm.shuffled(PAGES)
        seen = self.run_fork(kvm.deal(order[: PAGES // 4]), "--wait-prefetched", create=self.prefetched(order))
        self.assertEqual(seen[0].end["absent"], 0)
        self.check(*seen)

    def test_two_slots(self):
        self.check(*self.run_fork(kvm.deal(kvm.shuffled(PAGES)), "--split", "100"))

    def test_vcpus_that_take_turns(self):
        for wait, options in (("spin", VCPU_THREADS), ("spin", KERNEL_THREADS), ("halt", KERNEL_THREADS)):
            with self.subTest(wait=wait, options=options):
                truth, shown, rows = self.run_fork(kvm.deal(kvm.shuffled(PAGES), 2, wait), *options)
                self.assertGreaterEqual(shown["observed"]["vcpus"], 2)
                # As it happened: a vCPU that spins is not seen to wait, and its corrected clock is wrong.
                rows.sort(key=lambda row: int(row["first_touch_ns"]))
                self.check(truth, shown, rows, refaults=bool(options))

    def test_forks_at_the_same_time_are_told_apart(self):
        for options in (VCPU_THREADS, KERNEL_THREADS):
            with self.subTest(options=options):
                vmms = []
                for index in range(2):
                    name, socket = self.create("--record")
                    # Of the same pages, in another order, and not as many.
                    order = kvm.shuffled(PAGES, seed=10 + index)[: PAGES - 50 * index]
                    vmms.append((name, kvm.start_vmm(self.image, kvm.deal(order), *options, socket=socket)))
                truths = [(name, kvm.finish_vmm(vmm)) for name, vmm in vmms]
                for name, truth in truths:
                    self.check(truth, *self.seen(name), refaults=bool(options))


class ByFentry(Exact, Observed):
    ENVIRONMENT = {"FAULTLINE_OBSERVE_TIER": "fentry"}


class ByKprobe(Exact, Observed):
    ENVIRONMENT = {"FAULTLINE_OBSERVE_TIER": "kprobe"}


class ByTracepoint(Observed):
    """KVM tells of each touch all the same; that the VMM waits is not seen, as its faults are not the processor's, but the server's stamps tell."""

    ENVIRONMENT = {"FAULTLINE_OBSERVE_TIER": "tp_btf"}

    def test_each_touch_is_seen_in_the_guests_order(self):
        order = kvm.shuffled(PAGES)
        for options in (VCPU_THREADS, KERNEL_THREADS):
            with self.subTest(options=options):
                seen = self.run_fork(kvm.deal(order), "--wait-prefetched", *options, create=self.prefetched(order[::2]))
                truth, shown, rows = seen
                self.check_served(truth, shown)
                self.assertEqual(kvm.order_of(rows), truth.order())
                self.assertEqual([row["present"] for row in rows], [str(int(touch["present"])) for touch in truth.first])
                self.assertEqual(shown["observed"]["faults"], truth.end["absent"])
                self.assertGreaterEqual(shown["observed"]["present_touches"], truth.end["pages"] - truth.end["absent"])


if __name__ == "__main__":
    kvm.require_known_kernel()
    sys.exit(unittest.main(verbosity=2))
