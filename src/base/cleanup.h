/* Scope cleanup: an object that leaves scope is freed or closed; TAKE_* hands it on instead. */
#pragma once

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(f) __attribute__((cleanup(f)))

static inline void cleanup_free(void *p)
{
	free(*(void **)p);
}

static inline void cleanup_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

static inline void cleanup_fclose(FILE **f)
{
	if (*f)
		fclose(*f);
}

static inline void cleanup_unlock(pthread_mutex_t **m)
{
	if (*m)
		pthread_mutex_unlock(*m);
}

static inline pthread_mutex_t *lock_scoped(pthread_mutex_t *m)
{
	pthread_mutex_lock(m);
	return m;
}

#define _cleanup_free_	 _cleanup_(cleanup_free)
#define _cleanup_close_	 _cleanup_(cleanup_close)
#define _cleanup_fclose_ _cleanup_(cleanup_fclose)

/* Holds the mutex M until the scope ends. */
#define LOCK_SCOPE(m) _cleanup_(cleanup_unlock) pthread_mutex_t *scope_lock_ __attribute__((unused)) = lock_scoped(m)

#define TAKE_PTR(p)                 \
	({                          \
		typeof(p) t_ = (p); \
		(p) = NULL;         \
		t_;                 \
	})

#define TAKE_FD(fd)            \
	({                     \
		int t_ = (fd); \
		(fd) = -1;     \
		t_;            \
	})

/* Defines a cleanup function that calls FREE on a pointer variable of TYPE. */
#define DEFINE_CLEANUP(type, free_fn)                  \
	static inline void cleanup_##free_fn(type **p) \
	{                                              \
		free_fn(*p);                           \
	}
