// What a manager does while its disks are handed over: less and less.

#include <algorithm>
#include <set>

#include "pkg/base/log.h"
#include "pkg/manager/manager_impl.h"

namespace bim::manager {

using base::Status;

namespace {

constexpr std::chrono::seconds kSettleDeadline{30};

}  // namespace

Status ManagerImpl::Admit() const {
  if (stopping_) return base::UnavailableError("the daemon is stopping");
  if (!held_.empty()) return base::UnavailableError(held_);
  return base::OkStatus();
}

// A sync can be gone on with by whoever is next; a download's source may not
// be asked again so gladly.
bool ManagerImpl::EndsWhenHeld(const ImageEntry& image, const CopyEntry& copy) {
  if (copy.running == Step::kUpload) return false;
  if (copy.running != Step::kDownload) return true;
  const SourceSpec& source =
      copy.order ? copy.order->source : image.spec.source;
  return !source.peers.empty();
}

void ManagerImpl::Hold(const std::string& why) {
  {
    Lock lock(mutex_);
    held_ = why;
    for (auto& [key, image] : images_) {
      for (auto& [disk, copy] : image.copies) {
        if (copy.running != Step::kNone && EndsWhenHeld(image, copy)) {
          Cancel(copy);
        }
      }
    }
  }
  Notify();
}

void ManagerImpl::Unhold() {
  {
    Lock lock(mutex_);
    if (released_) return;
    held_.clear();
    for (auto& [key, image] : images_) Reconcile(key);
    BeginWaiting();
    ArmRetryTimer();
  }
  Notify();
}

bool ManagerImpl::IsIdle() const {
  return std::all_of(images_.begin(), images_.end(), [](const auto& image) {
    return std::all_of(
        image.second.copies.begin(), image.second.copies.end(),
        [](const auto& copy) { return copy.second.running == Step::kNone; });
  });
}

bool ManagerImpl::AwaitIdle(std::chrono::milliseconds at_most) {
  Lock lock(mutex_);
  return jobs_changed_.wait_for(lock, at_most,
                                [&] { return stopping_ || IsIdle(); });
}

std::vector<std::string> ManagerImpl::Running() {
  Lock lock(mutex_);
  std::vector<std::string> running;
  for (const auto& [key, image] : images_) {
    for (const auto& [disk, copy] : image.copies) {
      if (copy.running == Step::kNone) continue;
      running.push_back(fmt::format("image {} ({}) on disk {}: {}", key.name,
                                    key.uuid, disk, CopyStateName(copy.state)));
    }
  }
  return running;
}

std::vector<std::shared_ptr<store::Disk>> ManagerImpl::OwnedDisks() {
  Lock lock(mutex_);
  std::vector<std::shared_ptr<store::Disk>> disks;
  for (const DiskEntry& entry : disks_) {
    if (entry.disk) disks.push_back(entry.disk);
  }
  return disks;
}

bool ManagerImpl::ReleaseDisks() {
  std::vector<std::shared_ptr<store::Ingest>> ended;
  std::set<std::string> busy;
  bool settled = false;
  {
    Lock lock(mutex_);
    if (released_) return true;
    if (held_.empty()) held_ = "this manager hands its disks over";
    for (auto& [key, image] : images_) {
      for (auto& [disk, copy] : image.copies) {
        if (copy.running != Step::kNone) Cancel(copy);
      }
    }
    (void)AwaitJobs(lock, [](const auto&, const auto&) { return true; });
    // Calls that were let in before, and a check of the disks.
    settled = jobs_changed_.wait_for(lock, kSettleDeadline, [&] {
      return directing_.empty() && busy_disks_.empty() && !checking_disks_ &&
             std::none_of(images_.begin(), images_.end(), [](const auto& one) {
               return one.second.ensuring || one.second.removing;
             });
    });
    released_ = true;
    for (auto& [key, image] : images_) {
      for (auto& [disk, copy] : image.copies) {
        if (copy.running != Step::kNone) {
          busy.insert(disk);
          continue;
        }
        ended.push_back(std::move(copy.ingest));
        copy.ingest.reset();
      }
    }
  }
  ended.clear();
  RememberAll();
  // A disk that is still worked on is never free while this process lives.
  bool all = true;
  for (const auto& disk : OwnedDisks()) {
    if (settled && busy.count(disk->uuid()) == 0) {
      TellHandedOver(*disk);
      disk->Release();
      continue;
    }
    all = false;
    BIM_LOG_ERROR(
        "hand-over: the work on disk {} does not end; it is free when this "
        "process ends",
        disk->uuid());
  }
  return all;
}

bool ManagerImpl::DecideAlike(const std::string& path,
                              const store::HandoverRecord& undecided) {
  if (undecided.phase != store::HandoverPhase::kBegun) return false;
  for (const auto& disk : OwnedDisks()) {
    const auto decided = store::ReadHandover(disk->root());
    if (!decided.ok() || !*decided || (**decided).id != undecided.id ||
        (**decided).phase == store::HandoverPhase::kBegun) {
      continue;
    }
    const auto root = io::Dir::Open(path);
    if (!root.ok()) return false;
    const auto lock = store::LockUnowned(*root);
    if (!lock.ok()) return false;
    auto record = store::ReadHandover(*root);
    if (!record.ok() || !*record || (**record).id != undecided.id) return false;
    (**record).phase = (**decided).phase;
    const Status put = store::DecideHandover(
        *root, **record, options_.manager_id, options_.version);
    if (!put.ok()) BIM_LOG_ERROR("disk at {}: {}", path, put.message());
    return put.ok();
  }
  return false;
}

Status ManagerImpl::PutHandover(const store::HandoverRecord& record) {
  Status problem = base::UnavailableError("no disk is owned");
  bool any = false;
  for (const auto& disk : OwnedDisks()) {
    Status put = disk->PutHandover(record);
    if (put.ok()) {
      any = true;
    } else {
      BIM_LOG_ERROR("disk {}: the hand-over cannot be recorded: {}",
                    disk->uuid(), put.message());
      problem = std::move(put);
    }
  }
  return any ? base::OkStatus() : problem;
}

void ManagerImpl::ForgetHandover() {
  for (const auto& disk : OwnedDisks()) {
    const auto record = store::ReadHandover(disk->root());
    if (!record.ok() || !*record ||
        (*record)->phase == store::HandoverPhase::kBegun) {
      continue;
    }
    if (Status removed = disk->RemoveHandover(); !removed.ok()) {
      BIM_LOG_WARN("disk {}: {}", disk->uuid(), removed.message());
    }
  }
}

void ManagerImpl::CheckDisksNow() {
  {
    // One that is under way may have looked too early.
    Lock lock(mutex_);
    jobs_changed_.wait_for(lock, kSettleDeadline,
                           [&] { return stopping_ || !checking_disks_; });
  }
  CheckDisks(false);
}

}  // namespace bim::manager
