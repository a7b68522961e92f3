// Runs another program to its end: bounded, and ended with who runs it.
#pragma once

#include <cstdint>
#include <stop_token>
#include <string>
#include <vector>

#include "pkg/base/status.h"

namespace bim::exec {

struct ProcessSpec {
  // The program (looked for in PATH) and its arguments. No shell.
  std::vector<std::string> arguments;
  // Descriptors that it gets, as 3, 4, ... in this order ("/proc/self/fd/3").
  std::vector<int> descriptors;
  uint64_t max_memory = 1 << 30;  // bytes of address space
  uint64_t max_file_size = 0;     // bytes of a file it writes; 0: no limit
};

// Blocks until it ends. Its standard input and output are /dev/null; what it
// says on standard error (the last 1,000 bytes, on one line) is in the message
// of a failure. CANCELLED: stopped, and killed, within 100 ms. NOT_FOUND: no
// such program. FAILED_PRECONDITION: it exited with another code than 0, or a
// signal ended it. Thread-safety: any thread.
base::Status RunProcess(const ProcessSpec& spec, std::stop_token stop);

}  // namespace bim::exec
