#include "replay/connect.h"

#include <errno.h>
#include <faultline/client.h>

#include "replay/trace.h"

static const char *code_of(int result)
{
	switch (result) {
	case FAULTLINE_NO_SERVER:
		return "no_server";
	case FAULTLINE_NO_PERMISSION:
		return "no_permission";
	case FAULTLINE_SERVER_GONE:
	case FAULTLINE_REFUSED:
	case FAULTLINE_TIMED_OUT:
		return "server_gone";
	default:
		return "guest_failed";
	}
}

static int failed(const struct faultline_error *error, struct error *err)
{
	return error_set(err, error->system_error ? -error->system_error : -EIO, code_of(error->result), "%s%s%s",
			 error->what, error->remedy[0] ? ": " : "", error->remedy);
}

int connect_memory(const char *socket, bool answers, void *const *mappings, unsigned count, uint64_t size,
		   int *ret_connection, struct error *err)
{
	struct faultline_client *client;
	struct faultline_error error;
	int r = faultline_new(&client, &error);

	if (r == FAULTLINE_OK) {
		for (unsigned i = 0; r == FAULTLINE_OK && i < count; i++)
			r = faultline_add(client, mappings[i], size, 0, TRACE_PAGE, &error);
		if (r == FAULTLINE_OK)
			r = faultline_connect(client, socket, -1, answers ? 0 : FAULTLINE_CONNECT_UNANSWERED, &error);
		if (r == FAULTLINE_OK)
			*ret_connection = faultline_server_fd(client);
		else
			faultline_close(&client, NULL);
	}
	return r == FAULTLINE_OK ? 0 : failed(&error, err);
}
