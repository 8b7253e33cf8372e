// The k best candidates of each objective.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "packed_panels.h"

namespace brainfast {

struct Choice {
  float score;
  std::int64_t index;
};

// A total order, so that the k best of some choices are the same in whatever order they came.
inline bool better(const Choice& a, const Choice& b) {
  return a.score > b.score || (a.score == b.score && a.index < b.index);
}

// The k best so far of each objective, for one thread: heaps whose first is the worst.
class Best {
 public:
  Best(std::byte* memory, std::int64_t objectives, std::int64_t k)
      : objectives_(objectives),
        k_(k),
        heaps_(reinterpret_cast<Choice*>(memory)),
        counts_(reinterpret_cast<std::int64_t*>(heaps_ + objectives * k)),
        bars_(reinterpret_cast<float*>(counts_ + objectives)) {}

  static std::int64_t bytes(std::int64_t objectives, std::int64_t k) {
    constexpr std::int64_t kLine = 64;  // keeps the memory of two threads apart
    const std::int64_t each = sizeof(std::int64_t) + sizeof(float);
    return padded_to(objectives * (k * static_cast<std::int64_t>(sizeof(Choice)) + each), kLine);
  }

  void clear() {
    std::fill_n(counts_, objectives_, 0);
    std::fill_n(bars_, objectives_, -std::numeric_limits<float>::infinity());
  }

  // Scores of one candidate, [O].
  void offer(const float* scores, std::int64_t index) {
    bool any = false;
    for (std::int64_t o = 0; o < objectives_; ++o) any |= scores[o] >= bars_[o];
    if (!any) return;
    for (std::int64_t o = 0; o < objectives_; ++o) offer_one(o, {scores[o], index});
  }

  void offer_one(std::int64_t objective, const Choice& choice) {
    if (choice.score >= bars_[objective] && std::isfinite(choice.score)) insert(objective, choice);
  }

  std::span<const Choice> of(std::int64_t objective) const {
    return {heaps_ + objective * k_, static_cast<std::size_t>(counts_[objective])};
  }

  // [O], what a score must reach: -inf until there are k.
  const float* bars() const { return bars_; }

 private:
  void insert(std::int64_t objective, const Choice& choice) {
    Choice* const heap = heaps_ + objective * k_;
    std::int64_t& count = counts_[objective];
    if (count == k_) {
      if (!better(choice, heap[0])) return;
      std::pop_heap(heap, heap + count--, better);
    }
    heap[count++] = choice;
    std::push_heap(heap, heap + count, better);
    if (count == k_) bars_[objective] = heap[0].score;
  }

  std::int64_t objectives_, k_;
  Choice* heaps_;         // [O,k]
  std::int64_t* counts_;  // [O]
  float* bars_;           // [O]
};

}  // namespace brainfast
