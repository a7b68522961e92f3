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
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pkg/base/status.h"
#include "pkg/base/unique_fd.h"
#include "pkg/exec/event_loop.h"
#include "pkg/exec/rate_limiter.h"
#include "pkg/exec/turns.h"
#include "pkg/manager/directed.h"
#include "pkg/manager/types.h"
#include "pkg/store/handover.h"
#include "pkg/store/record.h"
#include "pkg/transfer/options.h"
#include "pkg/transfer/peers.h"

namespace bim::manager {

struct Options {
  std::string manager_id;
  std::string version;   // for the owner record
  std::string endpoint;  // where the owner is reached, for the owner record
  // Where the list of added disks is kept (one file, disks.json).
  std::string state_dir;
  std::vector<std::string> disk_paths;  // from the configuration
  Limits limits;
  // Readers of one image over the data port at once; others wait their turn.
  size_t readers_per_image = 3;
  // An upload to which nothing came for so long is dropped.
  std::chrono::milliseconds upload_expiry{24 * 3600 * 1000};
  std::chrono::milliseconds backoff_first{60'000};
  std::chrono::milliseconds backoff_max{300'000};
  // A directed copy whose first byte did not come so long after it was asked
  // for is not tried again. (A data source counts for itself.)
  std::chrono::milliseconds directed_begin{60'000};
  std::chrono::milliseconds disk_check_interval{5'000};
  uint32_t file_mode = 0644;  // of image files
  transfer::Options transfer;
  // Who peers are; null: sources with peers fail.
  std::shared_ptr<transfer::PeerResolver> peers;
  // Who asks others to push to us; null: a directed copy of a peer that is not
  // ours, and the export of a volume, fail.
  std::shared_ptr<transfer::PushRequester> pushers;
  // Where they push to: ports, and the IP they are told (empty: ours, on the
  // way to them).
  uint16_t push_port_first = 30'001;
  uint16_t push_port_last = 31'000;
  std::string push_ip;
  // Ask peers of ours to push, too: to measure the protocol.
  bool always_push = false;
  // This process makes one data source's file (Place::kDataSource): the only
  // disk is not owned, and nothing but this image can be directed.
  std::optional<store::ImageKey> data_source;
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
  store::FileStamp stamp;  // as it was proven
  std::string sha512_hex;
  std::shared_ptr<exec::Turns> turns;       // of this image's readers
  std::shared_ptr<exec::Turns> downloads;   // those of people, kept apart
  std::shared_ptr<exec::RateLimiter> rate;  // of all that is sent
};

struct UploadStatus {
  uint64_t offset = 0;           // bytes that are here: where to go on
  std::optional<uint64_t> size;  // of the file, if known
  bool done = false;             // published
};

// One request's part of an upload. Destroyed without Finish: broken off, what
// came is kept. Blocks. One call at a time.
class Upload {
 public:
  virtual ~Upload() = default;
  // RESOURCE_EXHAUSTED: disk full. OUT_OF_RANGE: more than the announced
  // size. FAILED_PRECONDITION: the first bytes are no image's.
  virtual base::Status Append(std::span<const std::byte> data) = 0;
  // This request's bytes are all here. When that completes the file it is
  // checked and published: FAILED_PRECONDITION / DATA_LOSS when it is wrong,
  // and then its bytes are gone. `complete`: no more will come (a body of
  // unknown size ended).
  virtual base::Result<UploadStatus> Finish(bool complete) = 0;
  // As being destroyed, and why: what a directed copy says when it has failed.
  virtual void Break(const base::Status& why) = 0;
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
  // Takes no new work (UNAVAILABLE) and cancels what runs, also what others
  // wait for in their calls. Does not block.
  virtual void BeginStop() = 0;
  // Blocks: BeginStop, then awaits the transfers, which stay resumable, and
  // releases the disks. Idempotent.
  virtual void Stop() = 0;

  virtual std::vector<DiskStatus> ListDisks() = 0;
  // Blocks. See proto/bim/v1 for the semantics and errors of all of these.
  virtual base::Result<DiskStatus> AddDisk(const std::string& path,
                                           const std::string& uuid,
                                           bool init) = 0;
  // Blocks.
  virtual base::Status RemoveDisk(const std::string& uuid_or_path,
                                  bool force) = 0;

  // Makes the images that another manager left on a disk (by uuid or path),
  // each with a backing.cfg that vouches for it, images of this one, directed
  // (directed.h), without reading those whose times fit. What is broken is left
  // alone and told. `dry_run` only looks. Blocks, for as long as it takes to
  // read those whose times do not fit. NOT_FOUND, UNAVAILABLE: the disk.
  virtual base::Result<std::vector<AdoptedImage>> Adopt(std::string_view disk,
                                                        bool dry_run) = 0;

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

  // Begins (or joins) a verification; its id for VerifyProgressOf. With
  // `repair`, see VerifyRequest in proto/bim/v1.
  virtual base::Result<uint64_t> StartVerify(
      std::string_view name, std::string_view uuid,
      const std::vector<std::string>& disks, bool repair) = 0;
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
  // Blocks. The record of a ready copy, its chunks loaded; without chunks when
  // there is no manifest (yet). Errors as of Open().
  virtual base::Result<store::ImageRecord> Manifest(std::string_view name,
                                                    std::string_view uuid) = 0;

  // How far an upload is. FAILED_PRECONDITION: the image's source is no
  // upload. An image that is ready is done.
  virtual base::Result<UploadStatus> GetUpload(std::string_view name,
                                               std::string_view uuid) = 0;
  // Blocks. Takes bytes of the file from `offset` on, which must be where
  // GetUpload says (offset 0 always is right: it starts over). `size`: of the
  // whole file, nullopt: not known, then it cannot be resumed.
  // OUT_OF_RANGE: another offset is expected. ABORTED: another request is
  // uploading this image now. INVALID_ARGUMENT: a size that differs from the
  // one announced before, or that cannot be an image's. ALREADY_EXISTS: the
  // image is ready.
  // To a directed copy (`disk`: which, when several wait) there is one request
  // only: one that breaks off, or does not bring what it announced, fails the
  // copy, and what came is deleted.
  virtual base::Result<std::unique_ptr<Upload>> BeginUpload(
      std::string_view name, std::string_view uuid, uint64_t offset,
      std::optional<uint64_t> size, std::string_view disk = {}) = 0;

  // --- Directed copies (directed.h). An image is either directed or Ensured,
  // never both.

  // Blocks. Registers a copy and looks at what lies at its place: when that
  // fits, it is ready and the source is never asked (and its registration,
  // which the caller repeats when it is missing, is made durable soon after;
  // any other one is before the answer). The rest of the work goes
  // on by itself; its outcome is in the status. A copy that a restart brought
  // back may be registered once more, when size and digest do not contradict.
  // ALREADY_EXISTS ("already exists"): it is registered, or the image is
  // Ensured. NOT_FOUND: no such disk. UNAVAILABLE: the disk cannot be used
  // now.
  virtual base::Result<DirectedStatus> Direct(DirectedSpec spec) = 0;
  // NOT_FOUND ("cannot find"): no directed copy of it on that disk.
  virtual base::Result<DirectedStatus> GetDirected(std::string_view disk,
                                                   std::string_view name,
                                                   std::string_view uuid) = 0;
  // Calls `visit` for each directed copy of a disk, by name, then uuid, all as
  // they are at one moment. `visit` must not call the manager.
  virtual base::Status VisitDirected(
      std::string_view disk,
      const std::function<void(const DirectedStatus&)>& visit) = 0;
  // The uuid of the disk that calls with this `disk` speak of (empty: the
  // first). NOT_FOUND; UNAVAILABLE: not known yet.
  virtual base::Result<std::string> DirectedDiskUuid(std::string_view disk) = 0;
  // Blocks: cancels the work on the copy and forgets it; its files stay. OK,
  // too, when nobody registered it.
  virtual base::Status ForgetDirected(std::string_view disk,
                                      std::string_view name,
                                      std::string_view uuid) = 0;
  // Begins to push a ready copy to "host:port" (transfer/push_sender.h); how
  // that ends is logged. RESOURCE_EXHAUSTED: readers_per_image transfers send
  // it already, or too many run on this node. Blocks for a moment.
  virtual base::Status SendDirected(std::string_view disk,
                                    std::string_view name,
                                    std::string_view uuid,
                                    const std::string& to) = 0;
  // Blocks: cancels the work on the copy, deletes its files, open or not, and
  // forgets it. What a failed copy has of verified bytes is parked
  // (store/parked.h). One that nobody registered: deletes what lies there all
  // the same. So does what a data source that is gone left in work.
  // FAILED_PRECONDITION: the image is Ensured. DEADLINE_EXCEEDED: its work did
  // not end within a minute.
  virtual base::Status RemoveDirected(std::string_view disk,
                                      std::string_view name,
                                      std::string_view uuid) = 0;

  // --- Handing the disks over (pkg/handover), in this order.

  // Takes no new work: what would begin or change something is UNAVAILABLE with
  // `why`. Downloads and uploads that run go on; syncs, copies and readings
  // end, resumable. What is there is shown and read as before.
  virtual void Hold(const std::string& why) = 0;
  virtual void Unhold() = 0;
  // Blocks. False: something still ran at the end.
  // What runs now, a line each.
  virtual std::vector<std::string> Running() = 0;
  virtual bool AwaitIdle(std::chrono::milliseconds at_most) = 0;
  // Blocks: ends what runs, resumable, and lets go of the disks' locks for
  // good. What is ready is shown and read on, until Stop. False: the work on a
  // disk does not end, its lock is free when the process ends.
  virtual bool ReleaseDisks() = 0;
  // Blocks. To all disks that are owned. OK when at least one has it.
  virtual base::Status PutHandover(const store::HandoverRecord& record) = 0;
  // Blocks. A decision counts no more: this is a regular stop.
  virtual void ForgetHandover() = 0;
  // Blocks. Looks at all disks now, and takes those that are free.
  virtual void CheckDisksNow() = 0;

  virtual Limits GetLimits() = 0;
  // INVALID_ARGUMENT: out of bounds (kMinRate, kMaxTransfers).
  virtual base::Status SetLimits(const Limits& limits) = 0;
};

}  // namespace bim::manager
