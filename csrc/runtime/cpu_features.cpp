#include "cpu_features.h"

#include <algorithm>
#include <cstdlib>

#include "check.h"

#if defined(BRAINFAST_X86_KERNELS)
#include <cpuid.h>
#endif
#if defined(BRAINFAST_AMX_KERNELS) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace brainfast {
namespace {

#if defined(BRAINFAST_X86_KERNELS)
struct Leaf {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Leaf cpuid(unsigned leaf, unsigned part) {
  Leaf found;
  __get_cpuid_count(leaf, part, &found.a, &found.b, &found.c, &found.d);
  return found;
}

bool has_bit(unsigned bits, int index) { return bits >> index & 1; }

// These look at cpuid and, through xgetbv, at what the operating system saves.
bool runs_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}

bool runs_avx512bf16() {
#if defined(BRAINFAST_AVX512BF16_KERNELS)
  return runs_avx512() && has_bit(cpuid(7, 1).a, 5);
#else
  return false;
#endif
}

// Linux gives tiles only to a process that asks; the threads and children it makes have them too.
bool ask_for_tiles() {
#if defined(BRAINFAST_AMX_KERNELS) && defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool runs_amx() {
  static const bool runs = [] {
    const Leaf features = cpuid(7, 0);
    return runs_avx512() && has_bit(features.d, 22) && has_bit(features.d, 24) && ask_for_tiles();
  }();
  return runs;
}

// AMD's bfloat16 dot products issue as fast as multiply-adds, so they do twice the work; Intel's
// issue half as fast and gain nothing.
bool dot_products_pay() {
  __builtin_cpu_init();
  return __builtin_cpu_is("amd");
}
#endif

bool has_kernel(Precision precision, Isa isa) {
  if (isa <= Isa::avx512) return true;
  if (precision == Precision::fp32) return false;
  // Three dot products take longer than one multiply-add of the exact sums.
  return isa != Isa::avx512bf16 || precision == Precision::bf16;
}

std::vector<Isa> runnable_isas() {
  std::vector<Isa> isas{Isa::portable};
#if defined(BRAINFAST_X86_KERNELS)
  if (runs_avx2()) isas.push_back(Isa::avx2);
  if (runs_avx512()) isas.push_back(Isa::avx512);
  if (runs_avx512bf16()) isas.push_back(Isa::avx512bf16);
  if (runs_amx()) isas.push_back(Isa::amx);
#endif
  return isas;
}

Isa fastest_isa(Precision precision) {
  Isa isa = supported_isas(precision).back();
#if defined(BRAINFAST_X86_KERNELS)
  if (isa == Isa::avx512bf16 && !dot_products_pay()) isa = Isa::avx512;
#endif
  return isa;
}

}  // namespace

const char* name_of(Precision precision) {
  switch (precision) {
    case Precision::bf16:
      return "bf16";
    case Precision::bf16x3:
      return "bf16x3";
    default:
      return "fp32";
  }
}

Precision precision_named(const std::string& name) {
  for (Precision precision : {Precision::fp32, Precision::bf16, Precision::bf16x3}) {
    if (name == name_of(precision)) return precision;
  }
  fail("precision", "fp32, bf16 or bf16x3", "'" + name + "'");
}

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512bf16:
      return "avx512bf16";
    case Isa::amx:
      return "amx";
    case Isa::amx_emulated:
      return "amx-emulated";
    default:
      return "portable";
  }
}

std::vector<Isa> supported_isas(Precision precision) {
  std::vector<Isa> isas = runnable_isas();
  std::erase_if(isas, [&](Isa isa) { return !has_kernel(precision, isa); });
  return isas;
}

Isa select_isa(const std::string& wanted, Precision precision) {
  const char* forced = std::getenv("BRAINFAST_ISA");
  const std::string name = !wanted.empty() ? wanted : forced ? forced : "";
  if (name.empty()) return fastest_isa(precision);
  const std::vector<Isa> runnable = runnable_isas();
  std::vector<Isa> known = runnable;
  known.push_back(Isa::amx_emulated);
  const auto found =
      std::find_if(known.begin(), known.end(), [&](Isa isa) { return name == name_of(isa); });
  if (found == known.end()) {
    std::string names;
    for (Isa isa : runnable) names += (names.empty() ? "" : ", ") + std::string(name_of(isa));
    fail(wanted.empty() ? "BRAINFAST_ISA" : "isa", "one that this machine runs (" + names + ")",
         "'" + name + "'");
  }
  Isa widest = Isa::portable;
  for (Isa isa : known) {
    if (isa <= *found && has_kernel(precision, isa)) widest = isa;
  }
  return widest;
}

}  // namespace brainfast
