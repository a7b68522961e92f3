// What to do next for a copy, and what its end means: pure functions, tested
// without disks, threads or clocks.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "pkg/manager/types.h"

namespace bim::manager {

using TimePoint = std::chrono::system_clock::time_point;

// What runs, or is to run, for a copy.
enum class Step {
  kNone,
  kScan,      // read the file that lies there: can it be used?
  kDownload,  // from the image's source
  kCopy,      // from a ready copy on another disk
  kVerify,    // an unknown copy: is it still what it was?
  kWait,      // for another copy's work, then look again
  kUpload,    // somebody brings the bytes: begun by them, never by the plan
};

// A copy as the plan sees it.
struct CopyView {
  CopyState state = CopyState::kPending;
  Step running = Step::kNone;  // kNone: no job
  bool disk_usable = true;
  bool found_file = false;       // an unproven file lies at its place
  bool damaged = false;          // failed by verification: kept as it is
  bool permanent = false;        // failed, and the same would fail again
  std::optional<TimePoint> due;  // not before then
  bool partial = false;          // an interrupted download left bytes here
};

// The steps to begin now, one per copy (kNone: leave it as it is). At most one
// copy downloads at a time, one that has bytes already if there is one; the
// others are filled from it.
// With `upload` nothing is downloaded: kUpload says that a copy could take one.
std::vector<Step> Plan(const std::vector<CopyView>& copies, TimePoint now,
                       bool upload = false);

// The step to begin now for a copy that is directed: it is tried once.
// `source`: there is one beside the file that lies at its place.
Step PlanDirected(const CopyView& copy, TimePoint now, bool source,
                  bool upload);

// The state of an image from those of its copies: "failed" when one failed,
// else "unknown", "in-progress", "starting", "pending", "ready" in that order;
// kPending without copies.
CopyState Aggregate(const std::vector<CopyState>& states);

// Whether one state may follow another; every change is checked against it.
//   pending -> starting, ready (a file that fits lay there), failed, unknown
//   starting -> in-progress, ready, failed, pending, unknown
//   in-progress -> ready, failed, pending, unknown
//   ready -> unknown, failed (verification), pending (its file is gone)
//   failed -> pending, starting, unknown, ready
//   unknown -> ready, failed, pending
bool MayFollow(CopyState from, CopyState to);

}  // namespace bim::manager
