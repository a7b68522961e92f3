// Failpoints: named places where a test can make the process die, wait or see
// an error. Compiled only with BIM_FAILPOINTS (CMake option); a release build
// contains neither the names nor the code.
//
// The environment variable BIM_FAILPOINTS holds "name=action" pairs separated
// by commas. Actions:
//   kill        SIGKILL to the own process
//   kill@N      the same, at the Nth time the place is reached (from 1)
//   error:E     the place fails with errno E (BIM_FAILPOINT_ERROR only)
//   error:E@N   the same, from the Nth time on
//   pause:PATH  waits while PATH exists (at most 60 s)
//   trace:PATH  appends the name to PATH each time it is reached
// Thread-safety: all functions from any thread.
#pragma once

#ifdef BIM_FAILPOINTS

namespace bim::base {
// The errno to fail with, or 0.
int ReachFailpoint(const char* name);
}  // namespace bim::base

#define BIM_FAILPOINT(name) (void)::bim::base::ReachFailpoint(name)
// Returns the failure from the enclosing function (Status or Result).
#define BIM_FAILPOINT_ERROR(name)                                    \
  do {                                                               \
    if (int bim_errno_ = ::bim::base::ReachFailpoint(name)) {        \
      return ::bim::base::ErrnoError(bim_errno_, "failpoint " name); \
    }                                                                \
  } while (false)

#else
#define BIM_FAILPOINT(name) (void)0
#define BIM_FAILPOINT_ERROR(name) (void)0
#endif
