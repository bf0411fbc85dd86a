/* How much each of a fork's CPUs counts, by its faults lately: what decides which pagers watch. Pure arithmetic. */
#pragma once

#include <stdint.h>

/* Every look: what was before counts half. */
void weights_fade(uint32_t *weights, unsigned count);
/* So many faults (or ticks of CPU time, for all CPUs alike) since the last look. Can't overflow. */
void weights_add(uint32_t *weight, uint64_t faults);
/* What a CPU must have for its pager to watch. 0: there have been no faults. The heaviest always has it, however many share the faults. */
uint32_t weights_enough(const uint32_t *weights, unsigned count);
