#include "runtime/thread_pool.h"

#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <thread>
#include <vector>

#include "expect.h"

using namespace brainfast;

// A machine of any size: link with --wrap of both.
static int pretended_cpus = 0;  // 0: this machine's own
static std::atomic<int> pins{0};

extern "C" {
int __real_sched_getaffinity(pid_t process, std::size_t size, cpu_set_t* mask);
int __wrap_sched_getaffinity(pid_t process, std::size_t size, cpu_set_t* mask) {
  if (pretended_cpus == 0) return __real_sched_getaffinity(process, size, mask);
  for (int cpu = 0; cpu < pretended_cpus; ++cpu) CPU_SET(cpu, mask);
  return 0;
}
int __real_pthread_setaffinity_np(pthread_t thread, std::size_t size, const cpu_set_t* mask);
int __wrap_pthread_setaffinity_np(pthread_t thread, std::size_t size, const cpu_set_t* mask) {
  ++pins;
  return pretended_cpus == 0 ? __real_pthread_setaffinity_np(thread, size, mask) : 0;
}
}

namespace {

// Plain integers: a task that ran twice, or a write that is not seen, shows here and in a
// sanitizer.
void expect_each_once(ThreadPool& pool, std::int64_t tasks) {
  std::vector<int> count(tasks), participants(tasks);
  pool.run(tasks, [&](std::int64_t task, int participant) {
    ++count[task];
    participants[task] = participant;
  });
  for (std::int64_t task = 0; task < tasks; ++task) {
    EXPECT(count[task] == 1);
    EXPECT(participants[task] >= 0 && participants[task] < pool.size());
  }
}

void test_every_task_runs_once() {
  for (int threads : {1, 2, 3, 9}) {
    ThreadPool pool(threads);
    EXPECT(pool.size() == threads);
    for (std::int64_t tasks : {0, 1, 2, 3, 100, 2000}) expect_each_once(pool, tasks);
  }
}

void test_many_short_jobs() {
  ThreadPool pool(3);
  std::int64_t total = 0;
  for (int job = 0; job < 3000; ++job) {
    std::atomic<int> sum{0};
    pool.run(4, [&](std::int64_t task, int) { sum += static_cast<int>(task); });
    total += sum;
    if (job % 500 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  EXPECT(total == 3000 * 6);
}

// Scratch of one's own by participant must be safe.
void test_participants_are_exclusive() {
  ThreadPool pool(4);
  std::vector<int> scratch(pool.size());
  pool.run(5000, [&](std::int64_t, int participant) { ++scratch[participant]; });
  int total = 0;
  for (int part : scratch) total += part;
  EXPECT(total == 5000);
}

void test_several_callers() {
  ThreadPool pool(3);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int job = 0; job < 200; ++job) expect_each_once(pool, 20);
    });
  }
  for (std::thread& caller : callers) caller.join();
}

void test_a_job_inside_a_job() {
  ThreadPool pool(3);
  std::atomic<int> sum{0};
  pool.run(6, [&](std::int64_t, int) { pool.run(5, [&](std::int64_t, int) { ++sum; }); });
  EXPECT(sum == 30);
}

// The first processors of the mask belong to every process that has it.
void test_only_a_pool_that_fills_the_mask_is_pinned() {
  pretended_cpus = 4;
  for (int threads : {1, 2, 3, 4, 5}) {
    pins = 0;
    const ThreadPool pool(threads);
    EXPECT(pins == (threads == pretended_cpus ? threads - 1 : 0));
  }
  pretended_cpus = 0;
}

void test_resizing_while_in_use() {
  set_num_threads(2);
  std::atomic<bool> stop{false};
  std::thread caller([&] {
    while (!stop) expect_each_once(*shared_pool(), 50);
  });
  for (int threads : {1, 4, 2, 3}) {
    set_num_threads(threads);
    EXPECT(num_threads() == threads);
    expect_each_once(*shared_pool(), 50);
  }
  stop = true;
  caller.join();
}

void test_wrong_sizes_are_refused() {
  for (int threads : {0, -1, 100000}) {
    bool refused = false;
    try {
      set_num_threads(threads);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    EXPECT(refused);
  }
}

void test_fork() {
  set_num_threads(3);
  expect_each_once(*shared_pool(), 100);
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    expect_each_once(*shared_pool(), 100);
    _exit(num_threads() == 3 ? 0 : 1);
  }
  int status = 1;
  EXPECT(waitpid(child, &status, 0) == child);
  EXPECT(status == 0);
  expect_each_once(*shared_pool(), 100);
}

}  // namespace

int main(int argc, char**) {
  test_every_task_runs_once();
  test_many_short_jobs();
  test_participants_are_exclusive();
  test_several_callers();
  test_a_job_inside_a_job();
  test_only_a_pool_that_fills_the_mask_is_pinned();
  test_resizing_while_in_use();
  test_wrong_sizes_are_refused();
  // ThreadSanitizer does not follow threads that are made in a forked child: then any argument.
  if (argc == 1) test_fork();
  std::puts("thread_pool: passed");
}
