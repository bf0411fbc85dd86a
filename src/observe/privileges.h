/*
 * What observing needs of capabilities, and giving them up again: programs are loaded and attached once, and what comes later works by
 * descriptors. A server that serves VMMs has no use for the right to load programs into the kernel.
 */
#pragma once

#include <stddef.h>

struct programs;

#define PRIVILEGES_TEXT_SIZE 120

/*
 * Which capabilities for loading and attaching programs are not in effect, as a reason: "CAP_BPF and CAP_PERFMON are missing"; "": all are there.
 * CAP_SYS_ADMIN stands for both; some libraries and kernels want it for types of modules besides, so that without it nothing is sure.
 */
void privileges_lacking(char *buffer, size_t size);

/*
 * Takes CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN from this thread and those that it starts later, for good: threads that run already have to call
 * it themselves. What PROGRAMS (NULL: nothing is observed) will still have to do is tried without them first. Where that fails, as before Linux 5.19, which
 * asks for CAP_BPF at every call, what is needed is kept. So is CAP_SYS_ADMIN where io_uring is only for those who have it.
 *
 * KEPT: those that it has still, as text; "": none. 0 or negative errno: the kernel let nothing be given up.
 */
int privileges_drop(struct programs *programs, char *kept, size_t size);
