/* What containers and ordinary users are not allowed, for children (see client.h). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "integration/harness/client.h"

/* Refuses the system call userfaultfd with ERROR, as a seccomp filter of a container does, and /dev/userfaultfd too where DEVICE says so. */
void refuse_userfaultfd(struct client_self *self, uint32_t error, bool device);

/* Goes on as user nobody, without any capability. */
void become_nobody(struct client_self *self);
