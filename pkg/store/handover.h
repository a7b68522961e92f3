// What was agreed about handing a disk over, as it lies on the disk
// (.bim/handover): it survives every crash. Written by who holds the disk's
// lock, whoever that is; no file: nothing is agreed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "pkg/base/status.h"
#include "pkg/io/dir.h"
#include "pkg/store/history.h"

namespace bim::store {

inline constexpr char kHandoverFile[] = ".bim/handover";

enum class HandoverPhase {
  kBegun,      // undecided: the owner owns; when it is gone, nobody
  kConfirmed,  // the disk is the candidate's
  kRolledBack  // the disk is the owner's, also when it is gone for now
};
// "begun", "confirmed", "rolled-back".
std::string_view HandoverPhaseName(HandoverPhase phase);

struct HandoverRecord {
  std::string id;  // of this hand-over, the same on all of its disks
  HandoverPhase phase = HandoverPhase::kBegun;
  // Nobody is asked: whichever of the two is there goes on.
  bool automatic = false;
  std::string owner;  // manager ids
  std::string owner_version;
  std::string candidate;
  std::string candidate_version;
  std::string candidate_endpoint;
  int64_t since_ns = 0;  // of this phase, since 1970
};
std::string EncodeHandover(const HandoverRecord& record);
// DATA_LOSS: damaged. It is never guessed.
base::Result<HandoverRecord> DecodeHandover(std::string_view text);

// That this was agreed, for the history of the disk; by whom is left empty.
HistoryEntry ToHistory(const HandoverRecord& record);

// nullopt: there is none. DATA_LOSS: damaged.
base::Result<std::optional<HandoverRecord>> ReadHandover(const io::Dir& root);
// Durable on return. `since_ns` is set to now.
base::Status WriteHandover(const io::Dir& root, HandoverRecord record);
// The same, of who holds the lock of a disk that nobody owns; told to the
// disk's history as that manager's doing.
base::Status DecideHandover(const io::Dir& root, const HandoverRecord& record,
                            const std::string& manager_id,
                            const std::string& version);
base::Status RemoveHandover(const io::Dir& root);

// May this manager take a disk, whose lock is free, with this record on it?
enum class ClaimVerdict {
  kYes,
  kUndecided,  // one of both sides: somebody has to decide first
  kNo          // it is another manager's
};
ClaimVerdict MayClaim(const std::optional<HandoverRecord>& record,
                      std::string_view manager_id);

}  // namespace bim::store
