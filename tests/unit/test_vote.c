/*
 * Whether the list that runs vote for is in the guest's own order, whatever its vCPUs and the stalls are like: simulated runs of real guests' traces, held
 * against the traces. The merged list must be at 0.98 of the truth and not more than 0.001 below the best single order, which is that of the raw or of
 * the corrected times, or the order of service.
 */
#include "unit/simulated_run.h"

#include "hotlist/merge.h"
#include "hotlist/order.h"
#include "hotlist/words.h"

#define RUNS 10

/* Many runs are merged of one of them: that takes long, and the smallest trace says it. */
static const char *const workloads[] = { "redis-get.1", "gcc-compile.1", "python-import.1" };
static const unsigned workload_runs[] = { RUNS, 3, 3 };

struct situation {
	const char *name;
	struct sim sim;
	bool mixed; /* every other run is warm */
	/* With so many runs the vote must be right. One or two whose stalls are all short can't tell: their orders are as good as the same. */
	unsigned runs_min;
};

static const struct situation situations[] = {
	{ "one vCPU, cold", { .waiting = SIM_ALONE, .stalls = SIM_COLD, .vcpus = 1 }, .runs_min = 1 },
	{ "one vCPU, warm and cold",
	  { .waiting = SIM_ALONE, .stalls = SIM_COLD, .vcpus = 1 },
	  .mixed = true,
	  .runs_min = 1 },
	{ "two, alone, warm", { .waiting = SIM_ALONE, .stalls = SIM_WARM, .vcpus = 2 }, .runs_min = 3 },
	{ "two, alone, cold", { .waiting = SIM_ALONE, .stalls = SIM_COLD, .vcpus = 2 }, .runs_min = 1 },
	{ "two, alone, uneven", { .waiting = SIM_ALONE, .stalls = SIM_UNEVEN, .vcpus = 2 }, .runs_min = 1 },
	{ "two, alone, warm and cold",
	  { .waiting = SIM_ALONE, .stalls = SIM_COLD, .vcpus = 2 },
	  .mixed = true,
	  .runs_min = 2 },
	{ "two, alone, uneven, losing their CPUs",
	  { .waiting = SIM_ALONE, .stalls = SIM_UNEVEN, .vcpus = 2, .preempted = 0.01 },
	  .runs_min = 1 },
	{ "two, alone, uneven, half prefetched",
	  { .waiting = SIM_ALONE, .stalls = SIM_UNEVEN, .vcpus = 2, .present = 0.5 },
	  .runs_min = 1 },
	{ "two, spinning, warm", { .waiting = SIM_SPINNING, .stalls = SIM_WARM, .vcpus = 2 }, .runs_min = 3 },
	{ "two, spinning, cold", { .waiting = SIM_SPINNING, .stalls = SIM_COLD, .vcpus = 2 }, .runs_min = 1 },
	{ "two, spinning, uneven", { .waiting = SIM_SPINNING, .stalls = SIM_UNEVEN, .vcpus = 2 }, .runs_min = 1 },
	{ "two, spinning, warm and cold",
	  { .waiting = SIM_SPINNING, .stalls = SIM_COLD, .vcpus = 2 },
	  .mixed = true,
	  .runs_min = 2 },
	{ "two, halting, cold", { .waiting = SIM_HALTING, .stalls = SIM_COLD, .vcpus = 2 }, .runs_min = 1 },
	{ "two, halting, uneven", { .waiting = SIM_HALTING, .stalls = SIM_UNEVEN, .vcpus = 2 }, .runs_min = 1 },
	{ "two, halting, warm and cold",
	  { .waiting = SIM_HALTING, .stalls = SIM_COLD, .vcpus = 2 },
	  .mixed = true,
	  .runs_min = 1 },
	{ "eight, alone, cold", { .waiting = SIM_ALONE, .stalls = SIM_COLD, .vcpus = 8 }, .runs_min = 1 },
	{ "eight, alone, uneven", { .waiting = SIM_ALONE, .stalls = SIM_UNEVEN, .vcpus = 8 }, .runs_min = 1 },
	{ "eight, spinning, cold", { .waiting = SIM_SPINNING, .stalls = SIM_COLD, .vcpus = 8 }, .runs_min = 1 },
	{ "eight, spinning, uneven", { .waiting = SIM_SPINNING, .stalls = SIM_UNEVEN, .vcpus = 8 }, .runs_min = 1 },
	{ "two, with timers, cold", { .waiting = SIM_TIMERS, .stalls = SIM_COLD, .vcpus = 2 }, .runs_min = 1 },
	{ "two, with timers, uneven", { .waiting = SIM_TIMERS, .stalls = SIM_UNEVEN, .vcpus = 2 }, .runs_min = 1 },
	{ "eight, with timers, cold", { .waiting = SIM_TIMERS, .stalls = SIM_COLD, .vcpus = 8 }, .runs_min = 1 },
	{ "eight, with timers, uneven", { .waiting = SIM_TIMERS, .stalls = SIM_UNEVEN, .vcpus = 8 }, .runs_min = 1 },
	{ "eight, halting, cold", { .waiting = SIM_HALTING, .stalls = SIM_COLD, .vcpus = 8 }, .runs_min = 1 },
};

/* Correlation of the list with the truth, were it in the order of that time. */
static double correlation_by(const struct hotlist *list, bool corrected, const struct hotlist *truth)
{
	_cleanup_free_ double *times = calloc(list->count, sizeof *times), *places = calloc(list->count, sizeof *places);
	_cleanup_page_index_ struct page_index index = { .pages = NULL };

	assert_non_null(times);
	assert_non_null(places);
	assert_int_equal(page_index_add_list(&index, truth), 0);
	for (size_t i = 0; i < list->count; i++) {
		times[i] = (double)(corrected ? list->touches[i].corrected_ns : list->touches[i].raw_ns);
		places[i] = page_index_find(&index, list->pages[i].region, list->pages[i].offset);
	}
	return order_rank_correlation_of(times, places, list->count);
}

struct runs {
	struct hotlist *lists[RUNS];
	const char *names[RUNS];
	unsigned count;
	double best; /* mean over the runs of the better time */
};

static void make_runs(struct runs *runs, const struct situation *situation, const struct trace *trace,
		      const struct hotlist *truth, unsigned count)
{
	double raw = 0, corrected = 0;

	runs->count = count;
	for (unsigned i = 0; i < count; i++) {
		struct sim sim = situation->sim;

		sim.seed = i + 1;
		if (situation->mixed && i % 2 == 0)
			sim.stalls = SIM_WARM;
		runs->lists[i] = sim_list(&sim, trace);
		runs->names[i] = "run";
		raw += correlation_by(runs->lists[i], false, truth) / count;
		corrected += correlation_by(runs->lists[i], true, truth) / count;
	}
	runs->best = raw > corrected ? raw : corrected;
}

static void free_runs(struct runs *runs)
{
	for (unsigned i = 0; i < runs->count; i++)
		hotlist_free(runs->lists[i]);
}

static void check_vote(const struct runs *runs, unsigned count, const struct hotlist *truth, const char *workload,
		       const char *situation)
{
	struct merge_result result;
	struct error err;

	assert_int_equal(merge_lists((const struct hotlist *const *)runs->lists, runs->names, count, &result, &err), 0);
	double correlation = order_rank_correlation(result.list, truth, NULL);
	/* One of ten pages may have been rare in one run: none is in these. */
	assert_int_equal(result.list->count, truth->count);
	if (correlation < 0.98 || correlation < runs->best - 0.001)
		fail_msg("%s, %s, %u runs: %.5f by the %s clock (reason %d), where the best single order has %.5f; agreement raw %.6f "
			 "corrected %.6f, independence %.3f",
			 workload, situation, count, correlation, hot_clock_word(result.vote.clock) ?: "unknown",
			 result.vote.reason, runs->best, result.vote.agreement_raw, result.vote.agreement_corrected,
			 result.vote.independence);
	hotlist_free(result.list);
}

static void test_the_voted_list_is_in_the_guests_order(void **state)
{
	static const unsigned counts[] = { 1, 2, 3, 10 };

	(void)state;
	for (size_t w = 0; w < sizeof workloads / sizeof *workloads; w++) {
		_cleanup_trace_ struct trace *trace = sim_trace(workloads[w]);
		_cleanup_hotlist_ struct hotlist *truth = sim_truth(trace);

		for (size_t s = 0; s < sizeof situations / sizeof *situations; s++) {
			struct runs runs;

			make_runs(&runs, &situations[s], trace, truth, workload_runs[w]);
			for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
				if (counts[c] >= situations[s].runs_min && counts[c] <= runs.count)
					check_vote(&runs, counts[c], truth, workloads[w], situations[s].name);
			free_runs(&runs);
		}
	}
}

/* Where stalls are all short, one run may take the wrong clock; what that costs is bounded. */
static void test_one_warm_run_is_nearly_right(void **state)
{
	(void)state;
	for (size_t w = 0; w < sizeof workloads / sizeof *workloads; w++) {
		_cleanup_trace_ struct trace *trace = sim_trace(workloads[w]);
		_cleanup_hotlist_ struct hotlist *truth = sim_truth(trace);

		for (unsigned waiting = SIM_ALONE; waiting <= SIM_HALTING; waiting++)
			for (uint64_t seed = 1; seed <= 5; seed++) {
				struct sim sim = { .waiting = (enum sim_waiting)waiting,
						   .stalls = SIM_WARM,
						   .vcpus = 2,
						   .seed = seed };
				_cleanup_hotlist_ struct hotlist *list = sim_list(&sim, trace);

				assert_true(order_rank_correlation(list, truth, NULL) >= 0.985);
			}
	}
}

/* What a run shows by itself is on the right side, and clear, where stalls are long. */
static void test_a_run_shows_whether_its_vcpus_wait(void **state)
{
	(void)state;
	for (size_t w = 0; w < sizeof workloads / sizeof *workloads; w++) {
		_cleanup_trace_ struct trace *trace = sim_trace(workloads[w]);

		for (unsigned stalls = SIM_COLD; stalls <= SIM_UNEVEN; stalls++)
			for (uint64_t seed = 1; seed <= 3; seed++) {
				struct independence measured[2];

				for (unsigned waiting = SIM_ALONE; waiting <= SIM_SPINNING; waiting++) {
					struct sim sim = { .waiting = (enum sim_waiting)waiting,
							   .stalls = (enum sim_stalls)stalls,
							   .vcpus = 2,
							   .seed = seed };
					struct recording recording = { .touches = NULL };

					sim_run(&sim, trace, &recording);
					assert_int_equal(independence_measure(&recording, UINT64_MAX, &measured[waiting]),
							 0);
					recording_clear(&recording);
				}
				assert_int_equal(measured[SIM_ALONE].vcpus, 2);
				assert_true(measured[SIM_SPINNING].ratio < 0.03);
				assert_true(measured[SIM_SPINNING].expected > 80);
				assert_true(measured[SIM_ALONE].ratio > measured[SIM_SPINNING].ratio + 0.05);
			}
	}
}

/* What halts and is woken is seen: corrected times are right then too. */
static void test_the_clock_follows_wake_ups(void **state)
{
	(void)state;
	for (size_t w = 0; w < sizeof workloads / sizeof *workloads; w++) {
		_cleanup_trace_ struct trace *trace = sim_trace(workloads[w]);
		_cleanup_hotlist_ struct hotlist *truth = sim_truth(trace);

		for (unsigned vcpus = 2; vcpus <= 8; vcpus *= 2)
			for (unsigned stalls = SIM_WARM; stalls <= SIM_UNEVEN; stalls++) {
				struct sim sim = { .waiting = SIM_HALTING,
						   .stalls = (enum sim_stalls)stalls,
						   .vcpus = vcpus,
						   .seed = 1 };
				_cleanup_hotlist_ struct hotlist *list = sim_list(&sim, trace);

				double correlation = correlation_by(list, true, truth);
				if (correlation < 0.999)
					fail_msg("%s, %u vCPUs, stalls %u: %.5f", workloads[w], vcpus, stalls,
						 correlation);
			}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_voted_list_is_in_the_guests_order),
		cmocka_unit_test(test_one_warm_run_is_nearly_right),
		cmocka_unit_test(test_a_run_shows_whether_its_vcpus_wait),
		cmocka_unit_test(test_the_clock_follows_wake_ups),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
