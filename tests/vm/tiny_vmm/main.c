/*
 * A virtual machine whose guest does exactly what a script says, for tests and measurements of what is seen of it: touches pages in an order,
 * from several vCPUs that wait for each other or don't. It knows the truth: which pages were touched, when, by whom, and which of them were there
 * before. Memory comes from a page server through libfaultline, or from the image itself; every page touched is compared with the image.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "vmm.h"

void fail(const char *format, ...)
{
	va_list args;

	fputs("faultline-tiny-vmm: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	fflush(NULL);
	_exit(EXIT_FAILED); /* whatever the threads are doing */
}

static const char usage_text[] =
	"usage: faultline-tiny-vmm [OPTION]... IMAGE\n"
	"\n"
	"Runs a guest under KVM that touches pages of IMAGE as a script says, and prints the truth about it, in JSON, a line each:\n"
	"what is known at the start, each touch in the order in which they came, and sums. Times are CLOCK_MONOTONIC.\n"
	"\n"
	"  --script FILE      what the vCPUs do; default: stdin\n"
	"  --socket PATH      the fork's socket; default: $FAULTLINE_SOCKET; with neither, the image is mapped, without a server\n"
	"  --wait-prefetched  start the guest when the server has prefetched\n"
	"  --irqchip          let the kernel have the interrupt controllers, and the guest take interrupts: then kernel threads take\n"
	"                     the faults; without it, the vCPUs' threads do\n"
	"  --split PAGES      so many pages are in a slot (and region) of their own, the rest in another\n"
	"  --cpus LIST        CPUs for the vCPUs to stay on, as in 0,1\n"
	"  --quiet            don't print the touches\n"
	"\n"
	"Exit status: 0 all is well, 1 failed, 2 usage, 3 the server has gone, 4 a page was wrong.\n"
	"\n";

static void usage_error(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
static void usage_error(const char *format, ...)
{
	va_list args;

	fputs("faultline-tiny-vmm: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputs(" (see --help)\n", stderr);
	exit(EXIT_USAGE);
}

static void parse_cpus(struct options *options, const char *list)
{
	const char *at = list;

	for (unsigned i = 0; i < VCPUS_MAX; i++) {
		char *end;
		unsigned long cpu = strtoul(at, &end, 10);

		if (end == at || *at < '0' || *at > '9' || cpu >= CPU_SETSIZE || (*end && *end != ','))
			usage_error("'%s' is no list of CPUs, as in 0,1", list);
		options->cpus[i] = (int)cpu;
		if (!*end)
			return;
		at = end + 1;
	}
	usage_error("more than %d CPUs in '%s'", VCPUS_MAX, list);
}

static void parse_options(struct options *options, int argc, char **argv)
{
	static const struct option table[] = {
		{ "script", required_argument, NULL, 's' },
		{ "socket", required_argument, NULL, 'S' },
		{ "wait-prefetched", no_argument, NULL, 'w' },
		{ "irqchip", no_argument, NULL, 'i' },
		{ "split", required_argument, NULL, 'p' },
		{ "cpus", required_argument, NULL, 'c' },
		{ "quiet", no_argument, NULL, 'q' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	char *end;
	int o;

	*options = (struct options){ .socket = getenv("FAULTLINE_SOCKET") };
	for (unsigned i = 0; i < VCPUS_MAX; i++)
		options->cpus[i] = -1;
	while ((o = getopt_long(argc, argv, "", table, NULL)) >= 0)
		switch (o) {
		case 's':
			options->script = optarg;
			break;
		case 'S':
			options->socket = optarg;
			break;
		case 'w':
			options->wait_prefetched = true;
			break;
		case 'i':
			options->irqchip = true;
			break;
		case 'p':
			options->split = strtoull(optarg, &end, 10);
			if (*optarg < '0' || *optarg > '9' || *end || options->split == 0 || options->split > UINT32_MAX)
				usage_error("'%s' is no number of pages", optarg);
			break;
		case 'c':
			parse_cpus(options, optarg);
			break;
		case 'q':
			options->quiet = true;
			break;
		case 'h':
			fputs(usage_text, stdout);
			fputs(script_help, stdout);
			exit(0);
		default:
			exit(EXIT_USAGE); /* getopt has said why */
		}
	if (optind + 1 != argc)
		usage_error(optind == argc ? "there is no image" : "there is more than one image");
	options->image = argv[optind];
	options->server = options->socket && *options->socket;
	if (options->wait_prefetched && !options->server)
		usage_error("--wait-prefetched needs a server to wait for");
}

static void read_script(struct vmm *vmm)
{
	const char *path = vmm->options.script;
	_cleanup_fclose_ FILE *file = path ? fopen(path, "re") : NULL;

	if (path && !file)
		fail("%s: %s", path, strerror(errno));
	if (script_read(&vmm->script, file ? file : stdin, path ? path : "stdin") < 0)
		exit(EXIT_USAGE);
	if (vmm->script.halts && !vmm->options.irqchip)
		usage_error("'halt' needs --irqchip: who halts is woken by an interrupt");
}

int main(int argc, char **argv)
{
	struct vmm vmm = { .image = -1, .done = -1 };
	struct faultline_error error;

	parse_options(&vmm.options, argc, argv);
	read_script(&vmm);
	memory_open_image(&vmm);
	memory_lay_out(&vmm);
	memory_check_fetched_pages(&vmm);
	vmm.present = calloc(vmm.pages, 1);
	vmm.writers = calloc(vmm.pages, 1);
	vmm.touched = calloc(vmm.pages, 1);
	if (!vmm.present || !vmm.writers || !vmm.touched)
		fail("no memory for %" PRIu64 " pages", vmm.pages);
	memory_fill(&vmm);
	run_make_machine(&vmm);
	run_machine(&vmm);
	uint64_t wrong = report(&vmm);

	machine_free(&vmm.machine);
	if (faultline_close(&vmm.client, &error) < 0)
		fail("%s. %s", error.what, error.remedy);
	guest_control_free(&vmm.control);
	script_clear(&vmm.script);
	free(vmm.present);
	free(vmm.writers);
	free(vmm.touched);
	close(vmm.image);
	close(vmm.done);
	return wrong ? EXIT_WRONG : 0;
}
