// Whether the object with AMX instructions can be tested where the processor has none.
#pragma once

#include <algorithm>
#include <vector>

#include "runtime/cpu_features.h"

#if defined(BRAINFAST_AMX_KERNELS) && defined(__linux__)
#include "emulate_amx.h"
#define BRAINFAST_TRAPS_AMX 1

namespace brainfast {

// True where the instructions are missing and those around them are not: they trap from then on.
inline bool traps_amx() {
  const std::vector<Isa> isas = supported_isas(Precision::bf16);
  const auto runs = [&](Isa isa) { return std::find(isas.begin(), isas.end(), isa) != isas.end(); };
  if (!runs(Isa::avx512) || runs(Isa::amx)) return false;
  trapped_amx::install();
  return true;
}

}  // namespace brainfast

#endif
