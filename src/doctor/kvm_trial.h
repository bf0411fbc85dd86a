/* A virtual machine of two pages that runs for three instructions: what shows whether KVM works, and what it lets be seen. */
#pragma once

/*
 * Its memory is served over userfaultfd. 0: it ran, and computed the right thing out of the right pages. -ENOENT and the like: no
 * /dev/kvm; -EOPNOTSUPP: not an x86 machine, not tried; -EPROTO: it ran otherwise; -EILSEQ: wrong bytes.
 */
int kvm_trial(void);
