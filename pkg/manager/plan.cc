#include "pkg/manager/plan.h"

#include <algorithm>
#include <numeric>

namespace bim::manager {

std::string_view CopyStateName(CopyState state) {
  switch (state) {
    case CopyState::kPending:
      return "pending";
    case CopyState::kStarting:
      return "starting";
    case CopyState::kInProgress:
      return "in-progress";
    case CopyState::kReady:
      return "ready";
    case CopyState::kFailed:
      return "failed";
    case CopyState::kUnknown:
      return "unknown";
  }
  return "unknown";
}

std::vector<Step> Plan(const std::vector<CopyView>& copies, TimePoint now,
                       bool upload) {
  std::vector<Step> steps(copies.size(), Step::kNone);
  const bool ready_source =
      std::any_of(copies.begin(), copies.end(), [](const CopyView& copy) {
        return copy.disk_usable && copy.state == CopyState::kReady;
      });
  // Work that may soon give a ready copy: a running job, or a download that
  // waits for its next quick try.
  bool source_coming =
      std::any_of(copies.begin(), copies.end(), [](const CopyView& copy) {
        return copy.disk_usable &&
               (copy.running != Step::kNone ||
                copy.state == CopyState::kInProgress ||
                copy.state == CopyState::kStarting || copy.found_file ||
                copy.state == CopyState::kUnknown);
      });
  bool downloading =
      std::any_of(copies.begin(), copies.end(), [](const CopyView& copy) {
        return copy.running == Step::kDownload || copy.running == Step::kUpload;
      });
  std::vector<size_t> order(copies.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_partition(order.begin(), order.end(),
                        [&](size_t i) { return copies[i].partial; });
  for (const size_t i : order) {
    const CopyView& copy = copies[i];
    if (!copy.disk_usable || copy.running != Step::kNone) continue;
    if (copy.found_file) {
      if (!copy.due || *copy.due <= now) steps[i] = Step::kScan;
      continue;
    }
    if (copy.state == CopyState::kReady) continue;
    if (copy.damaged) continue;
    if (copy.state == CopyState::kUnknown) {
      if (!copy.due || *copy.due <= now) steps[i] = Step::kVerify;
      continue;
    }
    if (ready_source) {
      // What is on this node already needs no source; a copy that failed waits
      // for its time all the same.
      if (!copy.due || *copy.due <= now) steps[i] = Step::kCopy;
      continue;
    }
    if (copy.permanent) continue;
    if (copy.due && *copy.due > now) continue;
    const bool own_try = copy.state == CopyState::kInProgress ||
                         copy.state == CopyState::kStarting;
    if (downloading || (source_coming && !own_try)) {
      steps[i] = Step::kWait;
      continue;
    }
    steps[i] = upload ? Step::kUpload : Step::kDownload;
    downloading = true;
  }
  return steps;
}

Step PlanDirected(const CopyView& copy, TimePoint now, bool source,
                  bool upload) {
  if (!copy.disk_usable || copy.running != Step::kNone) return Step::kNone;
  if (copy.due && *copy.due > now) return Step::kNone;
  if (copy.found_file) return Step::kScan;
  if (copy.damaged || copy.permanent) return Step::kNone;
  switch (copy.state) {
    case CopyState::kReady:
    case CopyState::kFailed:
      return Step::kNone;
    case CopyState::kUnknown:
      return Step::kVerify;
    case CopyState::kPending:
    case CopyState::kStarting:
    case CopyState::kInProgress:
      break;
  }
  if (!source) return Step::kNone;
  return upload ? Step::kUpload : Step::kDownload;
}

CopyState Aggregate(const std::vector<CopyState>& states) {
  for (CopyState state :
       {CopyState::kFailed, CopyState::kUnknown, CopyState::kInProgress,
        CopyState::kStarting, CopyState::kPending, CopyState::kReady}) {
    if (std::find(states.begin(), states.end(), state) != states.end()) {
      return state;
    }
  }
  return CopyState::kPending;
}

bool MayFollow(CopyState from, CopyState to) {
  using enum CopyState;
  if (from == to) return true;
  switch (from) {
    case kPending:
      return to != kInProgress;
    case kStarting:
      return true;
    case kInProgress:
      return to != kStarting;
    case kReady:
      return to == kUnknown || to == kFailed || to == kPending;
    case kFailed:
      return to != kInProgress;
    case kUnknown:
      return to == kReady || to == kFailed || to == kPending;
  }
  return false;
}

}  // namespace bim::manager
