// Which instruction set the kernels use on this machine.
#pragma once

#include <string>
#include <vector>

namespace brainfast {

// Of the operands. Sums are float32 in all of them. The same on every machine:
//   fp32    operands as they are
//   bf16    operands rounded to bfloat16, to nearest, ties to even
//   bf16x3  operands as the sum of two bfloat16, high and low, within 2^-17 of the number. Tiles
//           add high*high, high*low and low*high; other paths multiply the sums, which float32
//           holds exactly, and so keep low*low too, at most 2^-16 of a product.
enum class Precision { fp32, bf16, bf16x3 };

const char* name_of(Precision precision);

// "fp32", "bf16" or "bf16x3"; anything else throws std::invalid_argument.
Precision precision_named(const std::string& name);

// A path of the kernels. From avx512bf16 on they belong to bfloat16 operands only. amx_emulated
// runs the AMX kernel on tiles in plain C++, anywhere: for tests, and never chosen by itself.
enum class Isa { portable, avx2, avx512, avx512bf16, amx, amx_emulated };

const char* name_of(Isa isa);

// What this build holds, what processor and operating system can run and what `precision` has a
// kernel for, from plain to wide.
std::vector<Isa> supported_isas(Precision precision = Precision::fp32);

// The path that `precision` takes: the fastest one, or what BRAINFAST_ISA (or `wanted`, where not
// empty) names. Where the named one has no kernel for this precision, the widest plainer one that
// has: "amx" makes fp32 run on AVX-512. A name that is unknown or that this machine cannot run
// throws std::invalid_argument.
Isa select_isa(const std::string& wanted = "", Precision precision = Precision::fp32);

}  // namespace brainfast
