#!/usr/bin/python3
"""`faultline bench order` of guests under KVM: lists of the kernel are in the guest's own order, and have what was prefetched; the loop's lack that."""
import json
import math
import os
import subprocess
import sys
import tempfile
import unittest

import kvm

WORKLOAD = "redis-get"
TOUCHES = 1000  # of a quick look
RUN_S = 300
RANK = 0.98
# Runs the real one on an image that is not the template's: what the guest finds there is wrong.
OTHER_IMAGE = """#!/bin/sh
image=$1
shift
head -c "$(stat -c %s "$image")" /dev/urandom > "$image.other" || exit 1
exec "$REAL_VMM" "$image.other" "$@"
"""


def bench(directory, *arguments, environment=None):
    return subprocess.run(
        [kvm.BINARY, "bench", "order", "--quick", "--json", "--traces", kvm.SOURCE / "traces", "--dir", directory, *arguments],
        env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=RUN_S, check=False,
    )  # fmt: skip


def measure(directory):
    """The two cases, by their situations."""
    done = bench(directory, "--only", f"kvm,kvm_second,{WORKLOAD}")
    if done.returncode != 0:
        raise AssertionError(f"exit status {done.returncode}: {done.stdout}{done.stderr}")
    cases = json.loads(done.stdout)["groups"][0]["cases"]
    return {case["id"].split(":")[0]: case for case in cases}


class Measured(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = cls.enterClassContext(tempfile.TemporaryDirectory(prefix="faultline-kvm-order-"))
        cls.cases = measure(cls.directory)

    def metrics(self, situation, side):
        found = [s["metrics"] for s in self.cases[situation]["sides"] if s["id"] == side]
        self.assertEqual(len(found), 1, f"{situation} {side}")
        return found[0]

    def check_complete(self, situation, side):
        """Each page that the guest touched, and no other, in its order."""
        metrics = self.metrics(situation, side)
        self.assertEqual((metrics["lacking"]["max"], metrics["extra"]["max"]), (0, 0), f"{situation} {side}")
        self.assertGreaterEqual(metrics["rank"]["min"], RANK, f"{situation} {side}")

    def test_both_have_run(self):
        self.assertEqual(set(self.cases), {"kvm", "kvm_second"})
        for situation, case in self.cases.items():
            self.assertIsNone(case["skipped"], situation)
            self.assertTrue(all(limit["met"] for limit in case["limits"]), case["limits"])
            for side in case["sides"]:
                for name, series in side["metrics"].items():
                    self.assertTrue(all(map(math.isfinite, series["rounds"])), (situation, side["id"], name))
        self.assertEqual(os.listdir(self.directory), [])

    def test_first_generation(self):
        for side in ("loop", "raw", "corrected", "voted_1", "voted_3"):
            self.check_complete("kvm", side)
        self.assertLess(self.metrics("kvm", "address")["rank"]["max"], RANK)

    def test_second_generation(self):
        for side in ("raw", "corrected", "voted_1", "voted_3"):
            self.check_complete("kvm_second", side)
        loop, raw = self.metrics("kvm_second", "loop"), self.metrics("kvm_second", "raw")
        for lacking, present in zip(loop["lacking"]["rounds"], raw["present"]["rounds"], strict=True):
            self.assertGreater(present, 0)
            self.assertGreaterEqual(lacking, present)
        self.assertGreater(self.metrics("kvm_second", "old")["extra"]["min"], 0)
        self.assertGreater(self.metrics("kvm_second", "appended")["extra"]["min"], 0)

    def test_later_forks(self):
        for situation in self.cases:
            self.assertEqual(self.metrics(situation, "none")["faults"]["rounds"], [TOUCHES])
            self.assertEqual(self.metrics(situation, "truth")["missing"]["rounds"], [0])
            for side in self.cases[situation]["sides"]:
                if "late" not in side["metrics"]:
                    continue
                late, missing, faults = (side["metrics"][name]["rounds"][0] for name in ("late", "missing", "faults"))
                self.assertLessEqual(late, faults, (situation, side["id"]))
                self.assertLessEqual(faults, late + missing, (situation, side["id"]))
        for side in ("raw", "voted_3"):
            metrics = self.metrics("kvm_second", side)
            self.assertEqual((metrics["missing"]["max"], metrics["unused"]["max"]), (0, 0))


class Wrong(unittest.TestCase):
    def test_pages_that_are_not_the_images(self):
        with tempfile.TemporaryDirectory(prefix="faultline-kvm-order-") as directory:
            vmm = os.path.join(directory, "vmm")
            with open(vmm, "w", encoding="utf-8") as file:
                file.write(OTHER_IMAGE)
            os.chmod(vmm, 0o755)
            done = bench(directory, "--only", f"kvm,{WORKLOAD}", "--tiny-vmm", vmm, environment={"REAL_VMM": kvm.TINY_VMM})
            self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
            self.assertIn("wrong_bytes", done.stderr)
            self.assertEqual(os.listdir(directory), ["vmm"])


if __name__ == "__main__":
    kvm.require_known_kernel()
    sys.exit(unittest.main(verbosity=2))
