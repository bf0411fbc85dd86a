#include "serve/weights.h"

/* A CPU counts if it has at least one part in so many of what the CPU with most faults has. */
#define SHARE 8

/* Of one fault, so that it is still something after some looks without another. */
#define WEIGHT_OF_FAULT 16

#define WEIGHT_MAX (1u << 30)

void weights_fade(uint32_t *weights, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		weights[i] /= 2;
}

void weights_add(uint32_t *weight, uint64_t faults)
{
	uint64_t room = (WEIGHT_MAX - *weight) / WEIGHT_OF_FAULT;

	*weight += (uint32_t)(faults < room ? faults : room) * WEIGHT_OF_FAULT;
}

uint32_t weights_enough(const uint32_t *weights, unsigned count)
{
	uint32_t most = 0;

	for (unsigned i = 0; i < count; i++)
		if (weights[i] > most)
			most = weights[i];
	return most / SHARE + (most % SHARE > 0);
}
