/*
 * Included before each file of a ThreadSanitizer build. The sanitizer of gcc 12 knows epoll_wait but not epoll_pwait2: after that it
 * takes what was made ready before epoll_ctl for raced with. The older call, with its timeout in whole milliseconds, serves here.
 */
#pragma once

#include <limits.h>
#include <sys/epoll.h>
#include <time.h>

static inline int tsan_epoll_pwait2(int fd, struct epoll_event *events, int count, const struct timespec *timeout,
				    const sigset_t *mask)
{
	long long ms = timeout ? timeout->tv_sec * 1000ll + (timeout->tv_nsec + 999999) / 1000000 : -1;

	return epoll_pwait(fd, events, count, ms > INT_MAX ? INT_MAX : (int)ms, mask);
}

#define epoll_pwait2 tsan_epoll_pwait2
