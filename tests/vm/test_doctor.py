#!/usr/bin/python3
"""`faultline doctor` on kernels of which it is known what they can: all tiers, touches under KVM, and what came with Linux 6.6."""
import json
import platform
import subprocess
import sys
import unittest

import kvm

EVERYWHERE = """uffd_open uffd_fault uffd_kernel_fault uffd_ioctls uffd_event_remove uffd_shared_memory uffd_minor pidfd kvm kvm_fault btf_kernel btf_kvm
    bpf_ring_buffer bpf_fentry bpf_kprobe bpf_page_fault_user bpf_kvm_page_fault bpf_task_vma bpf_pin bpf_capabilities
    tier_fentry tier_kprobe tier_tp_btf tier_with_sched_waking tier_with_kvm_page_fault""".split()
SINCE = {"uffd_poison": (6, 6), "peer_pidfd": (6, 5), "uffd_move": (6, 8)}


class Doctor(unittest.TestCase):
    def test_finds_what_the_kernel_has(self):
        done = subprocess.run([kvm.BINARY, "doctor", "--json"], capture_output=True, check=False, text=True, timeout=kvm.TIMEOUT)
        self.assertEqual(done.returncode, 0, done.stderr)
        report = json.loads(done.stdout)
        checks = {check["name"]: check for check in report["checks"]}
        for name in EVERYWHERE:
            self.assertEqual(checks[name]["status"], "ok", checks[name])
        kernel = tuple(int(number) for number in platform.release().split("-")[0].split("+")[0].split(".")[:2])
        for name, since in SINCE.items():
            self.assertEqual(checks[name]["status"] == "ok", kernel >= since, checks[name])
        self.assertEqual(report["summary"]["observation"]["tier"], "fentry")
        self.assertEqual(report["summary"]["kvm"], "ok")


if __name__ == "__main__":
    kvm.require_known_kernel()
    sys.exit(unittest.main(verbosity=2))
