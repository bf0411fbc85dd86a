/* The way without a server: the image, mapped privately where the server would have put its pages. */
#include <errno.h>
#include <inttypes.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/checked.h"
#include "client/client_internal.h"
#include "client/memory.h"
#include "client/result.h"

static int check_image(const struct faultline_client *c, int fd, uint64_t *ret_size, struct faultline_error *error)
{
	struct stat image;

	if (fstat(fd, &image) < 0)
		return result_set(error, FAULTLINE_BAD_ARGUMENT, errno, "", "The image's descriptor, %d, is none", fd);
	if (!S_ISREG(image.st_mode))
		return result_set(error, FAULTLINE_BAD_ARGUMENT, 0, "", "The image is not a regular file");
	for (size_t i = 0; i < client_region_count(c); i++) {
		struct handover_region r = client_region(c, i);
		uint64_t end;

		if (!checked_round_up((uint64_t)image.st_size, r.page_size, &end) || r.offset + r.size > end)
			return result_set(error, FAULTLINE_BAD_ARGUMENT, 0, "",
					  "Mapping %zu ends at offset 0x%" PRIx64 " of the image, which has 0x%" PRIx64
					  " bytes",
					  i, r.offset + r.size, (uint64_t)image.st_size);
	}
	*ret_size = (uint64_t)image.st_size;
	return FAULTLINE_OK;
}

/* What lies past the file's last page, of a huge page that the file's end lies in, is zeros as the server would have it. */
static int map_one(const struct handover_region *r, int fd, uint64_t image_size)
{
	const int protection = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;
	char *address = (char *)r->address;
	uint64_t image_end = (image_size + memory_page_size() - 1) & ~((uint64_t)memory_page_size() - 1);
	uint64_t in_file = image_end > r->offset ? image_end - r->offset : 0;

	if (in_file > r->size)
		in_file = r->size;
	/* Huge pages can't be replaced in part. */
	if (in_file < r->size && memory_map(address, r->size, protection, flags | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
		return -errno;
	if (in_file && memory_map(address, in_file, protection, flags, fd, (off_t)r->offset) == MAP_FAILED)
		return -errno;
	return 0;
}

int client_map_image(const struct faultline_client *c, int fd, struct faultline_error *error)
{
	uint64_t size = 0;
	int r = check_image(c, fd, &size, error);

	for (size_t i = 0; r == FAULTLINE_OK && i < client_region_count(c); i++) {
		struct handover_region region = client_region(c, i);
		int mapped = map_one(&region, fd, size);

		if (mapped == -EACCES || mapped == -EPERM)
			r = result_set(error, FAULTLINE_NO_PERMISSION, -mapped, "Open it for reading",
				       "The image can't be mapped for mapping %zu", i);
		else if (mapped < 0)
			r = result_set(error, mapped == -ENOMEM ? FAULTLINE_NO_RESOURCES : FAULTLINE_UNEXPECTED,
				       -mapped, "", "The image can't be mapped for mapping %zu", i);
	}
	return r;
}
