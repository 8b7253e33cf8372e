// Memory that a call borrows and the next one uses again: its pages are already there.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <memory>
#include <new>
#include <utility>

#include "aligned_buffer.h"

namespace brainfast {

// A few buffers, told apart by number.
class Scratch {
 public:
  static constexpr int kBuffers = 3;

  // Room for `count` elements; what buffer `index` held before is lost.
  template <class T>
  T* room(int index, std::size_t count) {
    if (count > static_cast<std::size_t>(-1) / sizeof(T)) throw std::bad_alloc();
    buffers_[index].reserve(count * sizeof(T));
    return reinterpret_cast<T*>(buffers_[index].data());
  }

 private:
  std::array<AlignedBuffer<std::byte>, kBuffers> buffers_;
};

// Scratches that threads take and put back without a lock, so that a fork in between is safe.
class ScratchShelf {
 public:
  ScratchShelf() = default;
  ScratchShelf(const ScratchShelf&) = delete;
  ScratchShelf& operator=(const ScratchShelf&) = delete;
  ~ScratchShelf() {
    for (auto& slot : slots_) delete slot.load();
  }

  std::unique_ptr<Scratch> take() {
    for (auto& slot : slots_) {
      if (Scratch* found = slot.exchange(nullptr)) return std::unique_ptr<Scratch>(found);
    }
    return std::make_unique<Scratch>();
  }

  void put(std::unique_ptr<Scratch> scratch) {
    for (auto& slot : slots_) {
      Scratch* empty = nullptr;
      if (slot.compare_exchange_strong(empty, scratch.get())) {
        scratch.release();
        return;
      }
    }
  }

 private:
  std::array<std::atomic<Scratch*>, 4> slots_{};
};

// A scratch for as long as this object lives.
class BorrowedScratch {
 public:
  explicit BorrowedScratch(ScratchShelf& shelf) : shelf_(shelf), scratch_(shelf.take()) {}
  BorrowedScratch(const BorrowedScratch&) = delete;
  BorrowedScratch& operator=(const BorrowedScratch&) = delete;
  ~BorrowedScratch() { shelf_.put(std::move(scratch_)); }

  Scratch& operator*() { return *scratch_; }
  Scratch* operator->() { return scratch_.get(); }

 private:
  ScratchShelf& shelf_;
  std::unique_ptr<Scratch> scratch_;
};

}  // namespace brainfast
