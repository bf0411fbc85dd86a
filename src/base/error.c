#include "base/error.h"

#include <stdio.h>
#include <string.h>

int error_set(struct error *err, int ret, const char *code, const char *format, ...)
{
	if (!err)
		return ret;

	va_list ap;
	va_start(ap, format);
	snprintf(err->code, sizeof err->code, "%s", code);
	vsnprintf(err->message, sizeof err->message, format, ap);
	va_end(ap);
	return ret;
}

int error_prefix(struct error *err, int ret, const char *format, ...)
{
	if (!err)
		return ret;

	char old[ERROR_MESSAGE_MAX];
	memcpy(old, err->message, sizeof old);

	va_list ap;
	va_start(ap, format);
	int n = vsnprintf(err->message, sizeof err->message, format, ap);
	va_end(ap);
	if (n >= 0 && (size_t)n < sizeof err->message)
		snprintf(err->message + n, sizeof err->message - (size_t)n, "%s", old);
	return ret;
}
