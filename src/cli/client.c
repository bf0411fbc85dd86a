/* Calls of subcommands: see client.h. */
#include "cli/client.h"

#include <errno.h>

#include "cli/cli.h"

void client_call_clear(struct client_call *call)
{
	json_decref(call->body);
	api_reply_clear(&call->reply);
}

void client_add(struct client_call *call, const char *name, json_t *value)
{
	if (!call->body)
		call->body = json_object();
	if (json_object_set_new(call->body, name, value) < 0 && call->result >= 0)
		call->result = error_set(&call->err, -ENOMEM, "no_memory", "there is not enough memory for the request");
}

void client_add_string(struct client_call *call, const char *name, const char *value)
{
	if (!value)
		return;

	json_t *string = json_string(value);

	if (string)
		client_add(call, name, string);
	else if (call->result >= 0)
		call->result = error_set(&call->err, -EILSEQ, "bad_member",
					 "the %s '%s' is not UTF-8, which the API needs: rename it", name, value);
}

void client_add_path(struct client_call *call, const char *name, const char *value)
{
	_cleanup_free_ char *path = NULL;

	if (!value || call->result < 0)
		return;
	call->result = api_absolute_path(value, &path, &call->err);
	if (call->result >= 0)
		client_add_string(call, name, path);
}

int client_call(struct client_call *call, const char *method, const char *path, unsigned timeout_s)
{
	_cleanup_api_client_ struct api_client *client = NULL;

	if (call->result >= 0)
		call->result = api_client_new(call->args->run_dir, &client, &call->err);
	if (call->result >= 0)
		call->result = api_call(client, method, path, call->body, timeout_s, &call->reply, &call->err);
	return call->result;
}

int client_call_named(struct client_call *call, const char *method, const char *prefix, const char *name,
		      const char *suffix, unsigned timeout_s)
{
	_cleanup_free_ char *path = NULL;

	if (call->result >= 0)
		call->result = api_path(prefix, name, suffix, &path, &call->err);
	return call->result < 0 ? call->result : client_call(call, method, path, timeout_s);
}

int client_fail(const struct client_call *call)
{
	return cli_fail(call->args->json, &call->err);
}

int client_print_reply(const struct client_call *call)
{
	return cli_print_bytes(call->reply.body, call->reply.size);
}

const char *client_string(const json_t *object, const char *name, const char *fallback)
{
	return json_string_value(json_object_get(object, name)) ?: fallback;
}

double client_number(const json_t *object, const char *name)
{
	return json_number_value(json_object_get(object, name));
}

void client_print_names(const json_t *array, const char *key)
{
	const json_t *object;
	size_t i;

	json_array_foreach(array, i, object)
		puts(client_string(object, key, ""));
}
