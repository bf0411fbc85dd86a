/* userfaultfd's interface as far as the oldest supported distribution's headers (Linux 6.1) lack it. */
#pragma once

#include <linux/userfaultfd.h>

#ifndef UFFD_FEATURE_POISON /* Linux 6.6 */
#define UFFD_FEATURE_POISON (1 << 14)
#define _UFFDIO_POISON	    0x08
struct uffdio_poison {
	struct uffdio_range range;
	__u64 mode;
	__s64 updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, _UFFDIO_POISON, struct uffdio_poison)
#endif
