#include "replay/list.h"

#include <errno.h>

int trace_hot_list(const struct trace *trace, struct hotlist **ret, struct error *err)
{
	_cleanup_hotlist_ struct hotlist *list = hotlist_new();
	int r = list ? 0 : -ENOMEM;

	for (size_t i = 0; r >= 0 && i < trace->count; i++)
		r = hotlist_add(list, 0, trace->touches[i].page * TRACE_PAGE);
	if (r < 0)
		return error_set(err, r, "no_memory", "there is not enough memory for a list of %zu pages",
				 trace->count);
	*ret = TAKE_PTR(list);
	return 0;
}
