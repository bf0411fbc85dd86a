#include "bench/result.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* A floor that differs less than this from itself is steady enough to tell on which side of its target a ratio is. */
#define NOISE_IGNORED 0.02

struct side *case_add_side(struct bench_case *c, const char *id, const char *label)
{
	if (c->side_count == SIDES_MAX)
		abort(); /* a table in the source is too long */
	struct side *side = &c->sides[c->side_count++];
	*side = (struct side){ .id = id, .label = label };
	return side;
}

struct side *case_side(struct bench_case *c, const char *id)
{
	for (unsigned i = 0; i < c->side_count; i++)
		if (!strcmp(c->sides[i].id, id))
			return &c->sides[i];
	return NULL;
}

void case_add_ratio(struct bench_case *c, struct ratio ratio)
{
	if (c->ratio_count == RATIOS_MAX)
		abort();
	c->ratios[c->ratio_count++] = ratio;
}

void case_add_limit(struct bench_case *c, struct limit limit)
{
	if (c->limit_count == RATIOS_MAX)
		abort();
	c->limits[c->limit_count++] = limit;
}

void case_skip(struct bench_case *c, const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	vsnprintf(c->skipped, sizeof c->skipped, format, ap);
	va_end(ap);
}

static const struct series *side_series(const struct side *side, const char *metric)
{
	for (unsigned i = 0; side && i < side->metric_count; i++)
		if (!strcmp(side->metrics[i].name, metric))
			return &side->metrics[i].series;
	return NULL;
}

void side_add(struct side *side, const char *metric, double value)
{
	struct series *series = (struct series *)side_series(side, metric);

	if (!series) {
		if (side->metric_count == METRICS_MAX)
			abort();
		side->metrics[side->metric_count] = (struct metric){ .name = metric };
		series = &side->metrics[side->metric_count++].series;
	}
	series_add(series, value);
}

/* ---- ratios ---- */

/* Of the sides named in NAMES, the one with the least median of METRIC. */
static const struct side *best_of(struct bench_case *c, const char *names, const char *metric)
{
	const struct side *best = NULL;
	double least = 0;

	while (*names) {
		size_t length = strcspn(names, " ");
		char id[64];

		snprintf(id, sizeof id, "%.*s", (int)length, names);
		const struct side *side = case_side(c, id);
		const struct series *series = side_series(side, metric);
		if (series && (!best || series_median(series) < least)) {
			best = side;
			least = series_median(series);
		}
		names += length + strspn(names + length, " ");
	}
	return best;
}

/* How far the floor strays from itself, or a negative number where it was not run twice. */
static double noise_of(struct bench_case *c, const char *metric)
{
	const struct series *a = c->again[0] ? side_series(case_side(c, c->again[0]), metric) : NULL;
	const struct series *b = c->again[1] ? side_series(case_side(c, c->again[1]), metric) : NULL;

	return a && b ? series_noise(a, b) : -1;
}

/* ---- JSON ---- */

/* Six digits are more than any figure here deserves. */
static json_t *number(double value)
{
	char text[32];

	snprintf(text, sizeof text, "%.6g", value);
	return json_real(strtod(text, NULL));
}

static json_t *summary_to_json(const struct series *series)
{
	struct summary s = series_summary(series);

	return json_pack("{s:o,s:o,s:o,s:o,s:o}", "median", number(s.median), "min", number(s.min), "q1", number(s.q1),
			 "q3", number(s.q3), "max", number(s.max));
}

static json_t *series_to_json(const struct series *series)
{
	json_t *value = summary_to_json(series), *rounds = json_array();

	for (unsigned i = 0; i < series->count; i++)
		json_array_append_new(rounds, number(series->values[i]));
	json_object_set_new(value, "rounds", rounds);
	return value;
}

static json_t *side_to_json(const struct side *side)
{
	json_t *metrics = json_object();

	for (unsigned i = 0; i < side->metric_count; i++)
		json_object_set_new(metrics, side->metrics[i].name, series_to_json(&side->metrics[i].series));
	return json_pack("{s:s,s:s,s:o}", "id", side->id, "label", side->label, "metrics", metrics);
}

static json_t *ratio_to_json(struct bench_case *c, const struct ratio *ratio)
{
	const struct side *to = best_of(c, ratio->to, ratio->metric);
	const struct series *of = side_series(case_side(c, ratio->of), ratio->metric);
	const struct series *over = side_series(to, ratio->metric);

	if (!of || !over || series_median(over) <= 0)
		return NULL;
	double value = series_median(of) / series_median(over), noise = noise_of(c, ratio->metric);
	struct series rounds = series_ratio(of, over);
	json_t *json = json_pack("{s:s,s:s,s:s,s:s,s:o,s:o}", "label", ratio->label, "metric", ratio->metric, "of",
				 ratio->of, "to", to->id, "value", number(value), "rounds", series_to_json(&rounds));

	json_object_set_new(json, "noise", noise < 0 ? json_null() : number(noise));
	if (ratio->target <= 0) {
		json_object_set_new(json, "target", json_null());
		json_object_set_new(json, "met", json_null());
		json_object_set_new(json, "too_noisy", json_false());
		return json;
	}
	bool met = ratio->at_least ? value >= ratio->target : value <= ratio->target;
	bool too_noisy = noise > NOISE_IGNORED && fabs(log(value / ratio->target)) < log1p(noise);
	json_object_set_new(json, "target",
			    json_pack("{s:o}", ratio->at_least ? "at_least" : "at_most", number(ratio->target)));
	json_object_set_new(json, "met", json_boolean(met));
	json_object_set_new(json, "too_noisy", json_boolean(too_noisy));
	return json;
}

static json_t *limit_to_json(struct bench_case *c, const struct limit *limit)
{
	const struct series *series = side_series(case_side(c, limit->side), limit->metric);

	if (!series)
		return NULL;
	double value = series_median(series);
	return json_pack("{s:s,s:s,s:s,s:o,s:{s:o},s:b}", "label", limit->label, "metric", limit->metric, "of",
			 limit->side, "value", number(value), "target", limit->at_least ? "at_least" : "at_most",
			 number(limit->target), "met",
			 limit->at_least ? value >= limit->target : value <= limit->target);
}

static bool all_finite(const struct bench_case *c)
{
	for (unsigned i = 0; i < c->side_count; i++)
		for (unsigned k = 0; k < c->sides[i].metric_count; k++)
			for (unsigned n = 0; n < c->sides[i].metrics[k].series.count; n++)
				if (!isfinite(c->sides[i].metrics[k].series.values[n]))
					return false;
	return true;
}

json_t *case_to_json(struct bench_case *c)
{
	json_t *sides = json_array(), *ratios = json_array(), *limits = json_array();
	bool good = all_finite(c);

	for (unsigned i = 0; i < c->side_count && !c->skipped[0]; i++)
		good = json_array_append_new(sides, side_to_json(&c->sides[i])) == 0 && good;
	for (unsigned i = 0; i < c->ratio_count && !c->skipped[0]; i++)
		good = json_array_append_new(ratios, ratio_to_json(c, &c->ratios[i])) == 0 && good;
	for (unsigned i = 0; i < c->limit_count && !c->skipped[0]; i++)
		good = json_array_append_new(limits, limit_to_json(c, &c->limits[i])) == 0 && good;

	json_t *json = json_pack("{s:s,s:s,s:s,s:o,s:o,s:o,s:o}", "id", c->id, "title", c->title, "details", c->details,
				 "skipped", c->skipped[0] ? json_string(c->skipped) : json_null(), "sides", sides,
				 "ratios", ratios, "limits", limits);
	if (!json || !good) {
		json_decref(json);
		return NULL;
	}
	return json;
}
