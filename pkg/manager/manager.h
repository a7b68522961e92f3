// Images x disks: what is wanted, what is there, and the work in between.
//
// The manager owns the disks (their locks), the jobs and the state of every
// copy. Calls of the faces come down to it; what travels up is a wake-up of
// subscribers. Functions marked "blocks" touch disks and belong on a worker
// thread; the others only take a mutex for a moment. All functions may be
// called from any thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pkg/base/status.h"
#include "pkg/base/unique_fd.h"
#include "pkg/exec/event_loop.h"
#include "pkg/manager/types.h"
#include "pkg/transfer/options.h"

namespace bim::manager {

struct Options {
  std::string manager_id;
  std::string version;   // for the owner record
  std::string endpoint;  // where the owner is reached, for the owner record
  // Where the list of added disks is kept (one file, disks.json).
  std::string state_dir;
  std::vector<std::string> disk_paths;  // from the configuration
  size_t max_transfers = 8;             // at once, on the whole node
  std::chrono::milliseconds backoff_first{60'000};
  std::chrono::milliseconds backoff_max{300'000};
  std::chrono::milliseconds disk_check_interval{5'000};
  uint32_t file_mode = 0644;  // of image files
  transfer::Options transfer;
};

// Where a watcher is; a value, default: at the very beginning.
struct WatchPosition {
  enum class Phase { kStart, kSnapshot, kChanges };
  Phase phase = Phase::kStart;
  std::string last_name, last_uuid;  // while in the snapshot
  uint64_t revision = 0;             // everything up to here was sent
};

// An open ready file, for serving. The file stays readable whatever happens to
// the image meanwhile.
struct OpenImage {
  base::UniqueFd fd;
  uint64_t size = 0;
  std::string sha512_hex;
};

// Ends the subscription when destroyed; no wake-up runs after that.
class Subscription {
 public:
  virtual ~Subscription() = default;
};

class Manager {
 public:
  // `loop` outlives the manager. Reads the list of disks only; nothing is
  // locked or started before Start().
  // INVALID_ARGUMENT / FAILED_PRECONDITION: unusable options or state_dir.
  static base::Result<std::unique_ptr<Manager>> Create(Options options,
                                                       exec::EventLoop& loop);
  // As Stop().
  virtual ~Manager() = default;

  // Blocks: takes the disks, loads what is wanted and what is there, begins
  // the work that is missing. A disk that cannot be used is listed with the
  // reason and tried again at every check; it never fails the start.
  virtual void Start() = 0;
  // Blocks: takes no new work (UNAVAILABLE), cancels running transfers, which
  // stay resumable, and releases the disks. Idempotent.
  virtual void Stop() = 0;

  virtual std::vector<DiskStatus> ListDisks() = 0;
  // Blocks. See proto/bim/v1 for the semantics and errors of all of these.
  virtual base::Result<DiskStatus> AddDisk(const std::string& path,
                                           const std::string& uuid,
                                           bool init) = 0;
  // Blocks.
  virtual base::Status RemoveDisk(const std::string& uuid_or_path,
                                  bool force) = 0;

  struct Ensured {
    ImageStatus image;
    bool created = false;
  };
  // Blocks. `spec.disks` may hold uuids, paths or the single word "all".
  virtual base::Result<Ensured> Ensure(ImageSpec spec) = 0;
  // `uuid` may be empty when only one image has the name.
  virtual base::Result<ImageStatus> Get(std::string_view name,
                                        std::string_view uuid) = 0;
  struct Page {
    std::vector<ImageStatus> images;
    std::string next_page_token;
  };
  // INVALID_ARGUMENT: page_size over 1000, or a token that is not ours.
  virtual base::Result<Page> List(uint32_t page_size,
                                  std::string_view page_token) = 0;
  // Blocks.
  virtual base::Status Remove(std::string_view name, std::string_view uuid,
                              bool force) = 0;

  // Begins (or joins) a verification; its id for VerifyProgressOf.
  virtual base::Result<uint64_t> StartVerify(
      std::string_view name, std::string_view uuid,
      const std::vector<std::string>& disks) = 0;
  // NOT_FOUND for an unknown id, or one that ended long ago.
  virtual base::Result<VerifyProgress> VerifyProgressOf(uint64_t id) = 0;

  // A position for a token of an earlier event; an empty, outdated or foreign
  // token gives the beginning (a new snapshot).
  virtual WatchPosition PositionOf(std::string_view resume_token) = 0;
  // At most `max` events after `position`, which is moved on; empty when there
  // are none now. An image that changed several times since gives one event.
  virtual std::vector<Event> NextEvents(WatchPosition& position,
                                        size_t max) = 0;
  // `wake` is called after every change of an image, a disk or a verification,
  // on any thread, with no lock of the manager held; it must not block.
  virtual std::unique_ptr<Subscription> Subscribe(
      std::function<void()> wake) = 0;

  // Blocks. Opens a ready copy for reading: that of the named disk (uuid or
  // path), or any. FAILED_PRECONDITION when none is ready.
  virtual base::Result<OpenImage> Open(std::string_view name,
                                       std::string_view uuid,
                                       std::string_view disk) = 0;
};

}  // namespace bim::manager
