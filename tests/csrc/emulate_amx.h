// Runs AMX instructions on a processor without them: each one traps, is decoded here, and is done
// on tiles in plain C++. So the object that holds the intrinsics runs in the tests on any machine
// with AVX-512. Linux on x86-64.
#pragma once

#include <signal.h>
#include <ucontext.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <type_traits>

#define BRAINFAST_ISA_NAMESPACE trapped_amx
#include "kernels/tile.h"

namespace brainfast::trapped_amx {

inline thread_local std::optional<Tiles> tiles;  // as configured, until they are released
inline std::atomic<long> configured{0}, released{0}, dots{0};

// Calls f with a run-time number of a tile as a constant.
template <int First, int End, class F>
void with_tile(int tile, F&& f) {
  if constexpr (First == End) {
    std::abort();
  } else if (tile == First) {
    f(std::integral_constant<int, First>{});
  } else {
    with_tile<First + 1, End>(tile, f);
  }
}

// The registers in the order of their numbers in instructions.
inline std::int64_t general_register(const ucontext_t& context, int number) {
  constexpr int kOrder[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                              REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                              REG_R12, REG_R13, REG_R14, REG_R15};
  return context.uc_mcontext.gregs[kOrder[number]];
}

// A VEX instruction of the map 0F38 without an immediate number.
struct Instruction {
  int prefix, opcode, field, other, second;  // field and other: ModRM's reg and rm; second: vvvv
  bool memory;
  std::int64_t address, stride;
  int length;
};

inline Instruction decode(const std::uint8_t* code, const ucontext_t& context) {
  if (code[0] != 0xc4 || (code[1] & 31) != 2) std::abort();
  const int high_field = code[1] & 0x80 ? 0 : 8, high_index = code[1] & 0x40 ? 0 : 8;
  const int high_base = code[1] & 0x20 ? 0 : 8, mode = code[4] >> 6;
  Instruction found{};
  found.prefix = code[2] & 3;
  found.opcode = code[3];
  found.second = ~(code[2] >> 3) & 15;
  found.field = (code[4] >> 3 & 7) + high_field;
  found.other = (code[4] & 7) + high_base;
  found.memory = mode != 3;
  found.length = 5;
  if (!found.memory) return found;
  int base = found.other;
  if ((code[4] & 7) == 4) {
    const int sib = code[found.length++], index = (sib >> 3 & 7) + high_index;
    base = (sib & 7) + high_base;
    if (index != 4) found.stride = general_register(context, index) << (sib >> 6);
  }
  if (mode == 0 && (base & 7) == 5) std::abort();  // no base, or relative to the code: not used
  found.address = general_register(context, base);
  if (mode == 1) found.address += static_cast<std::int8_t>(code[found.length++]);
  if (mode == 2) {
    std::int32_t offset;
    std::memcpy(&offset, code + found.length, sizeof offset);
    found.address += offset;
    found.length += 4;
  }
  return found;
}

inline void run(const Instruction& code) {
  enum Prefix { kNone, k66, kF3, kF2 };
  if (code.opcode == 0x49 && code.prefix == kNone && code.memory) {
    tiles.emplace(*reinterpret_cast<const TileConfig*>(code.address));
    ++configured;
  } else if (code.opcode == 0x49 && code.prefix == kNone) {
    tiles.reset();
    ++released;
  } else if (!tiles) {
    std::abort();  // nothing is configured
  } else if (code.opcode == 0x49 && code.prefix == kF2 && !code.memory) {
    with_tile<0, 8>(code.field, [](auto t) { tiles->zero<t.value>(); });
  } else if (code.opcode == 0x4b && code.prefix == kF2) {
    with_tile<0, 8>(code.field, [&](auto t) {
      tiles->load<t.value>(reinterpret_cast<const void*>(code.address), code.stride);
    });
  } else if (code.opcode == 0x4b && code.prefix == kF3) {
    with_tile<0, 8>(code.field, [&](auto t) {
      tiles->store<t.value>(reinterpret_cast<void*>(code.address), code.stride);
    });
  } else if (code.opcode == 0x5c && code.prefix == kF3 && !code.memory) {
    with_tile<0, 4>(code.field, [&](auto d) {
      with_tile<4, 6>(code.other, [&](auto a) {
        with_tile<6, 8>(code.second, [&](auto b) { tiles->dot<d.value, a.value, b.value>(); });
      });
    });
    ++dots;
  } else {
    std::abort();
  }
}

inline void on_trap(int, siginfo_t*, void* state) {
  auto& context = *static_cast<ucontext_t*>(state);
  greg_t& at = context.uc_mcontext.gregs[REG_RIP];
  const Instruction code = decode(reinterpret_cast<const std::uint8_t*>(at), context);
  run(code);
  at += code.length;
}

inline void install() {
  struct sigaction action{};
  action.sa_sigaction = on_trap;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGILL, &action, nullptr);
}

}  // namespace brainfast::trapped_amx
