#include "daemon/hand_over.h"

#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "pkg/base/log.h"
#include "pkg/handover/candidate.h"
#include "pkg/io/dir.h"
#include "pkg/store/disk.h"

namespace bim::daemon {
namespace {

using base::Code;
using handover::CandidateStage;
using std::chrono::milliseconds;

constexpr milliseconds kLookAgain{200};
constexpr char kDraining[] =
    "this manager is drained and takes no new work: \"bim drain --cancel\" "
    "ends "
    "that";

// The owner's own limit, and a while for its answer.
milliseconds Patience(const HandoverConfig& config) {
  return config.confirm_timeout + std::chrono::seconds(5);
}

handover::Candidate::Options CandidateOptions(const HandoverConfig& config,
                                              const handover::Party& self) {
  handover::Candidate::Options options;
  options.self = self;
  // Several signs of life within a lease.
  options.heartbeat = std::max(milliseconds(50), config.lease / 8);
  options.confirm_timeout = Patience(config);
  return options;
}

// Whether a process holds the lock of the disk at `path`.
bool IsOwned(const std::string& path) {
  const auto root = io::Dir::Open(path);
  return root.ok() && root->Stat(store::kLockFile).ok() &&
         store::LockUnowned(*root).status().code() == Code::kAborted;
}

// What a take-over will read is in memory then.
void ReadAhead(const std::vector<std::string>& paths) {
  for (const std::string& path : paths) {
    const auto root = io::Dir::Open(path);
    if (root.ok()) store::ReadAhead(*root);
  }
}

class TakeOverImpl final : public TakeOver, public handover::Candidate::Host {
 public:
  TakeOverImpl(const HandoverConfig& config, const handover::Party& self,
               std::vector<std::string> disks, StopSignal& stop_signal)
      : self_(self), disks_(std::move(disks)), stop_signal_(stop_signal) {
    candidate_ =
        handover::Candidate::Start(CandidateOptions(config, self), *this);
  }
  ~TakeOverImpl() override {
    {
      std::lock_guard lock(mutex_);
      ended_ = true;
    }
    changed_.notify_all();
    candidate_->Stop();
    candidate_.reset();
  }

  bool Await() override {
    std::string told;
    bool asked = false;
    for (;;) {
      const bool idle = candidate_->Stage() == CandidateStage::kIdle;
      const auto owned = std::find_if(disks_.begin(), disks_.end(), IsOwned);
      if (idle && owned == disks_.end()) return true;
      {
        std::lock_guard lock(mutex_);
        if (claiming_) return true;
      }
      if (stop_signal_.WaitFor(milliseconds(0))) return false;
      if (idle) {
        const base::Status begun = candidate_->Begin(/*automatic=*/true);
        if (!begun.ok() && begun.message() != told) {
          told = begun.message();
          BIM_LOG_WARN("hand-over: {}", told);
        }
        // One that cannot hand over is asked to end, once.
        if (!begun.ok() && !asked &&
            (begun.code() == Code::kUnimplemented ||
             begun.code() == Code::kUnavailable)) {
          asked = AskToEnd(*owned);
        }
      }
      if (stop_signal_.WaitFor(kLookAgain)) return false;
    }
  }

  std::vector<handover::ListeningSocket> TakeSockets() override {
    return candidate_->TakeSockets();
  }

  bool Finish() override {
    {
      std::lock_guard lock(mutex_);
      served_ = true;
      if (!claiming_) return false;
    }
    changed_.notify_all();
    return candidate_->AwaitOwning();
  }

  // --- of the candidate

  std::vector<std::string> DiskPaths() override { return disks_; }
  void Load() override { ReadAhead(disks_); }
  base::Status Claim() override {
    std::unique_lock lock(mutex_);
    claiming_ = true;
    changed_.notify_all();
    changed_.wait(lock, [&] { return served_ || ended_; });
    return served_ ? base::OkStatus()
                   : base::UnavailableError("this daemon did not start");
  }

 private:
  // True: that is on its way.
  bool AskToEnd(const std::string& path) {
    base::Status asked = handover::AskToStop(path, self_);
    if (!asked.ok()) {
      // One without a socket, of an older build, in our pid namespace. One that
      // has a socket and does not answer hangs, and is left alone.
      const auto root = io::Dir::Open(path);
      if (root.ok() && root->Stat(handover::kSocketFile).ok()) return false;
      asked = handover::TerminateOwner(path);
    }
    if (!asked.ok()) BIM_LOG_WARN("hand-over: {}", asked.message());
    return true;
  }

  const handover::Party self_;
  const std::vector<std::string> disks_;
  StopSignal& stop_signal_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool claiming_ = false;  // the disks are free for us
  bool served_ = false;
  bool ended_ = false;
  std::unique_ptr<handover::Candidate> candidate_;
};

class HandOverImpl final : public HandOver,
                           public handover::Owner::Host,
                           public handover::Candidate::Host {
 public:
  HandOverImpl(Options options, manager::Manager& manager, StateDir& state,
               StopSignal& stop_signal,
               std::vector<handover::ListeningSocket> sockets)
      : options_(std::move(options)),
        manager_(manager),
        state_(state),
        stop_signal_(stop_signal),
        sockets_(std::move(sockets)) {
    handover::Owner::Options owner;
    owner.self = options_.self;
    owner.lease = options_.config.lease;
    owner.confirm_timeout = options_.config.confirm_timeout;
    owner_ = handover::Owner::Start(owner, *this);
    candidate_ = handover::Candidate::Start(
        CandidateOptions(options_.config, options_.self), *this);
    (void)candidate_->Resume();
  }
  ~HandOverImpl() override {
    Close();
    candidate_.reset();
    owner_.reset();
  }

  bool handed_over() override { return handed_over_; }

  void Close() override {
    // (Calls may still come in: they are answered that it stops.)
    candidate_->Stop();
    owner_->Stop();
    std::lock_guard lock(mutex_);
    sockets_.clear();
  }

  // --- Control

  base::Status Begin(bool automatic, bool dry_run) override {
    if (options_.ephemeral && !automatic) {
      return base::FailedPreconditionError(
          "this manager keeps no identity, so that nobody can decide in its "
          "favour: give it a state_dir or a manager_id");
    }
    return dry_run ? candidate_->WouldBegin(automatic)
                   : candidate_->Begin(automatic);
  }

  base::Status Confirm(bool force, bool dry_run) override {
    if (owner_->Busy()) {
      return dry_run ? owner_->Would(/*confirm=*/true) : owner_->Confirm();
    }
    if (candidate_->Stage() != CandidateStage::kIdle) {
      if (dry_run) return candidate_->Would(/*confirm=*/true);
      if (force) BIM_RETURN_IF_ERROR(Force());
      return candidate_->Confirm(Patience(options_.config));
    }
    return handover::DecideAsOwner(DiskPaths(), options_.self.manager_id, true,
                                   dry_run);
  }

  base::Status Rollback(bool dry_run) override {
    if (owner_->Busy()) {
      return dry_run ? owner_->Would(/*confirm=*/false) : owner_->Rollback();
    }
    if (candidate_->Stage() != CandidateStage::kIdle) {
      if (dry_run) return candidate_->Would(/*confirm=*/false);
      return candidate_->Rollback(Patience(options_.config));
    }
    BIM_RETURN_IF_ERROR(handover::DecideAsOwner(
        DiskPaths(), options_.self.manager_id, false, dry_run));
    if (!dry_run) manager_.CheckDisksNow();
    return base::OkStatus();
  }

  Situation Now() override {
    if (owner_->Busy()) return {"owner", owner_->Now()};
    if (candidate_->Stage() != CandidateStage::kIdle &&
        candidate_->Stage() != CandidateStage::kOwning) {
      return {"candidate", candidate_->Now()};
    }
    Situation situation;
    // One that was interrupted, or waits for the other side.
    for (const manager::DiskStatus& disk : manager_.ListDisks()) {
      const auto& record = disk.handover;
      if (!record) continue;
      situation.role =
          record->owner == options_.self.manager_id ? "owner" : "candidate";
      handover::Status& status = situation.status;
      status.id = record->id;
      status.phase = record->phase == store::HandoverPhase::kBegun
                         ? "interrupted"
                         : store::HandoverPhaseName(record->phase);
      status.automatic = record->automatic;
      status.owner.manager_id = record->owner;
      status.owner.version = record->owner_version;
      status.candidate.manager_id = record->candidate;
      status.candidate.version = record->candidate_version;
      status.candidate.endpoint = record->candidate_endpoint;
      status.message = disk.message;
      return situation;
    }
    situation.status.phase = "steady";
    return situation;
  }

  base::Status Drain(milliseconds at_most) override {
    {
      std::lock_guard lock(drain_mutex_);
      if (owner_->Busy()) return Refused();
      draining_ = true;
      manager_.Hold(kDraining);
    }
    (void)manager_.AwaitIdle(at_most);
    return base::OkStatus();
  }
  base::Status CancelDrain() override {
    std::lock_guard lock(drain_mutex_);
    if (owner_->Busy()) return Refused();
    draining_ = false;
    manager_.Unhold();
    return base::OkStatus();
  }
  Work Running() override {
    std::lock_guard lock(drain_mutex_);
    return {draining_, manager_.Running()};
  }
  std::vector<Event> History() override {
    return handover::ReadEvents(DiskPaths());
  }

  // --- of the owner

  std::vector<handover::OwnedDisk> Disks() override {
    std::vector<handover::OwnedDisk> disks;
    if (released_) return disks;
    for (const manager::DiskStatus& disk : manager_.ListDisks()) {
      if (disk.state == "ready") disks.push_back({disk.uuid, disk.path});
    }
    return disks;
  }
  base::Status Write(const store::HandoverRecord& record) override {
    return manager_.PutHandover(record);
  }
  void Hold(const std::string& why) override { manager_.Hold(why); }
  void Resume() override {
    std::lock_guard lock(drain_mutex_);
    if (draining_) {
      manager_.Hold(kDraining);
    } else {
      manager_.Unhold();
    }
  }
  void Release() override {
    if (!manager_.AwaitIdle(options_.config.drain_timeout)) {
      BIM_LOG_INFO("hand-over: what still runs is left to the successor");
    }
    released_ = true;
    const bool all = manager_.ReleaseDisks();
    state_.Release();
    // The successor waits for the lock, and we for nothing any more.
    if (!all) Exit(/*handed_over=*/true);
  }
  std::vector<handover::ListeningSocket> Sockets() override {
    std::lock_guard lock(mutex_);
    std::vector<handover::ListeningSocket> copies;
    for (const handover::ListeningSocket& socket : sockets_) {
      base::UniqueFd copy(::fcntl(socket.fd.get(), F_DUPFD_CLOEXEC, 0));
      if (copy) copies.push_back({socket.address, std::move(copy)});
    }
    return copies;
  }
  void Exit(bool handed_over) override {
    handed_over_ = handed_over;
    stop_signal_.Stop(handed_over ? "handed over" : "asked by a successor");
  }

  // --- of the candidate

  std::vector<std::string> DiskPaths() override {
    std::vector<std::string> paths;
    for (const manager::DiskStatus& disk : manager_.ListDisks()) {
      paths.push_back(disk.path);
    }
    return paths;
  }
  void Load() override { ReadAhead(DiskPaths()); }
  base::Status Claim() override {
    manager_.CheckDisksNow();
    std::string why = "no disk could be taken";
    for (const manager::DiskStatus& disk : manager_.ListDisks()) {
      if (disk.state == "ready") return base::OkStatus();
      why = disk.message;
    }
    return base::UnavailableError(why);
  }

 private:
  static base::Status Refused() {
    return base::FailedPreconditionError(
        "a hand-over goes on, which takes no new work either");
  }
  base::Status Force() {
    for (const std::string& path : DiskPaths()) {
      if (!IsOwned(path)) continue;
      BIM_RETURN_IF_ERROR(handover::EndOwner(path));
    }
    return base::OkStatus();
  }

  const Options options_;
  manager::Manager& manager_;
  StateDir& state_;
  StopSignal& stop_signal_;
  std::mutex drain_mutex_;
  bool draining_ = false;  // somebody asked for it
  std::mutex mutex_;
  std::vector<handover::ListeningSocket> sockets_;
  std::atomic<bool> handed_over_{false};
  std::atomic<bool> released_{false};
  std::unique_ptr<handover::Owner> owner_;
  std::unique_ptr<handover::Candidate> candidate_;
};

}  // namespace

std::unique_ptr<TakeOver> TakeOver::Make(const HandoverConfig& config,
                                         const handover::Party& self,
                                         std::vector<std::string> disks,
                                         StopSignal& stop_signal) {
  return std::make_unique<TakeOverImpl>(config, self, std::move(disks),
                                        stop_signal);
}

std::unique_ptr<HandOver> HandOver::Start(
    Options options, manager::Manager& manager, StateDir& state,
    StopSignal& stop_signal, std::vector<handover::ListeningSocket> sockets) {
  return std::make_unique<HandOverImpl>(std::move(options), manager, state,
                                        stop_signal, std::move(sockets));
}

}  // namespace bim::daemon
