/* Pictures of lists: well-formed whatever the list and its name are, small however long it is, and with what a reader needs. */
#include "unit/hotlist_helpers.h"

#include <stdlib.h>

#include "hotlist/plot.h"

static char *draw(const struct plot *plot, size_t *ret_size)
{
	struct error err;
	char *svg;

	if (plot_svg(plot, &svg, ret_size, &err) < 0)
		fail_msg("%s", err.message);
	assert_int_equal(strlen(svg), *ret_size);
	return svg;
}

/* Tags open and close in turn, and no number is one that a viewer can't read. A small parser is enough: the pictures have no comments. */
static void assert_well_formed(const char *svg)
{
	char open[16][16];
	int depth = 0;

	for (const char *c = strchr(svg, '<'); c; c = strchr(c, '<')) {
		const char *end = strchr(c, '>');
		size_t length = strcspn(c + 1, " />");

		assert_non_null(end);
		if (c[1] == '/') {
			assert_true(depth > 0);
			assert_memory_equal(open[depth - 1], c + 2, strlen(open[depth - 1]));
			depth--;
		} else if (end[-1] != '/') {
			assert_true(depth < 16 && length < sizeof open[0]);
			memcpy(open[depth], c + 1, length);
			open[depth++][length] = '\0';
		}
		c = end;
	}
	assert_int_equal(depth, 0);
	assert_null(strstr(svg, "nan"));
	assert_null(strstr(svg, "inf\""));
	assert_null(strstr(svg, "http://www.w3.org/2000/svg\"http"));
}

static void test_a_list_and_its_truth(void **state)
{
	struct hotlist_origin origin = {
		.runs = 3, .clock = HOT_CLOCK_CORRECTED, .tier = "fentry", .window_ns = 1500000000
	};
	_cleanup_hotlist_ struct hotlist *list = hotlist_new(), *truth = hotlist_new();
	size_t size;

	(void)state;
	for (uint64_t i = 0; i < 3000; i++) {
		const struct hot_touch touch = {
			.raw_ns = i + 1, .corrected_ns = i + 1, .seen = 1 + i % 3, .vcpu = (uint16_t)(i % 2)
		};

		assert_int_equal(hotlist_add_touch(list, i % 3, i * 17 % 9000 * 4096, &touch), 0);
		assert_int_equal(hotlist_add(truth, i % 3, i * 17 % 9000 * 4096), 0);
	}
	assert_int_equal(hotlist_set_origin(list, &origin), 0);
	_cleanup_free_ char *svg =
		draw(&(struct plot){ .list = list, .name = "base.hpl2", .truth = truth, .truth_name = "guest.csv" },
		     &size);
	assert_well_formed(svg);
	static const char *const parts[] = { "Hot list base.hpl2",
					     "3,000 pages",
					     "3 runs",
					     "corrected time",
					     "fentry",
					     "window 1.50 s",
					     "vCPU 0",
					     "vCPU 1",
					     "region 2",
					     "MiB",
					     "address in the region",
					     "true order: guest.csv",
					     "rank correlation 1.0000",
					     "area between the curves 0.0000",
					     "prefers-color-scheme:dark",
					     "0 missing" };
	for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
		assert_contains(svg, parts[i]);
	assert_null(strstr(svg, "in all runs"));
	/* Nothing is fetched from anywhere. */
	assert_null(strstr(svg, "href"));
	assert_null(strstr(svg, "url("));
	assert_null(strstr(svg, "@import"));

	_cleanup_free_ char *confidence =
		draw(&(struct plot){ .list = list, .name = "b", .colour = PLOT_COLOUR_CONFIDENCE }, &size);
	assert_well_formed(confidence);
	assert_contains(confidence, "in all runs");
	assert_null(strstr(confidence, "vCPU 0"));
	assert_null(strstr(confidence, "rank correlation"));
}

static void test_lists_with_little_in_them(void **state)
{
	(void)state;
	_cleanup_hotlist_ struct hotlist *none = hotlist_new();
	_cleanup_hotlist_ struct hotlist *one = LIST({ 0, 0 });
	_cleanup_hotlist_ struct hotlist *far = LIST({ UINT64_MAX, UINT64_MAX }, { 0, 0 }, { 5, UINT64_MAX - 4095 });
	struct hotlist *lists[] = { none, one, far };

	for (size_t i = 0; i < 3; i++)
		for (size_t j = 0; j < 3; j++)
			for (unsigned colour = PLOT_COLOUR_AUTO; colour <= PLOT_COLOUR_CONFIDENCE; colour++) {
				size_t size;
				_cleanup_free_ char *svg =
					draw(&(struct plot){ lists[i], "x", (enum plot_colour)colour, lists[j], "y" },
					     &size);

				assert_well_formed(svg);
			}
}

static void test_names_can_hold_anything(void **state)
{
	size_t size;

	(void)state;
	_cleanup_hotlist_ struct hotlist *one = LIST({ 0, 0 });
	_cleanup_free_ char *svg = draw(&(struct plot){ .list = one,
							.name = "<b>&\"\x01\x7f\xff\xc3\xa4\xed\xa0\x80\xe2\x82",
							.truth = one,
							.truth_name = "</svg>" },
					&size);
	assert_well_formed(svg);
	assert_contains(svg, "Hot list &lt;b&gt;&amp;&quot;???\xc3\xa4????"
			     "?"
			     "<");
	assert_contains(svg, "&lt;/svg&gt;");
}

static void test_long_lists_make_small_pictures(void **state)
{
	struct random random = { .state = 11 };
	_cleanup_hotlist_ struct hotlist *list = hotlist_new();
	size_t size;

	(void)state;
	/* The worst there is: a million pages all over, of eight vCPUs, in no order. */
	for (uint64_t i = 0; i < 1000000; i++) {
		const struct hot_touch touch = { .raw_ns = i + 1, .seen = 1, .vcpu = (uint16_t)random_below(&random, 9) };

		assert_int_equal(hotlist_add_touch(list, random_below(&random, 2),
						   random_below(&random, 1 << 20) * 4096, &touch),
				 0);
	}
	_cleanup_free_ char *svg =
		draw(&(struct plot){ .list = list, .name = "big", .truth = list, .truth_name = "big" }, &size);
	assert_well_formed(svg);
	assert_in_range(size, 10000, 400000);

	/* Many regions are told apart no more, but all are there. */
	_cleanup_hotlist_ struct hotlist *regions = hotlist_new();
	for (uint64_t i = 0; i < 5000; i++)
		assert_int_equal(hotlist_add(regions, i, i % 7 * 4096), 0);
	_cleanup_free_ char *many = draw(&(struct plot){ .list = regions, .name = "many" }, &size);
	assert_well_formed(many);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_list_and_its_truth),
		cmocka_unit_test(test_lists_with_little_in_them),
		cmocka_unit_test(test_names_can_hold_anything),
		cmocka_unit_test(test_long_lists_make_small_pictures),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
