#include "usable_cores.h"

#include <algorithm>
#include <fstream>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace brainfast {
namespace {

// Of one control group.
std::int64_t group_cores(const std::string& folder) {
  std::int64_t quota = 0, period = 0;
  std::ifstream both(folder + "/cpu.max");  // version 2; "max" for no quota
  if (!(both >> quota >> period)) {
    std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;  // version 1; -1 for no quota
    std::ifstream(folder + "/cpu.cfs_period_us") >> period;
  }
  return quota > 0 && period > 0 ? (quota - 1) / period + 1 : 0;
}

}  // namespace

std::vector<int> allowed_cpus() {
  std::vector<int> cpus;
#if defined(__linux__)
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &mask)) cpus.push_back(cpu);
    }
  }
#endif
  return cpus;
}

std::int64_t quota_cores(const std::string& root) {
  std::int64_t least = 0;
  std::ifstream groups(root + "/proc/self/cgroup");
  // "number:controllers:path", where version 2 names no controllers.
  for (std::string line; std::getline(groups, line);) {
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool of_processors = ("," + controllers + ",").find(",cpu,") != std::string::npos;
    if (!controllers.empty() && !of_processors) continue;
    const std::string mount =
        root + (controllers.empty() ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu");
    // A container may see its own group as the mount's root and yet be told another path.
    std::string path = line.substr(second + 1);
    for (std::size_t end = path.size(); end != std::string::npos; end = path.rfind('/')) {
      path.resize(end);
      const std::int64_t cores = group_cores(mount + path);
      if (cores > 0 && (least == 0 || cores < least)) least = cores;
    }
  }
  return least;
}

int usable_cores() {
  const std::size_t allowed = allowed_cpus().size();
  const std::int64_t cores = allowed ? allowed : std::thread::hardware_concurrency();
  const std::int64_t paid = quota_cores();
  return static_cast<int>(std::max<std::int64_t>(paid ? std::min(cores, paid) : cores, 1));
}

}  // namespace brainfast
