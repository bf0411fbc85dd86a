/* Structured log to stderr: one line a record, as text or JSON. Programs log; library code returns errors instead. */
#pragma once

#include <stdbool.h>

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* Process-wide, set once before any thread starts. */
void log_setup(enum log_level max, bool json);

/* OBJECT is the name of what the line is about ("fork a1", "template base"), or NULL. Thread-safe; errno is kept. */
void log_write(enum log_level level, const char *object, const char *format, ...) __attribute__((format(printf, 3, 4)));

#define log_error(object, ...)	 log_write(LOG_LEVEL_ERROR, object, __VA_ARGS__)
#define log_warning(object, ...) log_write(LOG_LEVEL_WARNING, object, __VA_ARGS__)
#define log_info(object, ...)	 log_write(LOG_LEVEL_INFO, object, __VA_ARGS__)
#define log_debug(object, ...)	 log_write(LOG_LEVEL_DEBUG, object, __VA_ARGS__)
