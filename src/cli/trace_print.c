/* Touches as lines for people. Columns have widths that fit a guest of a terabyte, since lines come one by one. */
#include <inttypes.h>
#include <stdio.h>

#include "cli/trace.h"

/* Names are at most 15 bytes. */
#define THREAD_WIDTH 15

void trace_print_heading(void)
{
	printf("%14s  %4s %-*s  %-18s %6s %-14s %-5s %11s %9s %9s %9s %9s\n", "TIME, ms", "VCPU", THREAD_WIDTH,
	       "THREAD", "ADDRESS", "REGION", "OFFSET", "KIND", "TOTAL, us", "QUEUE", "SOURCE", "COPY", "WAKE");
}

static void print_us(int64_t ns)
{
	printf(" %9.1f", (double)ns / 1000);
}

void trace_print_touch(const struct trace_touch *t)
{
	char vcpu[24] = "-";

	if (t->vcpu >= 0)
		snprintf(vcpu, sizeof vcpu, "%lld", t->vcpu);
	printf("%14.3f  %4s %-*.*s  0x%-16" PRIx64 " %6" PRIu64 " 0x%-12" PRIx64 " %-5s", (double)t->time_ns / 1e6,
	       vcpu, THREAD_WIDTH, THREAD_WIDTH, t->thread, t->address, t->region, t->offset, t->kind);
	if (!t->demand)
		printf(" %11s", "there");
	else
		printf(" %11.1f", (double)t->total_ns / 1000);
	if (t->demand && t->phased) {
		print_us(t->queue_ns);
		print_us(t->source_ns);
		print_us(t->copy_ns);
		print_us(t->wake_ns);
	}
	putchar('\n');
}
