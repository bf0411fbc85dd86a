/*
 * How libfaultline's functions say what became of a call.
 *
 * A function that can fail returns FAULTLINE_OK (0) or one of the negative results below. Its last parameter, which may be NULL, is
 * filled on failure with the same result and with sentences for a human being; it is left alone on success. Outputs named `ret_…` are
 * written on success only.
 *
 * The numbers, and the layout of struct faultline_error, stay as they are as long as the library's soname does. Results may be added:
 * treat one that you don't know as a failure.
 */
#ifndef FAULTLINE_RESULT_H
#define FAULTLINE_RESULT_H

#ifdef __cplusplus
extern "C" {
#endif

#ifndef FAULTLINE_API
#if defined(__GNUC__) || defined(__clang__)
#define FAULTLINE_API __attribute__((visibility("default")))
#else
#define FAULTLINE_API
#endif
#endif

enum faultline_result {
	FAULTLINE_OK = 0,

	/*
	 * This process can't use a page server at all: no server is configured, or the kernel has no userfaultfd, or won't let this
	 * process have one. Nothing is wrong: map the memory image yourself with MAP_PRIVATE, or let faultline_map_image do it.
	 */
	FAULTLINE_NOT_SUPPORTED = -1,

	/* NULL, sizes that don't fit, overlaps, a path that is too long: a mistake of the caller's. */
	FAULTLINE_BAD_ARGUMENT = -2,
	/* Not at this point: before or after faultline_connect, or in a child of fork(2). */
	FAULTLINE_BAD_STATE = -3,
	/* A socket was named, but nobody listens there. */
	FAULTLINE_NO_SERVER = -4,
	/* There is a socket, or a file, but this user may not use it. */
	FAULTLINE_NO_PERMISSION = -5,
	/* The server is there, and refused these mappings or this process. The reason is the server's. */
	FAULTLINE_REFUSED = -6,
	/* The server hung up, or has ended. */
	FAULTLINE_SERVER_GONE = -7,
	/* The server did not answer in the time given. */
	FAULTLINE_TIMED_OUT = -8,
	/* No memory, address space, huge pages or file descriptors. */
	FAULTLINE_NO_RESOURCES = -9,
	/* There is no prefetch to wait for. */
	FAULTLINE_NOT_PREFETCHING = -10,
	/* The prefetch ended early. Pages still come when they are touched. */
	FAULTLINE_PREFETCH_FAILED = -11,
	/* Bytes that are no hot list, or a list that doesn't fit the memory. */
	FAULTLINE_BAD_LIST = -12,
	/* A file can't be read or written. */
	FAULTLINE_INPUT_OUTPUT = -13,
	/* The kernel refused something that it should not have. The text says what. */
	FAULTLINE_UNEXPECTED = -14
};

/* Made by the caller, on the stack mostly; filled by the library. Strings end with a NUL byte and hold no newline. */
struct faultline_error {
	int result;	  /* as returned */
	int system_error; /* the errno behind it; 0: there was none */
	char what[640];	  /* a sentence: what happened, and to what. It has no full stop. */
	char remedy[256]; /* a sentence: what to do about it. "": nothing is known to help. */
};

/* One sentence for a result of any function, for callers that kept nothing else. Never NULL; static. Thread-safe. */
FAULTLINE_API const char *faultline_strerror(int result);

/* The library's version, as "0.1.0". Static. Thread-safe. */
FAULTLINE_API const char *faultline_version(void);

#ifdef __cplusplus
}
#endif

#endif
