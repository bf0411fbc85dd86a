/* Error codes and their HTTP statuses: see api_errors.h. */
#include "control/api_errors.h"

#include <stdlib.h>
#include <string.h>

/* One row a line. */
/* clang-format off */
const struct api_error_status api_error_table[] = {
	{ "bad_body", 400 },
	{ "bad_dir", 400 },
	{ "bad_hot_list", 400 },
	{ "bad_inject", 400 },
	{ "bad_json", 400 },
	{ "bad_member", 400 },
	{ "bad_memory", 400 },
	{ "bad_name", 400 },
	{ "bad_offset", 400 },
	{ "bad_path", 400 },
	{ "bad_prefetch", 400 },
	{ "bad_query", 400 },
	{ "bad_region", 400 },
	{ "bad_state", 400 },
	{ "bad_uri", 400 },
	{ "body_too_large", 413 },
	{ "busy", 503 },
	{ "fork_exists", 409 },
	{ "fork_gone", 409 },
	{ "fork_live", 409 },
	{ "fork_removed", 410 },
	{ "fork_unknown", 404 },
	{ "internal", 500 },
	{ "io_error", 500 },
	{ "method_not_allowed", 405 },
	{ "missing_body", 400 },
	{ "missing_member", 400 },
	{ "no_memory", 507 },
	{ "not_connected", 409 },
	{ "not_observed", 409 },
	{ "not_prefetching", 409 },
	{ "not_recorded", 409 },
	{ "prefetch_busy", 409 },
	{ "prefetch_failed", 500 },
	{ "route_unknown", 404 },
	{ "shutting_down", 503 },
	{ "template_changed", 409 },
	{ "template_exists", 409 },
	{ "template_in_use", 409 },
	{ "template_unknown", 404 },
	{ "timeout", 504 },
	{ "too_many_forks", 507 },
	{ "unexpected_body", 400 },
	{ "unknown_member", 400 },
};
/* clang-format on */

const size_t api_error_table_size = sizeof api_error_table / sizeof *api_error_table;

static int compare_codes(const void *code, const void *row)
{
	return strcmp(code, ((const struct api_error_status *)row)->code);
}

unsigned api_error_status(const char *code)
{
	const struct api_error_status *row =
		bsearch(code, api_error_table, api_error_table_size, sizeof *api_error_table, compare_codes);

	return row ? row->status : 500;
}
