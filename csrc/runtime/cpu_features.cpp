#include "cpu_features.h"

#include <algorithm>
#include <cstdlib>

#include "check.h"

namespace brainfast {

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    default:
      return "portable";
  }
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> isas{Isa::portable};
#if defined(BRAINFAST_X86_KERNELS)
  // These look at cpuid and, through xgetbv, at what the operating system saves.
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    isas.push_back(Isa::avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
      isas.push_back(Isa::avx512);
    }
  }
#endif
  return isas;
}

Isa select_isa(const std::string& wanted) {
  const std::vector<Isa> isas = supported_isas();
  const char* forced = std::getenv("BRAINFAST_ISA");
  const std::string name = !wanted.empty() ? wanted : forced ? forced : "";
  if (name.empty()) return isas.back();
  const auto found =
      std::find_if(isas.begin(), isas.end(), [&](Isa isa) { return name == name_of(isa); });
  if (found != isas.end()) return *found;
  std::string known;
  for (Isa isa : isas) known += (known.empty() ? "" : ", ") + std::string(name_of(isa));
  fail(wanted.empty() ? "BRAINFAST_ISA" : "isa", "one that this machine runs (" + known + ")",
       "'" + name + "'");
}

}  // namespace brainfast
