// Which candidates may be among the best, from scores of rounded numbers and a bound on how far
// those are from the scores that are asked for. What is left out is never chosen.
//
// Of a candidate x and a template t, x' and t' are what is multiplied, A is what comes of it and S
// the score by the plain kernels. With N = |x'|, D >= |x' - x| and d = t - t':
//
//   |A - S| <= |A - x'.t'| + |x'.t' - x.t| + |x.t - S|
//           <= g N |t'| + (N |d| + D |t|) + g (N + D) |t|
//           <= N (|d| + g (2 |t| + |d|)) + D (1 + g) |t|
//
// where g is 2^-24 for every rounding on a number's way into the sum (Higham 2002, section 3.1).
// Products and sums below 2^-126 may be taken as zero: each costs at most that, and `least` pays
// for all of them, for what the squares in N and D lose in the same way, and for subnormal
// features, which the dot products of bfloat16 read as zero. The bound's own arithmetic is paid
// for by 2^-8 of it. An overflow or a NaN, in whichever place, keeps the candidate.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../runtime/thread_pool.h"
#include "score_topk_kernels.h"
#include "score_topk_rounded.h"

namespace brainfast {

// A candidate for one objective, and the most that its score can be.
struct Possible {
  std::int64_t row;
  std::int64_t objective;
  float most;
};

class Screen {
 public:
  // Takes `rows` candidates at a time, a multiple of kScreenRows. `rounded`, where there is one, is
  // the same pool by the same kernels, and is read in its place.
  Screen(const CandidatePool& pool, const TemplateRows& templates, const ScreenKernels& kernels,
         const RoundedPool* rounded, std::int64_t rows, int threads);

  std::int64_t bytes() const { return bytes_; }
  void use(std::byte* memory) { memory_ = memory; }

  // Rounds the templates, before anything is searched.
  void pack(ThreadPool& threads);

  // Writes those of `rows` candidates that may reach the bars [O], and returns how many there are;
  // more than `most` are not written.
  std::int64_t search(std::int64_t first, std::int64_t rows, const float* bars, int who,
                      Possible* to, std::int64_t most) const;

 private:
  // What one thread works in.
  struct Work {
    std::byte* operands;
    float *sums, *squares, *deviations, *bars;
    std::uint8_t* reached;
  };

  template <class T>
  T* at(std::int64_t offset) const {
    return reinterpret_cast<T*>(memory_ + offset);
  }
  Work work_of(int who) const;
  std::int64_t take(std::int64_t bytes);
  std::int64_t take_work();
  std::int64_t steps_of(std::int64_t begin) const;
  std::int64_t chunk_bytes(std::int64_t steps) const;
  void pack_objective(std::int64_t chunk, std::int64_t objective);
  void bound(std::int64_t objective);
  void score(std::int64_t first, std::int64_t rows, const Work& work) const;
  void score_rounded(std::int64_t first, std::int64_t rows, const Work& work) const;
  ScreenTask task_of(std::int64_t chunk, std::int64_t row, std::int64_t rows,
                     const Work& work) const;

  const CandidatePool& pool_;
  const TemplateRows& templates_;
  const ScreenKernels& kernels_;
  const RoundedPool* rounded_;
  std::int64_t rows_, padded_, chunks_;
  std::int64_t bytes_ = 0;
  // Where things lie, in bytes.
  std::int64_t packed_, norms_, of_norm_, of_deviation_, least_, works_;
  std::int64_t sums_, squares_, deviations_, bars_, reached_, work_bytes_;
  std::byte* memory_ = nullptr;
};

}  // namespace brainfast
