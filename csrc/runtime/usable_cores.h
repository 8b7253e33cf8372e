// How many processors this process may keep busy. brainfast/machine.py has the same rule.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace brainfast {

// Those of its affinity mask; empty where the system does not tell.
std::vector<int> allowed_cpus();

// As many as the quotas of its control group, and of those around it, pay for, rounded up; 0
// without a quota. proc and sys are in `root`.
std::int64_t quota_cores(const std::string& root = "");

// As many as the mask allows and the quota pays for, at least one.
int usable_cores();

}  // namespace brainfast
