// A stack of its own for a function that stops in its midst and goes on later.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

#if __has_include(<sanitizer/asan_interface.h>)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes)
#endif

#if defined(__x86_64__) && defined(__ELF__)
#define EMULATOR_SWITCHES_STACKS
#else
#include <ucontext.h>
#endif

namespace emulator {

#if defined(EMULATOR_SWITCHES_STACKS)

// What swapcontext does, without its two system calls: keeps what a call must leave as it was on
// this stack, and takes it from the other.
using Place = void*;
extern "C" void emulator_switch_stacks(Place* from, Place to);
asm(R"(
.pushsection .text
.weak emulator_switch_stacks
.hidden emulator_switch_stacks
.type emulator_switch_stacks, @function
emulator_switch_stacks:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size emulator_switch_stacks, . - emulator_switch_stacks
.popsection
)");

inline void switch_stacks(Place& from, Place& to) { emulator_switch_stacks(&from, to); }

inline void place_at_start(Place& place, char* stack, std::size_t bytes, void (*function)()) {
  constexpr int kSaved = 6;  // registers, all zero
  // The end of the stack is aligned to 16 bytes where a caller's return address would stand.
  char* const end = stack + bytes - reinterpret_cast<std::uintptr_t>(stack + bytes) % 16;
  void* words[kSaved + 2] = {};
  words[kSaved] = reinterpret_cast<void*>(function);
  place = std::memcpy(end - sizeof(words), words, sizeof(words));
}

#else

using Place = ucontext_t;

inline void switch_stacks(Place& from, Place& to) { swapcontext(&from, &to); }

inline void place_at_start(Place& place, char* stack, std::size_t bytes, void (*function)()) {
  getcontext(&place);
  place.uc_stack.ss_sp = stack;
  place.uc_stack.ss_size = bytes;
  place.uc_link = nullptr;
  makecontext(&place, function, 0);
}

#endif

class FiberStack {
 public:
  FiberStack() : bytes_(std::make_unique_for_overwrite<char[]>(kBytes)) {
    std::memset(bytes_.get(), kUntouched, kUntouchedBytes);
  }

  // The next resume() starts the function, which must not return.
  void begin(void (*function)()) {
    // The function before stopped somewhere, and its frames are still marked.
    ASAN_UNPOISON_MEMORY_REGION(bytes_.get(), kBytes);
    place_at_start(inside_, bytes_.get(), kBytes, function);
  }

  void resume() { switch_stacks(outside_, inside_); }
  void leave() { switch_stacks(inside_, outside_); }

  bool used_up() const {
    for (int i = 0; i < kUntouchedBytes; ++i) {
      if (bytes_[i] != kUntouched) return true;
    }
    return false;
  }

 private:
  static constexpr std::size_t kBytes = 32 * 1024;
  static constexpr char kUntouched = 0x5A;
  static constexpr int kUntouchedBytes = 64;

  std::unique_ptr<char[]> bytes_;
  Place inside_{}, outside_{};
};

}  // namespace emulator
