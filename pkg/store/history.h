// What happened to the images of a disk, and to the disk itself:
// .bim/history, one JSON object a line, the oldest first.
//
// It is for people: nothing is decided by it, and a crash may lose its last
// entries. It never grows beyond kMaxHistoryEntries and kMaxHistoryBytes.
// Several processes may write to it at once (the owner appends, an operator
// prunes): each holds the file's flock while it does, and none loses what
// another one wrote.
//
// All functions block. Thread-safety: from any thread.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "pkg/base/status.h"
#include "pkg/io/dir.h"

namespace bim::store {

class Disk;

inline constexpr char kHistoryFile[] = ".bim/history";
// One append more drops the oldest half.
inline constexpr size_t kMaxHistoryEntries = 4096;
inline constexpr size_t kMaxHistoryBytes = 1 << 20;
// Longer messages are cut.
inline constexpr size_t kMaxHistoryMessage = 300;  // characters

enum class HistoryEvent {
  // Of an image's copy on this disk.
  kCreated,  // it is wanted here, or was asked for
  kReady,
  kFailed,
  kRemoved,
  // Of the disk.
  kTakenOver,   // by another manager, or another version, than before
  kHandedOver,  // to another manager
  // Of a hand-over of the disk.
  kBegun,
  kConfirmed,
  kRolledBack,
  kInterrupted,
};
// "created", "ready", "failed", "removed", "taken-over", "handed-over",
// "begun", "confirmed", "rolled-back", "interrupted".
std::string_view HistoryEventName(HistoryEvent event);

struct HistoryEntry {
  int64_t time_ns = 0;  // since 1970; 0: when it is appended
  HistoryEvent what = HistoryEvent::kCreated;
  std::string name, uuid;  // of the image; empty: of the disk
  std::string message;
  // Who wrote it.
  std::string manager_id, version;
  uint64_t epoch = 0;
  friend bool operator==(const HistoryEntry&, const HistoryEntry&) = default;
};
// One line with its newline, at most kMaxHistoryLine bytes: what is longer than
// it may be is cut.
inline constexpr size_t kMaxHistoryLine = 4096;
std::string EncodeHistory(const HistoryEntry& entry);
// DATA_LOSS: damaged, or of a kind that this program does not know.
base::Result<HistoryEntry> DecodeHistory(std::string_view line);

// What a process knows of the file that it appended to last, so that it need
// not count the entries each time.
struct HistoryTail {
  std::mutex mutex;  // held while one is appended
  ino_t inode = 0;
  uint64_t size = 0;
  size_t entries = 0;
};

// Appends an entry, with the disk's manager, version and epoch in it. Takes
// tens of microseconds, but for one append in thousands, which makes the
// shorter file durable. Best effort: not durable itself. Does nothing, and is
// OK, for a disk that is released or was opened for a data source.
// RESOURCE_EXHAUSTED: the disk is full. DEADLINE_EXCEEDED: another process
// holds the file for seconds.
base::Status AppendHistory(const Disk& disk, HistoryEntry entry);
// The same for who holds the lock of a disk that nobody owns; the entry is
// written as it is, with the time filled in.
base::Status AppendHistory(const io::Dir& root, HistoryEntry entry);

struct History {
  std::vector<HistoryEntry> entries;  // the oldest first
  size_t skipped = 0;                 // lines that could not be read
};
// All of it; empty when there is none. Of a file that is too large only the
// last kMaxHistoryBytes. Does not wait for who writes.
base::Result<History> ReadHistory(const io::Dir& root);

struct PrunedHistory {
  size_t dropped = 0;
  size_t kept = 0;
};
// Drops the entries from before `older_than`, durably, and nothing else: lines
// that cannot be read stay. `dry_run` only counts. Errors as of AppendHistory.
base::Result<PrunedHistory> PruneHistory(
    const io::Dir& root, std::chrono::system_clock::time_point older_than,
    bool dry_run);

}  // namespace bim::store
