// The manager's insides, shared by its source files: manager.cc (the calls of
// the faces), disks.cc (taking, checking and loading disks), jobs.cc (beginning
// and ending jobs), work.cc (what they do), uploads.cc (bytes that somebody
// brings), directed.cc (copies that are directed one by one), adopt.cc (what
// another manager left), tell.cc (the histories of disks) and watch.cc
// (events). Nobody else includes it.
//
// One mutex guards all state; it is never held across I/O. A job runs on a
// pool thread with what it needs copied out, and comes back through EndJob.
#pragma once

#include <atomic>
#include <boost/asio/steady_timer.hpp>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <stop_token>
#include <string>
#include <unordered_map>
#include <vector>

#include "pkg/exec/worker_pool.h"
#include "pkg/manager/desired.h"
#include "pkg/manager/manager.h"
#include "pkg/manager/plan.h"
#include "pkg/store/disk.h"
#include "pkg/store/history.h"
#include "pkg/store/ingest.h"
#include "pkg/store/publish.h"
#include "pkg/transfer/peers.h"
#include "pkg/transfer/pull.h"
#include "pkg/transfer/retry.h"

namespace bim::manager {

using store::ImageKey;

// Reads of whole files at once, on the whole node.
inline constexpr size_t kMaxScans = 2;
// Requests that bring bytes at once, on the whole node. (Their pace is their
// clients': the limits of transfers are not for them, so that slow ones hold
// up no download.)
inline constexpr size_t kMaxUploads = 32;
// Images that are pushed to others at once, and threads that take what others
// push to us, on the whole node.
inline constexpr size_t kMaxSends = 32;
inline constexpr size_t kReceiveThreads = 16;
inline constexpr size_t kMaxDownloads = 64;  // of one image at a time
// How long verified bytes of a failed copy that was removed are kept.
inline constexpr std::chrono::hours kParkedFor{1};

// What a directed copy was asked to be.
struct Order {
  SourceSpec source;
  std::optional<base::Digest> sha512;
  uint64_t size = 0;
  bool restored = false;  // by this process, from the disk: to be asked again
  // When it was asked for, or found again.
  std::chrono::system_clock::time_point since =
      std::chrono::system_clock::now();
  // See DirectedSpec; not kept over a restart.
  std::function<base::Status()> claim_data_source;
};

// An image on one disk, as the manager works with it.
struct CopyEntry {
  std::optional<Order> order;  // of a directed image

  CopyState state = CopyState::kPending;
  std::string message;
  bool found_file = false;
  bool partial = false;
  bool damaged = false;
  bool permanent = false;
  transfer::RetryState retry;
  std::optional<TimePoint> due;
  uint32_t unread = 0;  // readings that failed, one after the other

  Step running = Step::kNone;
  uint64_t job = 0;
  std::string source_disk;  // of a running kCopy: the uuid
  std::stop_source stop;

  // Kept between quick tries of a download, so that they need not read again
  // what is there.
  std::shared_ptr<store::Ingest> ingest;
  // Of the transfer that runs or ran last.
  std::shared_ptr<transfer::Progress> progress;
  // Of an upload that waits for its next request.
  uint64_t upload_offset = 0;
  std::optional<uint64_t> upload_size;
  std::optional<TimePoint> expires;  // what came of it, when nobody goes on
  bool dropping = false;             // its bytes are being deleted
  bool removing = false;             // of a directed copy
  // Of a scan or verification, in bytes.
  std::shared_ptr<std::atomic<uint64_t>> scanned;
  uint64_t shown_bytes = 0;  // of the last progress event

  std::optional<store::ImageRecord> record;  // chunks not loaded
  uint64_t real_size = 0;
  // Of the file as last judged: another stamp means that it was touched.
  std::optional<store::FileStamp> judged;

  VerifyState verify = VerifyState::kNever;
  std::vector<uint64_t> verify_tasks;  // to tell when it ends

  // The failure that the disk's history told last: one that stays the same is
  // told once.
  std::string told_failure;
};

struct ImageEntry {
  ImageSpec spec;
  std::map<std::string, CopyEntry> copies;  // by disk uuid
  uint64_t revision = 0;
  bool removing = false;
  // Being written to the disks for the first time: not shown to anyone before.
  bool ensuring = false;
  std::shared_ptr<exec::Turns> turns;  // of its readers; made when first read
  std::shared_ptr<exec::Turns> downloads;  // the same
  // Held while its desired records are written. Before the manager's mutex.
  std::shared_ptr<std::mutex> documents = std::make_shared<std::mutex>();
};

struct DiskEntry {
  std::string path;
  std::string expected_uuid;          // empty until first taken
  std::shared_ptr<store::Disk> disk;  // null: cannot be used
  store::DiskFault fault{store::DiskState::kMissing, "not looked at yet"};
  store::Space space;
  uint64_t epoch = 0;
  // Since when it is left to its last owner.
  std::optional<std::chrono::steady_clock::time_point> yielding;
};

// A verification that somebody asked for.
struct VerifyTask {
  ImageKey key;
  std::set<std::string> waiting;  // disk uuids
  uint64_t total_bytes = 0;
  uint64_t finished_bytes = 0;
  bool ok = true;
  std::string message;
  bool repair = false;
  uint64_t repaired_chunks = 0;
};

class ManagerImpl : public Manager {
 public:
  ManagerImpl(Options options, exec::EventLoop& loop);
  ~ManagerImpl() override;

  base::Status LoadState();

  void Start() override;
  void BeginStop() override;
  void Stop() override;
  std::vector<DiskStatus> ListDisks() override;
  base::Result<DiskStatus> AddDisk(const std::string& path,
                                   const std::string& uuid, bool init) override;
  base::Status RemoveDisk(const std::string& uuid_or_path, bool force) override;
  base::Result<std::vector<AdoptedImage>> Adopt(std::string_view disk,
                                                bool dry_run) override;
  std::vector<std::string> Running() override;
  base::Result<Ensured> Ensure(ImageSpec spec) override;
  base::Result<ImageStatus> Get(std::string_view name,
                                std::string_view uuid) override;
  base::Result<Page> List(uint32_t page_size,
                          std::string_view page_token) override;
  base::Status Remove(std::string_view name, std::string_view uuid,
                      bool force) override;
  base::Result<uint64_t> StartVerify(std::string_view name,
                                     std::string_view uuid,
                                     const std::vector<std::string>& disks,
                                     bool repair) override;
  base::Result<VerifyProgress> VerifyProgressOf(uint64_t id) override;
  WatchPosition PositionOf(std::string_view resume_token) override;
  std::vector<Event> NextEvents(WatchPosition& position, size_t max) override;
  std::unique_ptr<Subscription> Subscribe(std::function<void()> wake) override;
  base::Result<OpenImage> Open(std::string_view name, std::string_view uuid,
                               std::string_view disk) override;
  base::Result<store::ImageRecord> Manifest(std::string_view name,
                                            std::string_view uuid) override;
  base::Result<UploadStatus> GetUpload(std::string_view name,
                                       std::string_view uuid) override;
  base::Result<std::unique_ptr<Upload>> BeginUpload(
      std::string_view name, std::string_view uuid, uint64_t offset,
      std::optional<uint64_t> size, std::string_view disk) override;
  base::Result<DirectedStatus> Direct(DirectedSpec spec) override;
  base::Result<DirectedStatus> GetDirected(std::string_view disk,
                                           std::string_view name,
                                           std::string_view uuid) override;
  base::Status VisitDirected(
      std::string_view disk,
      const std::function<void(const DirectedStatus&)>& visit) override;
  base::Status RemoveDirected(std::string_view disk, std::string_view name,
                              std::string_view uuid) override;
  base::Result<std::string> DirectedDiskUuid(std::string_view disk) override;
  base::Status ForgetDirected(std::string_view disk, std::string_view name,
                              std::string_view uuid) override;
  base::Status SendDirected(std::string_view disk, std::string_view name,
                            std::string_view uuid,
                            const std::string& to) override;
  void Hold(const std::string& why) override;
  void Unhold() override;
  bool AwaitIdle(std::chrono::milliseconds at_most) override;
  bool ReleaseDisks() override;
  base::Status PutHandover(const store::HandoverRecord& record) override;
  void ForgetHandover() override;
  void CheckDisksNow() override;
  Limits GetLimits() override;
  base::Status SetLimits(const Limits& limits) override;

 private:
  using Lock = std::unique_lock<std::mutex>;
  class SubscriptionImpl;

  // What a job needs, copied out under the lock.
  struct Job {
    uint64_t id = 0;
    Step step = Step::kNone;
    ImageKey key;
    ImageSpec spec;
    std::string disk_uuid;
    std::shared_ptr<store::Disk> disk;
    std::shared_ptr<store::Disk> source_disk;  // of kCopy
    std::shared_ptr<store::Ingest> ingest;     // of a further quick try
    std::shared_ptr<store::Ingest> retired;    // to be ended first
    std::shared_ptr<std::atomic<uint64_t>> scanned;
    std::shared_ptr<transfer::Progress> progress;
    bool repair = false;  // of kVerify
    // Of kVerify and kScan: what the file should be, when that is known.
    std::optional<store::ImageRecord> record;
    // Of kScan: where to go on when the file is not the one.
    std::function<base::Status()> claim_data_source;
    std::stop_token stop;
  };
  // What became of it.
  struct JobEnd {
    base::Status status;
    transfer::Failure failure = transfer::Failure::kNone;
    std::optional<std::chrono::seconds> retry_after;
    std::optional<store::ImageRecord> record;  // the copy is ready
    uint64_t real_size = 0;
    bool file_gone = false;       // nothing (usable) lies there any more
    bool damaged = false;         // the file differs and is kept
    bool source_damaged = false;  // of kCopy: the copy it was made from
    bool progress = false;        // bytes arrived
    std::shared_ptr<store::Ingest> ingest;
    std::optional<store::FileStamp> judged;
    uint64_t repaired_chunks = 0;
    // Of kUpload: more is to come, by another request.
    bool waits = false;
    uint64_t upload_offset = 0;
    std::optional<uint64_t> upload_size;
  };
  class UploadJob;
  class UploadImpl;

  // --- hand_over.cc. Locked.
  // UNAVAILABLE: no new work is taken, and why.
  base::Status Admit() const;
  static bool EndsWhenHeld(const ImageEntry& image, const CopyEntry& copy);
  bool IsIdle() const;
  // Not locked.
  std::vector<std::shared_ptr<store::Disk>> OwnedDisks();

  // --- disks.cc
  void ScheduleDiskCheck();
  // `probe`: also whether they can be written to.
  void CheckDisks(bool probe);
  void CheckDisk(const std::string& path, bool probe);
  void CheckFiles(const std::string& disk_uuid,
                  const std::shared_ptr<store::Disk>& disk);
  // Claims and loads a disk that cannot be used yet. False: somebody else is at
  // it.
  bool TryDisk(const std::string& path);
  void ClaimDisk(const std::string& path, const std::string& expected_uuid);
  void LoadDisk(const std::shared_ptr<store::Disk>& disk);
  // What is wanted on a disk; any unreadable record is a failure.
  static base::Result<std::vector<Desired>> ReadWanted(const io::Dir& root);
  // Lists what is wanted on a disk that can only be read. Takes the lock.
  void ShowUnusable(const std::string& path, const std::string& uuid);
  // Copies, unknown ones, of the images that are wanted on disks that we know
  // of but that have no copy yet. Locked.
  void AddMissingCopies();
  // The copies on a disk that is gone. Locked.
  void LoseDisk(DiskEntry& entry, store::DiskFault fault);
  base::Status SaveDisks();
  DiskEntry* FindDisk(std::string_view uuid_or_path);                // locked
  std::shared_ptr<store::Disk> UsableDisk(const std::string& uuid);  // locked
  DiskStatus StatusOf(const DiskEntry& entry);                       // locked

  // --- jobs.cc
  // Begins what Plan says. Locked.
  void Reconcile(const ImageKey& key);
  // Whether a thread is free for such work. What has to wait is not queued at
  // a pool, so that it can be withdrawn at once. Locked.
  bool HasSlot(Step step, const std::string& disk_uuid) const;
  // Looks again at what waited for a free thread. Locked.
  void BeginWaiting();
  // The job, where its caller has to run it (kUpload); else it was begun.
  Job BeginJob(const ImageKey& key, ImageEntry& image,
               const std::string& disk_uuid, CopyEntry& copy, Step step);
  void CountJob(const Job& job, int change);  // locked
  // --- work.cc
  void RunJob(Job job);
  JobEnd Download(Job& job);
  // Judges what lies there before bytes come: the end, when that settles it.
  std::optional<JobEnd> Prepare(const Job& job);
  JobEnd OpenIngest(const Job& job, store::IngestOptions options);
  // From the image's peers. False: none has it, `end` says why.
  bool DownloadFromPeers(const Job& job, JobEnd& end);
  JobEnd DownloadFromUrl(const Job& job, JobEnd end);
  transfer::PeerQuery PeerQueryOf(const Job& job) const;
  // Ready images of this node that may share chunks with `wanted`, the
  // likeliest first.
  transfer::NextLocalImage LocalImages(const Job& job,
                                       const store::ImageRecord& wanted,
                                       bool repair = false);
  // The copy differs from its record: makes it whole again. Else says why not.
  JobEnd Repair(const Job& job);
  JobEnd CopyFromDisk(const Job& job);
  JobEnd ScanFile(const Job& job);
  JobEnd VerifyFile(const Job& job);
  // A restart shall not believe the file again.
  static void RecordDamage(const Job& job);
  base::Result<store::ImageRecord> ScanOf(const Job& job);
  static std::string ExpectedChecksum(const ImageSpec& spec);
  // What of `found` contradicts what is expected; empty: nothing.
  static std::string Difference(const ImageSpec& spec,
                                const std::optional<store::ImageRecord>& known,
                                const store::ImageRecord& found);
  static JobEnd EndPull(const Job& job, JobEnd end,
                        transfer::PullResult pulled);
  // --- jobs.cc
  void EndJob(Job& job, JobEnd end);
  // The copy is ready, as the job found it. Locked.
  static void TakeRecord(CopyEntry& copy, JobEnd& end);
  void ApplyFailure(const Job& job, ImageEntry& image, CopyEntry& copy,
                    JobEnd& end);
  // The copy that this job runs for; null when it went away. Locked.
  CopyEntry* CopyOf(const Job& job);
  // Lets the status show how far it is. Takes the lock.
  void ShowIngest(const Job& job, const std::shared_ptr<store::Ingest>& ingest);
  // A running job of this id reached a state. Takes the lock.
  void JobState(const Job& job, CopyState state, std::string message);
  void ArmRetryTimer();     // locked
  void ArmProgressTimer();  // locked
  void OnProgressTimer();
  // Cancels a copy's job. Locked.
  void Cancel(CopyEntry& copy);
  // Cancels the work on copies of a disk, and that which reads from it, and
  // lets go of their ingests on another thread: their end does I/O. Locked.
  void StopUsing(const std::string& disk_uuid);
  // Waits until no job runs for the copies `of` selects. False: after 60 s one
  // still did.
  bool AwaitJobs(
      Lock& lock,
      const std::function<bool(const ImageKey&, const std::string&)>& of);
  store::IngestOptions IngestOptionsOf(const Job& job,
                                       const std::string& origin) const;
  static Desired DesiredOf(const ImageEntry& image,
                           const std::string& disk_uuid, const CopyEntry& copy);
  // Writes what is wanted of a copy, and what became of it, to its disk. Takes
  // the lock.
  void Remember(const ImageKey& key, const std::string& disk_uuid);
  // The same, soon, on another thread; Stop waits for it.
  void RememberSoon(const ImageKey& key, const std::string& disk_uuid);
  void RememberAll();
  // What is to be told to the histories of disks when the lock is free.
  struct Happened {
    std::shared_ptr<store::Disk> disk;
    store::HistoryEvent what = store::HistoryEvent::kCreated;
    ImageKey key;
    std::string message;
  };
  // Appends to the history of a disk, and logs it; that it cannot is logged,
  // too. Blocks, not locked.
  static void Tell(const store::Disk& disk, store::HistoryEvent what,
                   const ImageKey& key, const std::string& message);
  static void TellAll(const std::vector<Happened>& happened);
  // Adds that the copy is failed now, unless that was told already. Locked.
  static void AddFailure(std::vector<Happened>& happened,
                         const std::shared_ptr<store::Disk>& disk,
                         const ImageKey& key, CopyEntry& copy);
  // That the copy is wanted on this disk from now on, and what was found there.
  static void TellCreated(const store::Disk& disk, const ImageKey& key,
                          const ImageSpec& spec, CopyEntry& copy);
  // That it is another manager's from now on.
  static void TellHandedOver(const store::Disk& disk);
  // That the disk was another manager's, or another version's; one entry for
  // all its images.
  static void TellTakenOver(const store::Disk& disk, const std::string& images);
  // Somebody asked for a repair of this copy. Locked.
  bool RepairAsked(const CopyEntry& copy) const;
  void EndVerify(CopyEntry& copy, const std::string& disk_uuid, bool ok,
                 const std::string& message, uint64_t repaired_chunks = 0);

  // --- uploads.cc
  // A copy that waits for its bytes: says so, and drops those that nobody went
  // on with. Locked.
  void AwaitUpload(const ImageKey& key, ImageEntry& image,
                   const std::string& disk_uuid, CopyEntry& copy,
                   TimePoint now);
  // The copy that an upload goes to, and a job of kUpload for it. Locked.
  base::Result<Job> BeginUploadJob(Lock& lock, std::string_view name,
                                   std::string_view uuid,
                                   std::string_view disk);
  static bool TakesUpload(const ImageEntry& image, const CopyEntry& copy);
  // What came of it so far is there to go on with. On failure the job has
  // ended.
  base::Status RestoreUpload(Job& job);

  // --- push.cc
  // From somebody who pushes it to us.
  JobEnd Receive(const Job& job);
  // Whether the only peer of a directed copy has to be asked to push.
  bool HasToPush(const Job& job);
  // Reads the file that a data source gave up, then moves it.
  JobEnd ReadDataSource(const Job& job);
  JobEnd ClaimDataSource(const Job& job);
  // Another image on the same disk, as it is.
  JobEnd Clone(const Job& job);
  // What lies at the staging place becomes the file, converted.
  JobEnd Convert(const Job& job, JobEnd end);
  // Where the bytes of a job go: the image's place, or the one where they wait
  // to be converted.
  static ImageKey FileOf(const Job& job);
  void RunSend(const std::string& to, const ImageKey& key,
               const std::shared_ptr<OpenImage>& image,
               std::unique_ptr<exec::Turns::Turn> turn);
  // Its number of readers changed.
  void TouchSent(const ImageKey& key);

  // --- directed.cc
  // Moves the data source's file to the image's place. False: it has to be read
  // first, by a job.
  base::Result<bool> TakeDataSource(const store::Disk& disk,
                                    const DirectedSpec& given,
                                    const ImageKey& key) const;
  base::Result<ImageKey> KeyOf(std::string_view name,
                               std::string_view uuid) const;
  // Stops the work on a copy and marks it as going. `disk`: null, it is not
  // registered. The lock is the manager's, held.
  base::Status StopDirected(Lock& lock, const ImageKey& key,
                            const std::string& disk_uuid,
                            std::shared_ptr<store::Ingest>& ended);
  // The end of a removal, or why it failed. Takes the lock.
  void EndRemoval(const ImageKey& key, const std::string& disk_uuid,
                  const base::Status& status);
  // Decides about a disk that was away as was decided about those that were
  // there: whether it may be claimed again. Blocks.
  bool DecideAlike(const std::string& path,
                   const store::HandoverRecord& undecided);
  // Whether the file of `key` is what Longhorn's cfg says. Blocks.
  base::Status Vouch(const store::Disk& disk, const ImageKey& key,
                     const store::LonghornConfig& config);
  // Serialises what is done to one directed copy: waits for its turn.
  class Directing;
  // What is wanted of this copy: the image's spec, with its order.
  static ImageSpec SpecOf(const ImageEntry& image, const std::string& disk_uuid,
                          const CopyEntry& copy);
  // The other way round, as a restart finds it. Locked.
  static void RestoreOrder(ImageEntry& image, const std::string& disk_uuid,
                           CopyEntry& copy, const ImageSpec& spec);
  // The disk of that uuid or path, or the first. Locked.
  base::Result<DiskEntry*> DirectedDisk(std::string_view disk);
  // Where the files of an image lie, in this kind of process.
  ImageKey KeyOn(const ImageKey& key) const {
    return {key.name, key.uuid,
            options_.data_source ? store::Place::kDataSource
                                 : store::Place::kImages};
  }
  // The disk, for a change to a directed copy of it. Locked; waits.
  base::Result<std::shared_ptr<store::Disk>> BeginDirecting(
      Directing& turn, Lock& lock, std::string_view disk_name,
      const ImageKey& key);
  DirectedStatus DirectedStatusOf(const ImageKey& key, const ImageEntry& image,
                                  const std::string& disk_uuid);  // locked

  // --- watch.cc
  void SetState(CopyEntry& copy, CopyState state, std::string message);
  void Touch(const ImageKey& key, ImageEntry& image);  // locked
  void Forget(const ImageKey& key);                    // locked
  // Wakes the subscribers. Not locked.
  void Notify();
  ImageStatus StatusOf(const ImageKey& key, const ImageEntry& image);
  CopyStatus CopyStatusOf(const ImageKey& key, const std::string& disk_uuid,
                          const CopyEntry& copy);  // locked

  // --- manager.cc
  // Waits, at most 30 s, while an image is being Ensured for the first time.
  void AwaitEnsured(Lock& lock, std::string_view name);
  bool IsEnsuring(std::string_view name) const;  // locked
  // The same, and until no call changes directed copies of such a name.
  // UNAVAILABLE: not in time, or stopping.
  base::Status AwaitOthers(Lock& lock, std::string_view name);
  base::Result<std::map<ImageKey, ImageEntry>::iterator> Find(
      std::string_view name, std::string_view uuid);  // locked
  base::Result<ImageSpec> Resolve(ImageSpec spec);    // locked
  // The image is known, but for its peers: those are replaced. Unlocks.
  Ensured ChangePeers(Lock& lock, const ImageKey& key, ImageSpec spec);
  // What lies on the disk for an image that is newly wanted there.
  static CopyEntry Judge(const ImageSpec& spec,
                         base::Result<store::Found> found,
                         const store::Disk& disk);
  base::Result<store::Found> InspectOn(const store::Disk& disk,
                                       const ImageSpec& spec) const;

  const Options options_;
  transfer::PeerBook peer_book_;
  exec::RateLimiter download_rate_;
  exec::RateLimiter peer_rate_;  // received
  const std::shared_ptr<exec::RateLimiter> send_rate_;
  exec::RateLimiter scan_rate_;
  const std::string instance_;  // of this process, in tokens
  exec::EventLoop& loop_;
  exec::WorkerPool transfers_;
  exec::WorkerPool scans_;
  exec::WorkerPool control_;
  exec::WorkerPool receivers_;  // of what is pushed to us
  exec::WorkerPool senders_;
  std::stop_source stop_calls_;  // those that move bytes by themselves

  // Held while the list of disks is written. Before the manager's mutex.
  std::mutex save_mutex_;
  std::mutex mutex_;
  Limits limits_;
  std::condition_variable jobs_changed_;
  bool started_ = false;
  bool stopping_ = false;
  // While the disks are handed over: what new work is answered. Then they are
  // not ours any more.
  std::string held_;
  bool released_ = false;
  bool loading_ = true;  // until every disk was looked at once
  bool checking_disks_ = false;
  uint64_t disk_checks_ = 0;
  uint64_t next_job_ = 1;
  uint64_t revision_ = 0;
  // Running jobs: readings, transfers, and what others bring.
  size_t scanning_ = 0;
  size_t transferring_ = 0;
  std::map<std::string, size_t> transferring_on_disk_;  // by its uuid
  size_t uploading_ = 0;
  size_t sending_ = 0;
  std::deque<ImageKey> waiting_;  // for a free thread
  std::map<ImageKey, ImageEntry> images_;
  std::map<uint64_t, ImageKey> by_revision_;
  std::map<uint64_t, ImageKey> removed_;  // the latest removals
  uint64_t forgotten_removals_ = 0;  // the newest revision dropped from there
  std::vector<DiskEntry> disks_;
  std::set<std::string> busy_disks_;  // paths being claimed
  // Directed copies being registered or removed, by disk uuid.
  std::set<std::pair<std::string, std::string>> directing_;  // disk, directory
  std::deque<std::pair<ImageKey, std::string>> to_remember_;
  bool remembering_ = false;  // somebody works at them
  // Removals that a disk has not seen yet: disk uuid -> images.
  std::map<std::string, std::set<ImageKey>> tombstones_;
  std::map<uint64_t, VerifyTask> verify_tasks_;
  uint64_t next_verify_ = 1;

  // Timers live on the loop; armed flags are guarded by the mutex.
  boost::asio::steady_timer disk_timer_;
  boost::asio::steady_timer retry_timer_;
  boost::asio::steady_timer progress_timer_;
  bool progress_armed_ = false;

  std::mutex subscribers_mutex_;
  std::map<uint64_t, std::function<void()>> subscribers_;
  uint64_t next_subscriber_ = 1;
};

}  // namespace bim::manager
