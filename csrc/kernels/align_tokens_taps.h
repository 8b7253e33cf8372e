// How the target grid is read from each source grid, worked out at every call in borrowed memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "align_tokens.h"
#include "align_tokens_kernels.h"

namespace brainfast {

// Elements of memory, each of 4 bytes, that make_taps fills for one source grid.
std::int64_t taps_size(const AlignShape& shape, const AlignSource& source);

// `memory` is aligned to a cache line.
AlignTaps make_taps(const AlignShape& shape, const AlignSource& source, std::int64_t lanes,
                    std::byte* memory);

}  // namespace brainfast
