/*
 * One HTTP request taken apart, strictly: its path and query from the raw request line, its JSON body against a table of members.
 * Everything a client got wrong comes back as an error that names what and where. A request belongs to the thread of its connection.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

#define REQUEST_BODY_MAX     (1u << 20) /* bodies hold a few names and paths; a hot list goes by its path */
#define REQUEST_DEPTH_MAX    16		/* nesting of JSON: the parser recurses, and the threads' stacks are small */
#define REQUEST_VALUES_MAX   256	/* in a body; parsed, they take up to 80 times the memory of their text */
#define REQUEST_URI_MAX	     8192	/* the longest path a name can make, and room for a query */
#define REQUEST_SEGMENTS_MAX 8		/* of a path; no route has more than 4 */
#define REQUEST_QUERY_MAX    8		/* parameters; no route has more than 2 */

struct server;

struct query_parameter {
	char *name, *value; /* into the request's uri */
};

struct request {
	struct server *server;
	const char *version; /* the server's */
	int connection_fd;   /* to see whether the client is still there */
	bool crowded;	     /* so many requests are under way that this one mustn't wait */
	char method[16];

	char *uri; /* decoded in place; the pointers below are into it */
	char *segments[REQUEST_SEGMENTS_MAX];
	size_t segment_count;
	struct query_parameter query[REQUEST_QUERY_MAX];
	size_t query_count;

	char *body;
	size_t body_size; /* all that came, of which at most REQUEST_BODY_MAX bytes are kept */
	size_t body_capacity;
	json_t *json; /* the body parsed, by request_read_body */
};

void request_clear(struct request *request);

/* Takes TARGET, as it stood in the request line, apart into segments and query. -EINVAL with code bad_uri. */
int request_set_target(struct request *request, const char *target, struct error *err);

/* Keeps a piece of the body; what goes over REQUEST_BODY_MAX is only counted. -ENOMEM. */
int request_add_body(struct request *request, const void *data, size_t size);

/* The parameter's value, NULL where it isn't there. */
const char *request_query(const struct request *request, const char *name);

/* Refuses parameters that ALLOWED (ends with NULL; may be NULL itself) doesn't name, and repeated ones. Code bad_query. */
int request_check_query(const struct request *request, const char *const *allowed, struct error *err);

/* The parameter as one of WORDS (ends with NULL): its index, or DEFAULT where it isn't given. -EINVAL with code bad_query. */
int request_query_word(const struct request *request, const char *name, const char *const *words, int default_index,
		       struct error *err);

/* The parameter as seconds, a decimal number of 0 to MAX_S, in ns. -EINVAL with code bad_query. */
int request_query_seconds(const struct request *request, const char *name, unsigned default_s, unsigned max_s,
			  uint64_t *ret_ns, struct error *err);

/* ---- bodies ---- */

#define MEMBER_SECONDS_MAX 86400
#define MEMBER_BYTES_MIN   4096
#define MEMBER_BYTES_MAX   (1ll << 50)

enum member_type {
	MEMBER_STRING,	/* const char * */
	MEMBER_PATH,	/* const char *: an absolute path that the kernel can take */
	MEMBER_BOOL,	/* bool */
	MEMBER_UID,	/* uid_t */
	MEMBER_BYTES,	/* uint64_t: an integer of MEMBER_BYTES_MIN to MEMBER_BYTES_MAX */
	MEMBER_SECONDS, /* uint64_t in ns: a number of 0 to MEMBER_SECONDS_MAX */
};

/* One member of a body's object, and where its value goes. A member that isn't there leaves its value alone. */
struct member {
	const char *name;
	enum member_type type;
	bool required;
	void *value; /* strings belong to the request */
};

/*
 * Parses the body as an object of these members and no other. -EINVAL with one of the codes missing_body, bad_json, bad_body,
 * unknown_member, missing_member, bad_member, bad_path.
 */
int request_read_body(struct request *request, const struct member *members, size_t count, struct error *err);

/* The body is empty: -EINVAL with code unexpected_body where it isn't. */
int request_check_no_body(const struct request *request, struct error *err);
