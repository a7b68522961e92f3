// One line at the bottom of a terminal that is drawn over; silent when standard
// error is no terminal. One thread at a time.
#pragma once

#include <chrono>
#include <string>

#include "daemon/table.h"

namespace bim::daemon {

class ProgressLine {
 public:
  ProgressLine();
  // As Clear().
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  bool visible() const { return visible_; }
  // Draws at most ten times a second. The rate is measured here, anew whenever
  // the label changes or the bytes go back; what `progress` says of it is not
  // used.
  void Update(Progress progress);
  // Removes the line, so that something else can be printed.
  void Clear();

 private:
  const bool visible_;
  bool drawn_ = false;
  std::string label_;
  std::chrono::steady_clock::time_point last_draw_;
  std::chrono::steady_clock::time_point rate_since_;
  uint64_t rate_from_ = 0;
  uint64_t last_done_ = 0;
};

}  // namespace bim::daemon
