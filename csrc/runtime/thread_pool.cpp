#include "thread_pool.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <system_error>
#include <utility>

#include "check.h"
#include "usable_cores.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define BRAINFAST_HAS_FORK 1
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace brainfast {
namespace {

constexpr std::uint32_t kOpen = 0x80000000u;
constexpr int kSpins = 2000;  // some tens of microseconds
constexpr int kMaxThreads = 1024;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void pin(std::thread& thread, int cpu) {
#if defined(__linux__)
  cpu_set_t mask;
  CPU_ZERO(&mask);
  CPU_SET(cpu, &mask);
  // A refusal costs speed only.
  pthread_setaffinity_np(thread.native_handle(), sizeof mask, &mask);
#else
  (void)thread;
  (void)cpu;
#endif
}

int default_threads() {
  if (const char* text = std::getenv("BRAINFAST_NUM_THREADS"); text && *text) {
    char* end = nullptr;
    const long threads = std::strtol(text, &end, 10);
    const bool valid = *end == '\0' && threads >= 1 && threads <= kMaxThreads;
    check(valid, "BRAINFAST_NUM_THREADS", "a whole number from 1 to 1024", text);
    return static_cast<int>(threads);
  }
  return std::min(usable_cores(), kMaxThreads);
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  workers_.reserve(std::max(threads - 1, 0));
  for (int participant = 1; participant < threads; ++participant) {
    try {
      workers_.emplace_back([this, participant] { worker_loop(participant); });
    } catch (const std::system_error&) {
      break;  // a limit on threads: go on with those that there are
    }
  }
  pin_workers();
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_release);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::pin_workers() {
  const std::vector<int> cpus = allowed_cpus();
  // Smaller pools of several processes would all sit on the mask's first processors.
  if (cpus.size() != workers_.size() + 1) return;
  free_cpu_ = cpus[0];
  for (std::size_t i = 0; i < workers_.size(); ++i) {
    worker_cpu_.push_back(cpus[i + 1]);
    pin(workers_[i], cpus[i + 1]);
  }
}

void ThreadPool::stay_clear_of_caller() {
#if defined(__linux__)
  if (worker_cpu_.empty()) return;
  const int cpu = sched_getcpu();
  const auto clash = std::find(worker_cpu_.begin(), worker_cpu_.end(), cpu);
  if (clash == worker_cpu_.end()) return;
  *clash = std::exchange(free_cpu_, cpu);
  pin(workers_[clash - worker_cpu_.begin()], *clash);
#endif
}

void ThreadPool::run_job(const Job& job) {
  const std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
  if (!lock.owns_lock() || workers_.empty() || job.tasks <= 1) {
    for (std::int64_t task = 0; task < job.tasks; ++task) job.call(job.context, task, 0);
    return;
  }
  stay_clear_of_caller();
  job_ = job;  // nobody reads it: the gate is shut and no worker is inside
  next_task_.store(0, std::memory_order_relaxed);
  gate_.store(kOpen, std::memory_order_release);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  work(0);
  // A worker that has not come by now is not waited for.
  gate_.fetch_and(~kOpen, std::memory_order_acq_rel);
  for (int spin = 0; gate_.load(std::memory_order_acquire) != 0; ++spin) {
    spin < kSpins ? pause() : std::this_thread::yield();
  }
}

void ThreadPool::work(int participant) {
  const Job& job = job_;
  for (;;) {
    const std::int64_t task = next_task_.fetch_add(1, std::memory_order_relaxed);
    if (task >= job.tasks) return;
    job.call(job.context, task, participant);
  }
}

void ThreadPool::worker_loop(int participant) {
  std::uint32_t seen = 0;
  for (;;) {
    for (int spin = 0; spin < kSpins; ++spin) {
      if (epoch_.load(std::memory_order_acquire) != seen) break;
      pause();
    }
    epoch_.wait(seen, std::memory_order_acquire);
    seen = epoch_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_acquire)) return;
    std::uint32_t gate = gate_.load(std::memory_order_relaxed);
    while (gate & kOpen) {
      if (!gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acquire,
                                       std::memory_order_relaxed)) {
        continue;
      }
      work(participant);
      gate_.fetch_sub(1, std::memory_order_release);
      break;
    }
  }
}

namespace {

struct SharedPool {
  std::mutex mutex;
  std::shared_ptr<ThreadPool> pool;
  std::vector<std::shared_ptr<ThreadPool>> abandoned;  // of parents of this process
  int threads = 0;                                     // 0: not asked for
};

SharedPool& shared();

#if defined(BRAINFAST_HAS_FORK)
void before_fork() { shared().mutex.lock(); }
void after_fork_in_parent() { shared().mutex.unlock(); }

void after_fork_in_child() {
  SharedPool& state = shared();
  // Its threads do not exist here, so it can be neither used nor destroyed: put it aside.
  if (state.pool) state.abandoned.push_back(std::move(state.pool));
  state.mutex.unlock();
}
#endif

SharedPool& shared() {
  // Lives until the process ends: threads may still be in a call while statics are destroyed.
  static SharedPool* const state = [] {
    auto made = std::make_unique<SharedPool>();
#if defined(BRAINFAST_HAS_FORK)
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
#endif
    return made.release();
  }();
  return *state;
}

}  // namespace

std::shared_ptr<ThreadPool> shared_pool() {
  SharedPool& state = shared();
  const std::lock_guard<std::mutex> lock(state.mutex);
  if (!state.pool) {
    if (state.threads == 0) state.threads = default_threads();
    state.pool = std::make_shared<ThreadPool>(state.threads);
  }
  return state.pool;
}

int num_threads() { return shared_pool()->size(); }

void set_num_threads(int threads) {
  check(threads >= 1 && threads <= kMaxThreads, "threads", "a whole number from 1 to 1024",
        std::to_string(threads));
  std::shared_ptr<ThreadPool> made = std::make_shared<ThreadPool>(threads);
  SharedPool& state = shared();
  const std::lock_guard<std::mutex> lock(state.mutex);
  state.threads = threads;
  state.pool.swap(made);  // a run in progress keeps the old one until it ends
}

}  // namespace brainfast
