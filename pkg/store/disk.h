// A disk that this process owns: its identity, its lock, its owner record.
//
// Claim() succeeds only while it holds the lock; the Disk keeps it until
// destroyed (or the process ends, however). Whoever holds the lock is the
// owner: the record only tells others who that is, and its epoch lets a
// process that lost track of time see that it is late.
// All functions block. Thread-safety: const functions from any thread.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "pkg/base/status.h"
#include "pkg/base/unique_fd.h"
#include "pkg/io/dir.h"
#include "pkg/store/handover.h"
#include "pkg/store/history.h"
#include "pkg/store/layout.h"

namespace bim::store {

enum class DiskState {
  kReady,
  kReadOnly,
  kMissing,
  kSwapped,
  kOwned,    // by another process
  kWaiting,  // by a hand-over it is not ours to take (yet)
  kFailed
};
// "ready", "read-only", "missing", "swapped", "owned", "waiting", "failed".
std::string_view DiskStateName(DiskState state);

// Why a disk cannot be used, and what to do.
struct DiskFault {
  DiskState state = DiskState::kFailed;
  std::string message;
  std::string uuid;  // what the disk says it is, when that could be read
  std::optional<HandoverRecord> handover = std::nullopt;  // of kWaiting
  bool yielded = false;  // of kOwned: see Disk::Owner::yields
};

// .bim/owner
struct OwnerRecord {
  std::string manager_id;
  uint64_t epoch = 0;
  int64_t pid = 0;
  std::string pid_namespace;  // "pid:[4026531836]"
  uint64_t start_time = 0;    // of the process, in clock ticks since boot
  std::string boot_id;
  std::string version;
  int api_version = 0;
  int api_min_version = 0;
  std::string endpoint;
  std::string phase;  // "steady"; "left": it let go of the disk by itself
  int64_t since_ns = 0;
};
std::string EncodeOwner(const OwnerRecord& owner);
// DATA_LOSS when it cannot be read.
base::Result<OwnerRecord> DecodeOwner(std::string_view text);
// Of the process that owns the disk now, or owned it last. NOT_FOUND: nobody
// ever did.
base::Result<OwnerRecord> ReadOwner(const io::Dir& root);

// Who this process is, wherever it is looked at from: filled into a record.
void DescribeSelf(OwnerRecord& record);
// Whether the process of a record lives, as far as that can be seen from here:
// nullopt when it was in another pid namespace.
std::optional<bool> IsAlive(const OwnerRecord& record);

// Takes the lock of a disk that nobody owns, for a moment, to write down what
// was decided about it: whoever claims it meanwhile finds it owned. Held until
// the descriptor is closed. ABORTED: a process owns the disk.
base::Result<base::UniqueFd> LockUnowned(const io::Dir& root);
// Whether a process owns the disk (holds its lock). Writes nothing; but who
// claims a free disk in the very moment that it is looked at finds it owned,
// and looks again later.
base::Result<bool> IsOwned(const io::Dir& root);

// .bim/format
struct DiskFormat {
  int64_t version = 0;
  int64_t min_version = 0;  // of programs that may read it
};
// NOT_FOUND: nobody ever owned the disk. DATA_LOSS: damaged.
base::Result<DiskFormat> ReadFormat(const io::Dir& root);
// FAILED_PRECONDITION: this program may not use a disk of that format.
base::Status CheckFormat(const DiskFormat& format);

// The disk's uuid as its longhorn-disk.cfg says. NOT_FOUND: no such file.
// DATA_LOSS: not readable as {"diskUUID":"..."}; the uuid follows CheckName.
base::Result<std::string> ReadIdentity(const io::Dir& root);
// Makes a new disk of `root`: writes longhorn-disk.cfg. ALREADY_EXISTS when it
// has one.
base::Status InitIdentity(const io::Dir& root, const std::string& uuid);

struct Space {
  uint64_t total_bytes = 0;
  uint64_t available_bytes = 0;
};

// A desired record as it lies on a disk.
struct DesiredFileContent {
  std::string path;  // for messages
  std::string json;
};
// All of them. One that cannot be read fails the whole: what was wanted is
// never guessed. Works on a disk that is not owned, too.
base::Result<std::vector<DesiredFileContent>> LoadDesired(const io::Dir& root);

// Reads all metadata of a disk, whoever owns it, so that it is in memory when
// the disk is taken over. What cannot be read is left out.
void ReadAhead(const io::Dir& root);

class Disk {
 public:
  struct Owner {
    std::string manager_id;
    std::string version;
    std::string endpoint;
    // A disk whose lock is free, but whose last owner lives and did not leave
    // it by itself, is left to that one: it lost the disk for a moment (an
    // unmount, say) and may come back for it.
    bool yields = false;
  };
  // Takes the disk at `path`. With a non-empty `expected_uuid` another
  // identity is kSwapped. Everything that may be wrong with a disk is a fault
  // to tell and to try again after, never an error of the program.
  static std::variant<std::shared_ptr<Disk>, DiskFault> Claim(
      const std::string& path, const std::string& expected_uuid,
      const Owner& owner);
  // The disk at `path` as a data source sees it: somebody else may own it, and
  // only the files of `key` (Place::kDataSource) are this process's, as long as
  // the Disk lives. kOwned: another process has them. Nothing is kept below
  // .bim.
  static std::variant<std::shared_ptr<Disk>, DiskFault> OpenForDataSource(
      const std::string& path, const std::string& expected_uuid,
      const ImageKey& key);
  ~Disk();
  Disk(const Disk&) = delete;
  Disk& operator=(const Disk&) = delete;

  const std::string& path() const { return path_; }
  const std::string& uuid() const { return uuid_; }
  uint64_t epoch() const { return epoch_; }
  // Of its layout, when it was taken. One that is older than this program's is
  // used as it is (store/migrate.h).
  int64_t format_version() const { return format_version_; }
  const io::Dir& root() const { return root_; }
  // Who took it, as it was told to Claim; empty for a data source.
  const Owner& owner() const { return owner_; }
  dev_t device() const { return device_; }
  // False: opened for a data source.
  bool owned() const { return owned_; }
  // Who owned it before, if anybody did.
  const std::optional<OwnerRecord>& predecessor() const { return predecessor_; }
  // Whether that was another manager than this one, or another version of it.
  bool taken_over() const { return taken_over_; }

  // Lets go of the lock while the object, and all that was opened, stays for
  // reading. From here on CheckOwner says ABORTED, and nothing is written.
  // No work that writes may be under way. Idempotent.
  void Release() const;
  // Writes down that the owner leaves the disk by itself, to be called before
  // it lets go of it: nobody need wait for it then. Best effort.
  void Leave() const;
  bool released() const { return released_; }

  // What is agreed about handing it over; see store/handover.h. Durable.
  // Told to the history, too.
  base::Status PutHandover(const HandoverRecord& record) const;
  base::Status RemoveHandover() const;

  // Is what lies at the path still this disk, writable, and ours? kReady or
  // the fault. With `probe` the lock file's times are set, too: a file system
  // that stopped itself after an error refuses that, and may tell no other way.
  DiskFault Check(bool probe) const;
  // ABORTED when the owner record says another epoch than ours: we are late.
  // Always OK for a data source.
  base::Status CheckOwner() const;
  base::Result<Space> GetSpace() const;

  // Desired records: one small JSON document per image, opaque here.
  // Durable on return. A data source keeps none: nothing is done.
  base::Status PutDesired(const ImageKey& key, std::string_view json) const;
  base::Status RemoveDesired(const ImageKey& key) const;
  bool HasDesired(const ImageKey& key) const;

  // For store/history.h, which appends to this disk's history.
  HistoryTail& history_tail() const { return history_tail_; }

 private:
  Disk() = default;
  // The directory, its identity and its file system, checked; nothing locked.
  static std::variant<std::shared_ptr<Disk>, DiskFault> Look(
      const std::string& path, const std::string& expected_uuid,
      std::string& found_uuid);
  static std::variant<std::shared_ptr<Disk>, DiskFault> TryClaim(
      const std::string& path, const std::string& expected_uuid,
      const Owner& owner, std::string& found_uuid);

  std::string path_;
  std::string uuid_;
  Owner owner_;
  uint64_t epoch_ = 0;
  int64_t format_version_ = 0;
  io::Dir root_;
  dev_t device_ = 0;
  ino_t inode_ = 0;
  base::UniqueFd lock_;
  mutable std::atomic<bool> released_{false};
  std::optional<OwnerRecord> predecessor_;
  bool taken_over_ = false;
  bool owned_ = true;
  ImageKey data_source_;  // when not owned
  mutable HistoryTail history_tail_;
};

}  // namespace bim::store
