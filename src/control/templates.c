/* The handlers of /v1/templates. */
#include <errno.h>

#include "control/encode.h"
#include "control/routes.h"
#include "serve/server.h"

#define _cleanup_template_info_ _cleanup_(template_info_clear)

int handle_templates_add(struct request *request, struct reply *reply, struct error *err)
{
	_cleanup_template_info_ struct template_info info = { 0 };
	struct template_spec spec = { 0 };
	const struct member members[] = {
		{ "name", MEMBER_STRING, true, &spec.name },
		{ "memory", MEMBER_PATH, true, &spec.memory },
		{ "state", MEMBER_PATH, false, &spec.state },
		{ "hot_list", MEMBER_PATH, false, &spec.hot_list },
		{ "refresh_hot_list", MEMBER_BOOL, false, &spec.refresh_hot_list },
		{ "no_hot_set", MEMBER_BOOL, false, &spec.no_hot_set },
		{ "no_zero_map", MEMBER_BOOL, false, &spec.no_zero_map },
		{ "inject", MEMBER_STRING, false, &spec.inject },
	};
	int r = request_read_body(request, members, sizeof members / sizeof *members, err);

	if (r >= 0)
		r = server_template_add(request->server, &spec, &info, err);
	return r < 0 ? r : reply_json(reply, 201, encode_template(&info), err);
}

int handle_template_get(struct request *request, struct reply *reply, struct error *err)
{
	_cleanup_template_info_ struct template_info info = { 0 };
	int r = server_template_get(request->server, ROUTE_NAME(request), &info, err);

	return r < 0 ? r : reply_json(reply, 200, encode_template(&info), err);
}

int handle_template_remove(struct request *request, struct reply *reply, struct error *err)
{
	int r = server_template_remove(request->server, ROUTE_NAME(request), err);

	if (r < 0)
		return r;
	reply->status = 204;
	return 0;
}

int handle_templates_list(struct request *request, struct reply *reply, struct error *err)
{
	struct template_info *infos = NULL;
	size_t count = 0;
	int r = server_template_list(request->server, &infos, &count, err);

	if (r < 0)
		return r;

	json_t *list = json_array();

	for (size_t i = 0; i < count; i++) {
		if (list && json_array_append_new(list, encode_template(&infos[i])) < 0) {
			json_decref(list);
			list = NULL;
		}
		template_info_clear(&infos[i]);
	}
	free(infos);
	return reply_json(reply, 200, list ? json_pack("{s:o}", "templates", list) : NULL, err);
}
