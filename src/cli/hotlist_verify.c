/* `faultline hotlist verify`: is a list of this image or template, and does every page of it lie in the regions? */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/checked.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/hotlist.h"
#include "cli/options.h"
#include "hotlist/hotlist.h"
#include "hotlist/identity.h"

#define REGIONS_MAX HOTLIST_REGIONS_MAX

/* A region as --regions describes it; OFFSET is where it starts in the image. */
struct region {
	uint64_t size, offset, page_size;
};

struct regions {
	struct region *items;
	size_t count;
	const char *whose; /* for messages */
};

/* What the list is held against. */
struct image {
	const char *template; /* NULL: an image that is no template */
	char *path;
	uint64_t size;
};

bool hotlist_cli_parse_size(const char *text, uint64_t *ret)
{
	static const char units[] = "KMGT";
	unsigned long long n;
	char *end;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	n = strtoull(text, &end, !strncmp(text, "0x", 2) ? 16 : 10);
	if (errno)
		return false;

	const char *unit = *end ? strchr(units, *end) : NULL;
	if (!unit)
		return !*end && (*ret = n, true);
	if (strcmp(end + 1, "") && strcmp(end + 1, "iB"))
		return false;
	return checked_mul(n, 1ull << (10 * (unit - units + 1)), ret);
}

bool hotlist_cli_page_size_ok(uint64_t page_size)
{
	return is_power_of_two(page_size) && page_size >= HOTLIST_PAGE_SIZE;
}

/* One "SIZE[:OFFSET[:PAGE_SIZE]]", which is taken apart in place. NEXT: where a region starts that does not say it. */
static bool parse_region(char *text, uint64_t next, struct region *ret)
{
	struct region region = { .offset = next, .page_size = HOTLIST_PAGE_SIZE };
	char *size = strsep(&text, ":"), *offset = strsep(&text, ":"), *page_size = text;

	if (!hotlist_cli_parse_size(size, &region.size) || (offset && !hotlist_cli_parse_size(offset, &region.offset)) ||
	    (page_size && !hotlist_cli_parse_size(page_size, &region.page_size)))
		return false;
	*ret = region;
	return true;
}

/* Returns EXIT_OK, or EXIT_USAGE with the message printed. */
static int parse_regions(const struct cli_args *args, const char *spec, struct regions *ret)
{
	_cleanup_free_ char *copy = strdup(spec);
	_cleanup_free_ struct region *items = calloc(REGIONS_MAX, sizeof *items);
	uint64_t next = 0;
	size_t count = 0;

	if (!copy || !items)
		return cli_usage_error(args, "out of memory");
	char *rest = copy;
	for (char *one; (one = strsep(&rest, ",")); count++) {
		if (count == REGIONS_MAX)
			return cli_usage_error(args, "--regions names more than %d regions", REGIONS_MAX);
		struct region *region = &items[count];
		if (!parse_region(one, next, region))
			return cli_usage_error(args,
					       "region %zu of --regions must be SIZE[:OFFSET[:PAGE_SIZE]], such as 512M:0:4096",
					       count);
		if (!hotlist_cli_page_size_ok(region->page_size))
			return cli_usage_error(args,
					       "the page size of region %zu must be a power of two of 4096 or more",
					       count);
		if (!region->size || !is_aligned(region->size | region->offset, region->page_size))
			return cli_usage_error(args,
					       "size and offset of region %zu must be multiples of its page size, %" PRIu64
					       ", and the size not 0",
					       count, region->page_size);
		if (!checked_add(region->offset, region->size, &next))
			return cli_usage_error(args, "region %zu ends over 64 bits", count);
	}
	ret->items = TAKE_PTR(items);
	ret->count = count;
	ret->whose = "--regions";
	return EXIT_OK;
}

static bool is_image_path(const char *name)
{
	struct stat st;

	return strchr(name, '/') || stat(name, &st) == 0;
}

static int find_image(const char *path, struct image *ret, struct error *err)
{
	struct stat st;

	if (stat(path, &st) < 0)
		return error_set(err, -errno, "bad_memory", "cannot look at the memory image %s: %s", path,
				 strerror(errno));
	if (!S_ISREG(st.st_mode))
		return error_set(err, -EINVAL, "bad_memory", "%s is no memory image: it is not a regular file", path);
	char *copy = strdup(path);
	if (!copy)
		return error_set(err, -ENOMEM, "no_memory", "out of memory");
	*ret = (struct image){ .path = copy, .size = (uint64_t)st.st_size };
	return 0;
}

static int find_template(const struct cli_args *args, const char *name, struct image *ret, struct error *err)
{
	_cleanup_client_call_ struct client_call call = { .args = args };
	const char *memory;
	json_int_t size;

	int r = client_call_named(&call, "GET", "/v1/templates/", name, "", API_TIMEOUT_S);
	if (r < 0) {
		*err = call.err;
		return r;
	}
	if (json_unpack(call.reply.json, "{s:s,s:I}", "memory", &memory, "memory_size", &size) || size < 0)
		return error_set(err, -EPROTO, "bad_answer",
				 "the server's answer does not say where the memory of template %s is: it is of another version",
				 name);
	char *copy = strdup(memory);
	if (!copy)
		return error_set(err, -ENOMEM, "no_memory", "out of memory");
	*ret = (struct image){ .template = name, .path = copy, .size = (uint64_t)size };
	return 0;
}

/* The last page of an image may be cut short by its end: it is served with zeros behind. */
static int check_regions(const struct regions *regions, const struct image *image, struct error *err)
{
	for (size_t i = 0; i < regions->count; i++) {
		const struct region *region = &regions->items[i];
		uint64_t end;

		if (!checked_round_up(image->size, region->page_size, &end) || region->offset + region->size > end)
			return error_set(err, -EINVAL, "bad_region",
					 "region %zu of %s ends at byte %" PRIu64
					 " of the image %s, which has only %" PRIu64,
					 i, regions->whose, region->offset + region->size, image->path, image->size);
	}
	return 0;
}

static int check_list(const struct hotlist *list, const struct regions *regions, struct error *err)
{
	_cleanup_free_ struct hotlist_region *checked = calloc(regions->count, sizeof *checked);

	if (!checked)
		return error_set(err, -ENOMEM, "no_memory", "out of memory");
	for (size_t i = 0; i < regions->count; i++)
		checked[i] = (struct hotlist_region){
			.size = regions->items[i].size,
			.page_size = regions->items[i].page_size,
		};
	int r = hotlist_check_layout(list, checked, regions->count, err);
	return r < 0 ? r : hotlist_check(list, checked, regions->count, err);
}

/* A list that is bound to an image must be bound to this one. */
static int check_identity(const struct hotlist *list, const struct image *image, struct error *err)
{
	uint8_t identity[IMAGE_IDENTITY_SIZE];

	if (!hotlist_origin_is_bound(list->origin))
		return 0;
	_cleanup_close_ int fd = open(image->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	int r = fd < 0 ? -errno : image_identity(fd, image->size, identity);
	if (r < 0)
		return error_set(err, r, "bad_memory",
				 "the list says which image it is for, and %s cannot be read to compare: %s",
				 image->path, r == -ENODATA ? "it has become shorter" : strerror(-r));
	return hotlist_check_image(list, image->path, image->size, identity, err);
}

/* False: the list names no regions, or not the size of each. */
static bool regions_of_list(const struct hotlist *list, struct regions *ret)
{
	size_t count = list->origin ? list->origin->region_count : 0;

	for (size_t i = 0; i < count; i++)
		if (!list->origin->regions[i].size)
			return false;
	ret->items = count ? calloc(count, sizeof *ret->items) : NULL;
	if (!ret->items)
		return false;
	for (size_t i = 0; i < count; i++) {
		const struct hotlist_region_size *region = &list->origin->regions[i];
		ret->items[i] = (struct region){ region->size, region->offset, region->page_size ?: HOTLIST_PAGE_SIZE };
	}
	ret->count = count;
	ret->whose = "the list";
	return true;
}

static int print_result(const struct cli_args *args, const char *file, const struct hotlist *list,
			const struct regions *regions, const struct image *image)
{
	char size[32];

	if (args->json) {
		json_t *value = json_pack("{s:b,s:s,s:I,s:b,s:s?,s:s,s:I,s:I}", "ok", 1, "file", file, "entries",
					  (json_int_t)list->count, "bound", hotlist_origin_is_bound(list->origin),
					  "template", image->template, "memory", image->path, "memory_size",
					  (json_int_t)image->size, "regions", (json_int_t)regions->count);
		if (!value) {
			struct error err;
			error_set(&err, -EILSEQ, "bad_path",
				  "%s or %s is not UTF-8, which JSON needs: leave out --json", file, image->path);
			return cli_fail(true, &err);
		}
		int exit_code = cli_print_json(value);
		json_decref(value);
		return exit_code;
	}
	cli_format_size(image->size, size, sizeof size);
	printf("%s %s %s%s (%s%s%s): %zu page%s, %zu region%s\n", file,
	       hotlist_origin_is_bound(list->origin) ? "was recorded on" : "fits", image->template ? "template " : "",
	       image->template ?: image->path, image->template ? image->path : "", image->template ? ", " : "", size,
	       list->count, list->count == 1 ? "" : "s", regions->count, regions->count == 1 ? "" : "s");
	return cli_finish_output();
}

static int verify(const struct cli_args *args, struct regions *regions, struct image *image)
{
	const char *file = args->arguments[0], *name = cli_value(args, "template");
	_cleanup_hotlist_ struct hotlist *list = NULL;
	struct region whole = { .page_size = HOTLIST_PAGE_SIZE };
	struct regions whole_image = { .items = &whole, .count = 1 };
	struct error err;

	if (hotlist_cli_load(args, file, &list, &err) < 0)
		return cli_fail(args->json, &err);
	if ((is_image_path(name) ? find_image(name, image, &err) : find_template(args, name, image, &err)) < 0)
		return cli_fail(args->json, &err);

	if (check_identity(list, image, &err) < 0) {
		error_prefix(&err, -ESTALE, "%s is not for %s: ", file, name);
		return cli_fail(args->json, &err);
	}
	if (!regions->count && !regions_of_list(list, regions)) {
		if (!checked_round_up(image->size, HOTLIST_PAGE_SIZE, &whole.size))
			whole.size = image->size;
		regions = &whole_image;
	}
	if (check_regions(regions, image, &err) < 0)
		return cli_fail(args->json, &err);
	if (check_list(list, regions, &err) < 0) {
		error_prefix(&err, -EINVAL, "%s does not fit %s: ", file, name);
		return cli_fail(args->json, &err);
	}
	return print_result(args, file, list, regions, image);
}

int hotlist_cli_verify(const struct cli_args *args)
{
	const char *spec = cli_value(args, "regions");
	struct regions regions = { .items = NULL };
	struct image image = { .path = NULL };

	int exit_code = spec ? parse_regions(args, spec, &regions) : EXIT_OK;
	if (exit_code == EXIT_OK)
		exit_code = verify(args, &regions, &image);
	free(regions.items);
	free(image.path);
	return exit_code;
}
