/* The server's templates by name, remembered in RUN_DIR/templates. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "serve/hot_sets.h"
#include "serve/internal.h"
#include "template/zero_map.h"

int check_name(const char *name, const char *what, struct error *err)
{
	size_t length = strlen(name);
	size_t valid = strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-");

	if (length >= 1 && length <= NAME_MAX_LENGTH && valid == length && name[0] != '.' && name[0] != '-')
		return 0;
	return error_set(err, -EINVAL, "bad_name",
			 "'%.80s' cannot be %s: use 1 to %d of A-Z a-z 0-9 . _ -, not starting with . or -", name, what,
			 NAME_MAX_LENGTH);
}

/* Where NAME stands, or where it would. */
static size_t position(const struct server *server, const char *name)
{
	size_t low = 0, high = server->template_count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (strcmp(server->templates[middle]->name, name) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

struct template *server_find_template(struct server *server, const char *name)
{
	size_t at = position(server, name);

	return at < server->template_count && strcmp(server->templates[at]->name, name) == 0 ? server->templates[at]
											     : NULL;
}

static int insert(struct server *server, struct template *template)
{
	struct template **grown = realloc(server->templates, (server->template_count + 1) * sizeof *grown);
	if (!grown)
		return -ENOMEM;
	server->templates = grown;

	size_t at = position(server, template->name);
	memmove(&grown[at + 1], &grown[at], (server->template_count - at) * sizeof *grown);
	grown[at] = template;
	server->template_count++;
	return 0;
}

static int unknown(const char *name, struct error *err)
{
	return error_set(err, -ENOENT, "template_unknown",
			 "there is no template '%.80s': 'faultline template list' shows those there are", name);
}

static char *copy(const char *text)
{
	return text ? strdup(text) : NULL;
}

static const char *hot_set_state_name(const struct template *t)
{
	switch (t->hot_set_state) {
	case HOT_SET_BUILDING:
		return "building";
	case HOT_SET_READY:
		return "ready";
	case HOT_SET_FAILED:
		return "failed";
	default:
		return t->packs ? "none" : "off";
	}
}

static void fill_hot_set(struct template *t, struct template_info *ret)
{
	LOCK_SCOPE(&t->hot_set_lock);
	ret->hot_set_state = hot_set_state_name(t);
	if (t->hot_set_state == HOT_SET_FAILED)
		ret->hot_set_error = copy(t->hot_set_why);
	if (t->hot_set) {
		ret->hot_set_pages = hot_set_pages(t->hot_set);
		ret->hot_set_bytes = hot_set_bytes(t->hot_set);
	}
}

static const char *zero_map_state_name(const struct template *t)
{
	enum zero_map_state state = t->zero_map_state;

	return state == ZERO_MAP_READY ? "ready" : state == ZERO_MAP_BUILDING ? "building" : "off";
}

static void fill_info(const struct server *server, struct template *t, struct template_info *ret)
{
	*ret = (struct template_info){ .memory = copy(t->memory),
				       .state = copy(t->state),
				       .hot_list = copy(t->hot_list),
				       .inject = copy(t->inject),
				       .refresh_hot_list = t->refresh,
				       .memory_size = t->size };
	snprintf(ret->name, sizeof ret->name, "%s", t->name);
	fill_hot_set(t, ret);
	ret->zero_map_state = zero_map_state_name(t);
	ret->zero_pages = t->source->zeros ? zero_map_pages(t->source->zeros) : 0;
	for (const struct fork *fork = server->forks; fork; fork = fork->next) {
		if (fork->template != t)
			continue;
		if (fork->state == FORK_WAITING)
			ret->forks_waiting++;
		else if (fork->state != FORK_GONE)
			ret->forks_live++;
	}
}

void template_info_clear(struct template_info *info)
{
	free(info->memory);
	free(info->state);
	free(info->hot_list);
	free(info->inject);
	free(info->hot_set_error);
	*info = (struct template_info){ 0 };
}

/* Nobody would find out otherwise: there is no thread to say why it learns nothing. */
static void warn_if_unobserved(const struct server *server, const struct template *t)
{
	if (t->refresh && !server->observer)
		log_warning(NULL,
			    "template %s: its hot list is not kept fresh, as forks are not observed: 'faultline doctor' says what that needs",
			    t->name);
}

int server_template_add(struct server *server, const struct template_spec *spec, struct template_info *ret,
			struct error *err)
{
	int r = check_name(spec->name, "a template's name", err);
	if (r < 0)
		return r;

	_cleanup_template_ struct template *t = NULL;
	r = template_open(spec->name, spec->memory, spec->state, spec->hot_list, spec->inject, &t, err);
	if (r < 0)
		return r;
	if (spec->refresh_hot_list && !spec->hot_list)
		return error_set(err, -EINVAL, "bad_hot_list",
				 "there is no list to keep fresh: name one with --hot-list, which need not exist yet");
	t->refresh = spec->refresh_hot_list;
	t->packs = !spec->no_hot_set;
	if (!spec->no_zero_map && template_map_zeros(t) < 0)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	bool zeros = spec->no_zero_map || zero_map_open_for(t);
	if (spec->hot_list) {
		_cleanup_hotlist_ struct hotlist *list = NULL;
		r = load_hot_list(spec->hot_list, t, &list, err);
		if (r < 0)
			return r;
		if (t->packs)
			hot_set_open_for(server->packer, t);
	}

	LOCK_SCOPE(&server->lock);
	if (server_find_template(server, spec->name))
		return error_set(err, -EEXIST, "template_exists",
				 "there is a template '%s' already: remove it first, or take another name", spec->name);
	r = template_save(t, server->template_dir, err);
	if (r < 0)
		return r;
	if (insert(server, t) < 0) {
		template_forget(spec->name, server->template_dir, NULL);
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	}
	if (ret)
		fill_info(server, t, ret);
	keeper_guard(server->keeper, t);
	if (!zeros)
		packer_find_zeros(server->packer, t);
	keeper_lease(server->keeper, t);
	keeper_ask(server->keeper, t);
	log_info(NULL, "template %s added: %s", t->name, t->memory);
	warn_if_unobserved(server, t);
	t = NULL; /* the table's now */
	return 0;
}

int server_template_get(struct server *server, const char *name, struct template_info *ret, struct error *err)
{
	LOCK_SCOPE(&server->lock);
	struct template *t = server_find_template(server, name);

	if (!t)
		return unknown(name, err);
	fill_info(server, t, ret);
	return 0;
}

int server_template_list(struct server *server, struct template_info **ret, size_t *ret_count, struct error *err)
{
	LOCK_SCOPE(&server->lock);
	struct template_info *infos = calloc(server->template_count ?: 1, sizeof *infos);

	if (!infos)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	for (size_t i = 0; i < server->template_count; i++)
		fill_info(server, server->templates[i], &infos[i]);
	*ret = infos;
	*ret_count = server->template_count;
	return 0;
}

int server_template_remove(struct server *server, const char *name, struct error *err)
{
	LOCK_SCOPE(&server->lock);
	struct template *t = server_find_template(server, name);

	if (!t)
		return unknown(name, err);
	for (const struct fork *fork = server->forks; fork; fork = fork->next)
		if (fork->template == t && fork->state != FORK_GONE)
			return error_set(err, -EBUSY, "template_in_use",
					 "template '%s' has forks, '%s' for one: end and remove them first", name,
					 fork->id);

	int r = template_forget(name, server->template_dir, err);
	if (r < 0)
		return r;
	size_t at = position(server, name);
	server->template_count--;
	memmove(&server->templates[at], &server->templates[at + 1],
		(server->template_count - at) * sizeof server->templates[0]);
	keeper_unguard(server->keeper, t);
	packer_remove(t);
	template_unref(t);
	log_info(NULL, "template %s removed", name);
	return 0;
}

static void load_one(struct server *server, const char *name)
{
	struct error err;
	_cleanup_template_ struct template *t = NULL;

	if (check_name(name, "a template's name", &err) < 0 || template_load(name, server->template_dir, &t, &err) < 0) {
		log_error(NULL, "template %.80s of an earlier server can't be used: %s", name, err.message);
		return;
	}
	if (insert(server, t) == 0) {
		if (t->source->zeros && !zero_map_open_for(t))
			packer_find_zeros(server->packer, t);
		warn_if_unobserved(server, t);
		if (t->hot_list && t->packs)
			packer_open(server->packer, t);
		t = NULL;
	}
}

void server_load_templates(struct server *server)
{
	DIR *dir = opendir(server->template_dir);
	struct dirent *entry;

	if (!dir)
		return;
	while ((entry = readdir(dir))) {
		size_t length = strlen(entry->d_name);
		if (length > 5 && strcmp(entry->d_name + length - 5, ".json") == 0) {
			entry->d_name[length - 5] = '\0';
			load_one(server, entry->d_name);
		}
	}
	closedir(dir);
}
