// Candidates that may be among the best and wait to be scored: of one objective together, so that
// its template is read once for them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "score_topk_best.h"
#include "score_topk_scores.h"
#include "score_topk_screen.h"

namespace brainfast {

class Waiting {
 public:
  static constexpr std::int64_t kMost = PairTask::kRows;

  Waiting(std::byte* memory, std::int64_t objectives)
      : objectives_(objectives),
        waiting_(reinterpret_cast<Choice*>(memory)),
        counts_(reinterpret_cast<std::int64_t*>(waiting_ + objectives * kMost)) {}

  static std::int64_t bytes(std::int64_t objectives) {
    constexpr std::int64_t kLine = 64;
    const std::int64_t each = kMost * sizeof(Choice) + sizeof(std::int64_t);
    return padded_to(objectives * each, kLine);
  }

  void clear() { std::fill_n(counts_, objectives_, 0); }

  void add(const Possible& one, const Scores& scores, std::byte* copies, Best& best) {
    waiting_[one.objective * kMost + counts_[one.objective]++] = {one.most, one.row};
    if (counts_[one.objective] == kMost) score(one.objective, scores, copies, best);
  }

  void score_all(const Scores& scores, std::byte* copies, Best& best) {
    for (std::int64_t o = 0; o < objectives_; ++o) score(o, scores, copies, best);
  }

 private:
  // The bar may have risen above some since they came.
  void score(std::int64_t objective, const Scores& scores, std::byte* copies, Best& best) {
    std::int64_t rows[kMost];
    std::size_t count = 0;
    for (std::int64_t i = 0; i < counts_[objective]; ++i) {
      const Choice& each = waiting_[objective * kMost + i];
      if (!(each.score < best.bars()[objective])) rows[count++] = each.index;
    }
    counts_[objective] = 0;
    if (count == 0) return;
    float found[kMost];
    scores.of_pairs({rows, count}, objective, copies, found);
    for (std::size_t i = 0; i < count; ++i) best.offer_one(objective, {found[i], rows[i]});
  }

  std::int64_t objectives_;
  Choice* waiting_;       // [O, kMost], with the most that each score can be
  std::int64_t* counts_;  // [O]
};

}  // namespace brainfast
