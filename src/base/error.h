/* A failure as a user sees it: a stable code, which the API documents, and one sentence saying what, where and the remedy. */
#pragma once

#include <stdarg.h>

#define ERROR_CODE_MAX	  40
#define ERROR_MESSAGE_MAX 512

struct error {
	char code[ERROR_CODE_MAX];
	char message[ERROR_MESSAGE_MAX];
};

/* Fills ERR (may be NULL) and returns RET, so that a caller can write `return error_set(err, -EINVAL, "bad_id", …)`. */
int error_set(struct error *err, int ret, const char *code, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

/* Puts text in front of the message that ERR already has; keeps its code. Returns RET. */
int error_prefix(struct error *err, int ret, const char *format, ...) __attribute__((format(printf, 3, 4)));
