/* A hot list as it is read for a template: one that was recorded on another image is refused, whoever names it and whenever. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "hotlist/identity.h"
#include "serve/internal.h"

static int check_image(const struct hotlist *list, struct template *template, struct error *err)
{
	uint8_t identity[IMAGE_IDENTITY_SIZE];

	if (!hotlist_origin_is_bound(list->origin))
		return 0;
	int r = template_identity(template, image_identity, identity);
	if (r < 0)
		return error_set(err, r, "bad_hot_list",
				 "the list says which image it is for, and the image '%s' cannot be read to compare: %s",
				 template->memory, strerror(-r));
	return hotlist_check_image(list, template->memory, template->size, identity, err);
}

int load_hot_list(const char *path, struct template *template, struct hotlist **ret, struct error *err)
{
	_cleanup_hotlist_ struct hotlist *list = NULL;
	int r = hotlist_load(path, &list, err);

	if (r < 0) {
		if (err)
			snprintf(err->code, sizeof err->code, "bad_hot_list");
		return r;
	}
	r = check_image(list, template, err);
	if (r < 0)
		return error_prefix(err, r, "%s: ", path);
	*ret = TAKE_PTR(list);
	return 0;
}

int check_hot_list(struct server *server, const char *path, const char *template_name, struct error *err)
{
	_cleanup_template_ struct template *template = NULL;
	_cleanup_hotlist_ struct hotlist *list = NULL;

	/* The list is read without the lock: reading takes its time. A template that isn't there is another check's affair. */
	pthread_mutex_lock(&server->lock);
	struct template *found = server_find_template(server, template_name);
	if (found)
		template = template_ref(found);
	pthread_mutex_unlock(&server->lock);
	return template ? load_hot_list(path, template, &list, err) : 0;
}
