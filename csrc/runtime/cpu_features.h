// Which instruction set the kernels use on this machine.
#pragma once

#include <string>
#include <vector>

namespace brainfast {

enum class Isa { portable, avx2, avx512 };

const char* name_of(Isa isa);

// What this build holds, what processor and operating system can run, from plain to wide.
std::vector<Isa> supported_isas();

// The widest supported one, or the one that BRAINFAST_ISA (or `wanted`, where not empty) names.
// A name that is unknown or that this machine cannot run throws std::invalid_argument.
Isa select_isa(const std::string& wanted = "");

}  // namespace brainfast
