/* Threads whose work can wait. */
#pragma once

#include <pthread.h>

/* The calling thread no longer takes the CPU from whoever runs when it wakes up, such as a guest. It keeps its share. */
static inline void run_in_background(void)
{
	const struct sched_param param = { 0 };

	pthread_setschedparam(pthread_self(), SCHED_BATCH, &param);
}
