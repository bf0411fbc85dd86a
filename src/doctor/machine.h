/* Facts about this process and machine that several probes ask for. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The numbers of linux/capability.h; the newer ones are not in every header. */
enum capability {
	CAPABILITY_KILL = 5,
	CAPABILITY_IPC_LOCK = 14,
	CAPABILITY_SYS_PTRACE = 19,
	CAPABILITY_SYS_ADMIN = 21,
	CAPABILITY_PERFMON = 38,
	CAPABILITY_BPF = 39,
};
/* Whether it is in effect for this process, in whatever user namespace it is. */
bool has_capability(enum capability capability);
/* In a user namespace of its own, capabilities don't count where the kernel asks for the first one's. */
bool in_user_namespace(void);
bool has_seccomp_filter(void);

/* The first line of a file, without its end. 0 or negative errno. */
int read_line(const char *path, char *ret, size_t size);
/* A file that holds one number. 0 or negative errno. */
int read_number(const char *path, long long *ret);

/*
 * The file NAME in this process's control group of CONTROLLER: the group's own on the unified hierarchy or on the controller's. Containers
 * often mount their own group as the root, so that the root is looked at too. 0 or negative errno.
 */
int read_cgroup(const char *controller, const char *name_v2, const char *name_v1, char *ret, size_t size);

/* "EPERM", or "error 999" for one without a name. ERROR is negative. */
const char *errno_name(int error);

/* "512 MiB", "1.5 GiB": for messages. Returns BUFFER. */
const char *format_bytes(uint64_t bytes, char *buffer, size_t size);
