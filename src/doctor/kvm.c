/* KVM, which VMMs need and the server does not; but its guests' faults are the ones to be served. */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "doctor/check.h"
#include "doctor/kvm_trial.h"

static void say_no_device(struct probe *probe, int error)
{
	probe_missing(probe, error, "/dev/kvm: %s", strerror(-error));
	if (error == -ENOENT)
		probe_remedy(probe,
			     "modprobe kvm-intel or kvm-amd; in a virtual machine, switch on nested virtualisation "
			     "where it runs; in a container, hand it /dev/kvm");
	else if (error == -EACCES || error == -EPERM)
		probe_remedy(probe,
			     "usermod -aG kvm USER (and log in again), or let the container's device rules have it");
	else
		probe_remedy(probe, "switch on virtualisation in the firmware, or nested virtualisation where this "
				    "machine runs");
}

static void probe_device(struct probe *probe)
{
	_cleanup_close_ int device = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (device < 0) {
		say_no_device(probe, -errno);
		return;
	}
	int version = ioctl(device, KVM_GET_API_VERSION, 0);
	if (version != KVM_API_VERSION)
		probe_missing(probe, version < 0 ? -errno : 0, "API version %d instead of %d", version, KVM_API_VERSION);
	else
		probe_ok(probe, "/dev/kvm can be opened, API version %d", version);
}

static void probe_guest(struct probe *probe)
{
	int r = kvm_trial();

	if (r == 0) {
		probe_ok(probe, "a guest of three instructions ran on two pages that were served to it");
	} else if (r == -EOPNOTSUPP) {
		probe_degraded(probe, r, "not tried on this architecture");
		probe_cost(probe, "nothing, if KVM's faults can be served here as they can on x86");
		probe_remedy(probe, "try it with your VMM");
	} else if (r == -ENOENT || r == -EACCES) {
		probe_missing(probe, r, "/dev/kvm: %s", strerror(-r));
		probe_remedy(probe, "see the line above");
	} else if (r == -ETIMEDOUT) {
		probe_missing(probe, r, "a guest of three instructions did not come to its end");
	} else {
		probe_missing(probe, r, "running a guest of three instructions failed: %s", strerror(-r));
	}
}

const struct check kvm_checks[] = {
	{ .name = "kvm",
	  .title = "/dev/kvm",
	  .uses = DOCTOR_VMM,
	  .probe = probe_device,
	  .cost = "VMMs that need KVM (Firecracker) don't run here; QEMU does, by emulation",
	  .remedy = "load this machine's KVM module" },
	{ .name = "kvm_fault",
	  .title = "a guest's faults",
	  .uses = DOCTOR_VMM,
	  .probe = probe_guest,
	  .cost = "forks under KVM can't be served here; those under QEMU's emulation can",
	  .remedy =
		  "give the VMM a userfaultfd for faults of the kernel's (see above), and look into the kernel's log (dmesg)" },
	{ 0 },
};
