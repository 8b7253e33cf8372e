// Worker threads that share out numbered tasks with the thread that calls.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "scratch.h"

namespace brainfast {

// Threads stay alive between calls: they spin briefly, then sleep. A pool that fills the process's
// affinity mask pins its workers and keeps them off the caller's processor; the caller is never
// pinned.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Memory that jobs on this pool work in.
  ScratchShelf& shelf() { return shelf_; }

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // body(task, participant) for every task in 0..tasks-1, each once, in no fixed order;
  // participant < size() names the thread, for scratch of its own. The body must not throw.
  // While another thread is in run(), this one does all of its tasks itself, as participant 0.
  template <class Body>
  void run(std::int64_t tasks, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    Job job;
    job.context = const_cast<void*>(static_cast<const void*>(&body));
    job.tasks = tasks;
    job.call = [](void* context, std::int64_t task, int participant) {
      (*static_cast<Plain*>(context))(task, participant);
    };
    run_job(job);
  }

 private:
  struct Job {
    void (*call)(void*, std::int64_t, int) = nullptr;
    void* context = nullptr;
    std::int64_t tasks = 0;
  };

  void run_job(const Job& job);
  void work(int participant);
  void worker_loop(int participant);
  void pin_workers();
  void stay_clear_of_caller();

  ScratchShelf shelf_;
  Job job_;
  alignas(64) std::atomic<std::int64_t> next_task_{0};
  // Highest bit: the job takes workers on. Other bits: how many are at work.
  alignas(64) std::atomic<std::uint32_t> gate_{0};
  alignas(64) std::atomic<std::uint32_t> epoch_{0};
  std::atomic<bool> stop_{false};
  std::mutex busy_;
  std::vector<std::thread> workers_;
  std::vector<int> worker_cpu_;  // one a worker; empty when nothing is pinned
  int free_cpu_ = -1;
};

// The process's pool, made on first use with BRAINFAST_NUM_THREADS threads, or one for each
// processor that the affinity mask allows and a container's quota pays for. A forked child makes
// its own.
std::shared_ptr<ThreadPool> shared_pool();
int num_threads();
void set_num_threads(int threads);

}  // namespace brainfast
