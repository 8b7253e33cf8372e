// Runs CUDA kernels on the host: each thread is a fiber, blocks run one after another.
//
// Barriers, warp votes and shuffles, integer atomics, dynamic shared memory (filled with NaN, and
// of its exact size, so that a sanitizer sees a step over its end), asynchronous copies, and the
// tensor-core operations of kernels/tensor_core.cuh with the fragments' layouts of the PTX manual.
// The order of blocks and threads and the moment of a copy are a Schedule's: a missing barrier or
// wait shows as different results. A barrier that not all threads reach, or a warp whose lanes are
// at different operations, ends the program.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "fiber_stack.h"

namespace emulator {

struct Index {
  int x = 0, y = 0, z = 0;
};

struct Schedule {
  bool reverse_blocks = false;
  unsigned shuffle_threads = 0;  // a seed; 0 is ascending
  bool late_copies = false;      // at the wait, instead of where they are issued
};

inline Schedule schedule;
inline long launches = 0;  // since the program began

enum class Wait { none, warp, block, done };

// For all lanes of a warp at once, given what each of them handed over.
using WarpOperation = void (*)(void* const* lanes);

struct Copy {
  void* to;
  const void* from;
  int group;
};

struct Fiber {
  FiberStack stack;
  Wait wait = Wait::none;
  Index thread;
  WarpOperation operation = nullptr;
  void* operand = nullptr;
  std::vector<Copy> copies;
  int copy_group = 0;
};

[[noreturn]] inline void stop(const char* reason) {
  std::fprintf(stderr, "thread block emulator: %s\n", reason);
  std::exit(1);
}

class Block {
 public:
  static constexpr int kWarp = 32;
  Block(int grid, int threads, std::size_t shared) : shared_bytes_(shared), fibers_(threads) {
    grid_.x = grid;
    size_.x = threads;
  }

  static Block& current() { return *running(); }

  void run(int index, const std::function<void()>& kernel) {
    running() = this;
    index_.x = index;
    kernel_ = &kernel;
    // 16-byte alignment is what operator new gives.
    shared_ = std::make_unique_for_overwrite<unsigned char[]>(shared_bytes_);
    std::memset(shared_.get(), 0xFF, shared_bytes_);
    for (std::size_t i = 0; i < fibers_.size(); ++i) start(fibers_[i], static_cast<int>(i));
    while (step()) {
    }
    for (const Fiber& fiber : fibers_) {
      if (fiber.stack.used_up()) stop("a thread has used up its stack");
    }
  }

  const Index& thread() const { return fiber_->thread; }
  const Index& index() const { return index_; }
  const Index& size() const { return size_; }
  const Index& grid() const { return grid_; }
  unsigned char* shared() const { return shared_.get(); }
  Fiber& fiber() { return *fiber_; }

  void wait_for_block() { pause(Wait::block); }

  void together(WarpOperation operation, void* operand) {
    fiber_->operation = operation;
    fiber_->operand = operand;
    pause(Wait::warp);
  }

 private:
  static Block*& running() {
    static Block* block = nullptr;
    return block;
  }

  static void enter() {
    Block& block = current();
    (*block.kernel_)();
    block.pause(Wait::done);
  }

  void start(Fiber& fiber, int thread) {
    fiber.wait = Wait::none;
    fiber.thread.x = thread;
    fiber.copies.clear();
    fiber.copy_group = 0;
    fiber.stack.begin(enter);
  }

  void pause(Wait wait) {
    fiber_->wait = wait;
    fiber_->stack.leave();
  }

  // Runs one warp after another up to its next barrier, so that none waits for a barrier that is
  // missing, then lets them pass it. False when all threads are done.
  bool step() {
    bool moved = false;
    for (int warp : order_of(static_cast<int>(fibers_.size()) / kWarp)) {
      while (run_lanes(warp) || run_warp(warp)) moved = true;
    }
    std::size_t waiting = 0, done = 0;
    for (const Fiber& fiber : fibers_) {
      waiting += fiber.wait == Wait::block;
      done += fiber.wait == Wait::done;
    }
    if (done == fibers_.size()) return false;
    if (waiting == fibers_.size()) {
      for (Fiber& fiber : fibers_) fiber.wait = Wait::none;
      moved = true;
    }
    if (!moved) stop("a barrier that not all threads reach");
    return true;
  }

  static std::vector<int> order_of(int count) {
    std::vector<int> order(count);
    std::iota(order.begin(), order.end(), 0);
    if (schedule.shuffle_threads) {
      // Seeds far apart: the first number of neighbouring ones is nearly the same.
      const unsigned seed = 2654435761u * schedule.shuffle_threads++;
      std::shuffle(order.begin(), order.end(), std::minstd_rand(seed));
    }
    return order;
  }

  bool run_lanes(int warp) {
    bool moved = false;
    for (int lane : order_of(kWarp)) {
      Fiber& fiber = fibers_[warp * kWarp + lane];
      if (fiber.wait != Wait::none) continue;
      fiber_ = &fiber;
      fiber.stack.resume();
      moved = true;
    }
    return moved;
  }

  bool run_warp(int warp) {
    void* operands[kWarp];
    const Fiber& first = fibers_[warp * kWarp];
    for (int lane = 0; lane < kWarp; ++lane) {
      const Fiber& fiber = fibers_[warp * kWarp + lane];
      if (fiber.wait != Wait::warp) return false;
      if (fiber.operation != first.operation) stop("lanes of a warp at different operations");
      operands[lane] = fiber.operand;
    }
    first.operation(operands);
    for (int lane = 0; lane < kWarp; ++lane) fibers_[warp * kWarp + lane].wait = Wait::none;
    return true;
  }

  Index index_, size_, grid_;
  std::size_t shared_bytes_;
  std::unique_ptr<unsigned char[]> shared_;
  const std::function<void()>* kernel_ = nullptr;
  std::vector<Fiber> fibers_;
  Fiber* fiber_ = nullptr;
};

template <class... P, class... A>
void launch(void (*kernel)(P...), int grid, int threads, std::size_t shared, A... arguments) {
  if (grid < 1 || threads < 1 || threads > 1024 || threads % Block::kWarp) stop("a wrong launch");
  if (shared > 99 * 1024) stop("more shared memory than every architecture has");
  ++launches;
  Block block(grid, threads, shared);
  const std::function<void()> run = [&] { kernel(arguments...); };
  for (int i = 0; i < grid; ++i) block.run(schedule.reverse_blocks ? grid - 1 - i : i, run);
}

template <class T>
T shuffle_xor(T value, int mask) {
  struct Operand {
    T value;
    int mask;
    T result;
  } operand{value, mask, {}};
  Block::current().together(
      [](void* const* lanes) {
        for (int lane = 0; lane < Block::kWarp; ++lane) {
          auto* mine = static_cast<Operand*>(lanes[lane]);
          mine->result = static_cast<Operand*>(lanes[lane ^ mine->mask])->value;
        }
      },
      &operand);
  return operand.result;
}

inline unsigned ballot(bool vote) {
  struct Operand {
    bool vote;
    unsigned result;
  } operand{vote, 0};
  Block::current().together(
      [](void* const* lanes) {
        unsigned votes = 0;
        for (int lane = 0; lane < Block::kWarp; ++lane) {
          votes |= static_cast<unsigned>(static_cast<Operand*>(lanes[lane])->vote) << lane;
        }
        for (int lane = 0; lane < Block::kWarp; ++lane) {
          static_cast<Operand*>(lanes[lane])->result = votes;
        }
      },
      &operand);
  return operand.result;
}

// The copies of every group but the `pending` last ones.
inline void finish_copies(int pending) {
  Fiber& fiber = Block::current().fiber();
  std::erase_if(fiber.copies, [&](const Copy& copy) {
    if (copy.group >= fiber.copy_group - pending) return false;
    std::memcpy(copy.to, copy.from, 16);
    return true;
  });
}

}  // namespace emulator

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (emulator::Block::current().thread())
#define blockIdx (emulator::Block::current().index())
#define blockDim (emulator::Block::current().size())
#define gridDim (emulator::Block::current().grid())

inline void __syncthreads() { emulator::Block::current().wait_for_block(); }

inline void __syncwarp() {
  emulator::Block::current().together([](void* const*) {}, nullptr);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulator::shuffle_xor(value, mask);
}

inline unsigned __ballot_sync(unsigned, bool vote) { return emulator::ballot(vote); }

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

inline int atomicAdd(int* at, int value) { return std::exchange(*at, *at + value); }

// Blocks run one after another, and each sees at once what another has written.
inline void __threadfence() {}

template <class T>
T __ldcg(const T* from) {
  return *from;
}

struct alignas(8) uint2 {
  unsigned x, y;
};

struct alignas(16) float4 {
  float x, y, z, w;
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
