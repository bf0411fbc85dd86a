#include "client/result.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* A path may have anything in it; a message is one line. */
static void make_one_line(char *text)
{
	for (; *text; text++)
		if (iscntrl((unsigned char)*text))
			*text = ' ';
}

int result_set(struct faultline_error *error, int result, int system_error, const char *remedy, const char *what, ...)
{
	va_list ap;
	int length;

	if (!error)
		return result;
	va_start(ap, what);
	length = vsnprintf(error->what, sizeof error->what, what, ap);
	va_end(ap);
	if (system_error && length >= 0 && (size_t)length < sizeof error->what) {
		char reason[128];

		snprintf(error->what + length, sizeof error->what - (size_t)length, " (%s)",
			 strerror_r(system_error, reason, sizeof reason));
	}
	snprintf(error->remedy, sizeof error->remedy, "%s", remedy);
	make_one_line(error->what);
	make_one_line(error->remedy);
	error->result = result;
	error->system_error = system_error;
	return result;
}

const char *faultline_strerror(int result)
{
	switch (result) {
	case FAULTLINE_OK:
		return "Success";
	case FAULTLINE_NOT_SUPPORTED:
		return "No page server can be used here: map the memory image privately instead";
	case FAULTLINE_BAD_ARGUMENT:
		return "An argument makes no sense";
	case FAULTLINE_BAD_STATE:
		return "The client is not in a state for this call, or belongs to the parent of this process";
	case FAULTLINE_NO_SERVER:
		return "No page server listens at the socket";
	case FAULTLINE_NO_PERMISSION:
		return "This user may not use the socket or the file";
	case FAULTLINE_REFUSED:
		return "The page server refused this VM's memory";
	case FAULTLINE_SERVER_GONE:
		return "The page server has hung up";
	case FAULTLINE_TIMED_OUT:
		return "The page server did not answer in time";
	case FAULTLINE_NO_RESOURCES:
		return "Memory, address space, huge pages or file descriptors have run out";
	case FAULTLINE_NOT_PREFETCHING:
		return "No pages are prefetched for this VM";
	case FAULTLINE_PREFETCH_FAILED:
		return "Prefetching ended before all listed pages were there";
	case FAULTLINE_BAD_LIST:
		return "This is no hot list, or it does not fit this memory";
	case FAULTLINE_INPUT_OUTPUT:
		return "A file could not be read or written";
	case FAULTLINE_UNEXPECTED:
		return "The kernel refused something unexpectedly";
	default:
		return "A result that this version of libfaultline does not know";
	}
}

const char *faultline_version(void)
{
	return FAULTLINE_VERSION;
}
