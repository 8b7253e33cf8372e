#include "runtime/usable_cores.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>

#include "expect.h"

using namespace brainfast;

namespace {

namespace fs = std::filesystem;
using Files = std::map<std::string, std::string>;

// quota_cores of a machine that has these files.
std::int64_t cores_of(const Files& files) {
  std::string name = fs::temp_directory_path() / "usable_cores_XXXXXX";
  EXPECT(mkdtemp(name.data()));
  for (const auto& [path, text] : files) {
    const fs::path place = fs::path(name) / path;
    fs::create_directories(place.parent_path());
    std::ofstream(place) << text << '\n';
  }
  const std::int64_t cores = quota_cores(name);
  fs::remove_all(name);
  return cores;
}

const std::string kGroups = "proc/self/cgroup", kMount = "sys/fs/cgroup/";

// The same as in tests/test_machine.py.
void test_version_2() {
  const std::string own = kMount + "a/b/cpu.max", root = kMount + "cpu.max";
  const auto with = [](const char* path, const std::string& file, const char* text) {
    return cores_of({{kGroups, path}, {file, text}});
  };
  EXPECT(cores_of({}) == 0);
  EXPECT(cores_of({{kGroups, "0::/a/b"}}) == 0);
  EXPECT(with("0::/a/b", own, "max 100000") == 0);
  EXPECT(with("0::/a/b", own, "200000 100000") == 2);
  EXPECT(with("0::/a/b", own, "200001 100000") == 3);
  EXPECT(with("0::/a/b", own, "50000 100000") == 1);
  EXPECT(with("0::/", root, "300000 100000") == 3);
  EXPECT(with("0::/a/b", root, "300000 100000") == 3);
  EXPECT(cores_of({{kGroups, "0::/a/b"},
                   {own, "500000 100000"},
                   {kMount + "a/cpu.max", "150000 50000"}}) == 3);
}

void test_version_1() {
  const auto with = [](const char* groups, const std::string& folder, const char* quota,
                       const char* period) {
    return cores_of({{kGroups, groups},
                     {kMount + folder + "/cpu.cfs_quota_us", quota},
                     {kMount + folder + "/cpu.cfs_period_us", period}});
  };
  EXPECT(with("3:cpu,cpuacct:/a/b", "cpu/a/b", "150000", "100000") == 2);
  EXPECT(with("3:cpu:/a/b", "cpu", "400000", "50000") == 8);
  EXPECT(with("3:cpu:/", "cpu", "-1", "100000") == 0);
  EXPECT(with("5:cpuset:/\n4:cpuacct:/\n1:name=systemd:/", "cpu", "100000", "100000") == 0);
  EXPECT(with("2:memory:/x\n1:cpu:/\n0::/", "cpu", "250000", "100000") == 3);
}

void test_this_machine() {
  EXPECT(usable_cores() >= 1);
  const auto allowed = static_cast<int>(allowed_cpus().size());
  EXPECT(allowed == 0 || usable_cores() <= allowed);
}

}  // namespace

int main() {
  test_version_2();
  test_version_1();
  test_this_machine();
  std::puts("usable_cores: passed");
}
