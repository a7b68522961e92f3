// The work on copies: beginning it, and what its end means.

#include <sys/stat.h>

#include <algorithm>
#include <random>

#include "pkg/base/failpoint.h"
#include "pkg/base/log.h"
#include "pkg/manager/manager_impl.h"

namespace bim::manager {
namespace {

using base::Code;
using base::Result;
using base::Status;
using std::chrono::system_clock;

constexpr std::chrono::milliseconds kProgressInterval{200};
constexpr std::chrono::seconds kStopDeadline{60};
// An unknown file that could not be judged is looked at again after this.
constexpr std::chrono::seconds kVerifyAgain{5};

double Jitter() {
  thread_local std::minstd_rand random{std::random_device{}()};
  return std::uniform_real_distribution<double>(0.0, 1.0)(random);
}

uint64_t RealSize(const store::Disk& disk, const ImageKey& key) {
  const auto st = disk.root().Stat(store::DataFile(key));
  return st.ok() ? static_cast<uint64_t>(st->st_blocks) * 512 : 0;
}

// Whether what an ingest leaves can be gone on with.
bool Resumable(const store::Ingest& ingest) {
  return ingest.begun()
             ? ingest.stored_bytes() > 0 && !ingest.validator().empty()
             : !ingest.partial_validator().empty();
}

}  // namespace

// --- beginning

void ManagerImpl::Reconcile(const ImageKey& key) {
  const auto it = images_.find(key);
  // Nothing begins before all disks were looked at: what is missing on one may
  // lie, whole or in part, on the next.
  if (it == images_.end() || stopping_ || loading_ || !held_.empty()) return;
  ImageEntry& image = it->second;
  if (image.removing || image.ensuring) return;
  std::vector<CopyView> views;
  for (const auto& [disk_uuid, copy] : image.copies) {
    views.push_back({copy.state, copy.running, UsableDisk(disk_uuid) != nullptr,
                     copy.found_file, copy.damaged, copy.permanent, copy.due,
                     copy.partial});
  }
  const auto now = system_clock::now();
  std::vector<Step> steps;
  if (image.spec.directed) {
    size_t view = 0;
    for (const auto& [disk_uuid, copy] : image.copies) {
      const SourceSpec source = copy.order ? copy.order->source : SourceSpec();
      const Step step = PlanDirected(views[view++], now,
                                     !(source == SourceSpec()), source.upload);
      steps.push_back(copy.removing ? Step::kNone : step);
    }
  } else {
    steps = Plan(views, now, image.spec.source.upload);
  }
  size_t i = 0;
  for (auto& [disk_uuid, copy] : image.copies) {
    Step step = steps[i++];
    // Somebody asked for it, or the whole was never proven.
    const bool asked = !copy.verify_tasks.empty() &&
                       (copy.state == CopyState::kReady || copy.damaged);
    const bool pending = copy.state == CopyState::kReady && copy.record &&
                         copy.record->sha512_pending;
    if (step == Step::kNone && copy.running == Step::kNone &&
        (asked || pending) && UsableDisk(disk_uuid)) {
      step = Step::kVerify;
    }
    if (step == Step::kNone) continue;
    if (step == Step::kUpload) {
      AwaitUpload(key, image, disk_uuid, copy, now);
      continue;
    }
    if (step != Step::kWait && HasSlot(step, disk_uuid)) {
      if (copy.state == CopyState::kReady) copy.verify = VerifyState::kRunning;
      BeginJob(key, image, disk_uuid, copy, step);
      continue;
    }
    // Not by the clock, but when other work ends.
    copy.due.reset();
    if (copy.expires && *copy.expires <= now) {
      copy.expires = now + options_.backoff_first;
    }
    if (step != Step::kWait &&
        std::find(waiting_.begin(), waiting_.end(), key) == waiting_.end()) {
      waiting_.push_back(key);
    }
    if (step != Step::kVerify) {
      SetState(copy, CopyState::kPending,
               step == Step::kWait ? "waiting for the work on another disk"
                                   : "waiting for its turn");
      Touch(key, image);
    }
  }
}

bool ManagerImpl::HasSlot(Step step, const std::string& disk_uuid) const {
  if (step == Step::kScan || step == Step::kVerify) {
    return scanning_ < kMaxScans;
  }
  if (step == Step::kUpload) return uploading_ < kMaxUploads;
  const auto on_disk = transferring_on_disk_.find(disk_uuid);
  return transferring_ < limits_.transfers &&
         (on_disk == transferring_on_disk_.end() ||
          on_disk->second < limits_.transfers_per_disk);
}

void ManagerImpl::BeginWaiting() {
  // Each once: what still has to wait comes in again at the end.
  for (size_t left = waiting_.size(); left > 0; --left) {
    const ImageKey key = std::move(waiting_.front());
    waiting_.pop_front();
    Reconcile(key);
  }
}

ManagerImpl::Job ManagerImpl::BeginJob(const ImageKey& key, ImageEntry& image,
                                       const std::string& disk_uuid,
                                       CopyEntry& copy, Step step) {
  Job job;
  job.id = next_job_++;
  job.step = step;
  job.key = key;
  job.spec = SpecOf(image, disk_uuid, copy);
  job.disk_uuid = disk_uuid;
  job.disk = UsableDisk(disk_uuid);
  BIM_CHECK(job.disk != nullptr);
  if (step == Step::kCopy) {
    for (const auto& [other, source] : image.copies) {
      if (source.state != CopyState::kReady || other == disk_uuid) continue;
      auto source_disk = UsableDisk(other);
      if (!source_disk) continue;
      // One on the same file system can be cloned.
      if (!job.source_disk || source_disk->device() == job.disk->device()) {
        job.source_disk = std::move(source_disk);
        job.record = source.record;
        copy.source_disk = other;
      }
    }
    BIM_CHECK(job.source_disk != nullptr);
  } else {
    job.record = copy.record;
  }
  copy.stop = std::stop_source();
  job.stop = copy.stop.get_token();
  copy.running = step;
  copy.job = job.id;
  copy.due.reset();
  copy.expires.reset();
  if (step == Step::kDownload || step == Step::kUpload) {
    job.ingest = copy.ingest;
  } else {
    job.retired = std::move(copy.ingest);
    copy.ingest.reset();
  }
  if (copy.order) job.claim_data_source = copy.order->claim_data_source;
  job.repair = RepairAsked(copy);
  // A mere reading leaves what the last transfer told.
  const bool transfers =
      step != Step::kScan && (step != Step::kVerify || job.repair);
  if (!copy.progress || (transfers && !job.ingest)) {
    copy.progress = std::make_shared<transfer::Progress>();
  }
  job.progress = copy.progress;
  if (step == Step::kScan || step == Step::kVerify) {
    copy.scanned = std::make_shared<std::atomic<uint64_t>>(0);
    job.scanned = copy.scanned;
  }
  // A further quick try goes on where it was.
  if (step != Step::kVerify && copy.state != CopyState::kInProgress) {
    SetState(copy, CopyState::kStarting, "");
  }
  Touch(key, image);
  const bool scan = step == Step::kScan || step == Step::kVerify;
  CountJob(job, +1);
  ArmProgressTimer();
  if (step == Step::kUpload) return job;  // on the thread of who brings it
  exec::WorkerPool& pool = scan ? scans_ : transfers_;
  Job counted;
  counted.step = step;
  counted.disk_uuid = disk_uuid;
  if (!pool.Submit(
          [this, job = std::move(job)]() mutable { RunJob(std::move(job)); })) {
    CountJob(counted, -1);
    copy.running = Step::kNone;
  }
  return Job();
}

void ManagerImpl::CountJob(const Job& job, int change) {
  const auto add = [change](size_t& count) {
    count = change > 0 ? count + 1 : count - 1;
  };
  switch (job.step) {
    case Step::kScan:
    case Step::kVerify:
      add(scanning_);
      return;
    case Step::kUpload:
      add(uploading_);
      return;
    default:
      add(transferring_);
      add(transferring_on_disk_[job.disk_uuid]);
  }
}

void ManagerImpl::Cancel(CopyEntry& copy) { copy.stop.request_stop(); }

void ManagerImpl::StopUsing(const std::string& disk_uuid) {
  for (auto& [key, image] : images_) {
    for (auto& [uuid, copy] : image.copies) {
      if (uuid == disk_uuid) {
        Cancel(copy);
        if (!copy.ingest) continue;
        control_.Submit(
            [ingest = std::move(copy.ingest)]() mutable { ingest.reset(); });
        copy.ingest.reset();
      } else if (copy.running == Step::kCopy && copy.source_disk == disk_uuid) {
        Cancel(copy);
      }
    }
  }
}

bool ManagerImpl::AwaitJobs(
    Lock& lock,
    const std::function<bool(const ImageKey&, const std::string&)>& of) {
  return jobs_changed_.wait_for(lock, kStopDeadline, [&] {
    for (const auto& [key, image] : images_) {
      for (const auto& [disk, copy] : image.copies) {
        if (copy.running != Step::kNone && of(key, disk)) return false;
      }
    }
    return true;
  });
}

// --- ending

Desired ManagerImpl::DesiredOf(const ImageEntry& image,
                               const std::string& disk_uuid,
                               const CopyEntry& copy) {
  Desired desired{SpecOf(image, disk_uuid, copy)};
  if (image.spec.directed && copy.record) {
    desired.proven = copy.record->sha512;
  }
  if (copy.state == CopyState::kFailed) {
    desired.last_error = copy.message.empty() ? "failed" : copy.message;
    desired.permanent = copy.permanent;
    desired.attempts = copy.retry.attempts;
    desired.next_attempt = copy.due;
  }
  return desired;
}

void ManagerImpl::Remember(const ImageKey& key, const std::string& disk_uuid) {
  std::shared_ptr<std::mutex> documents;
  {
    Lock lock(mutex_);
    const auto it = images_.find(key);
    if (it == images_.end()) return;
    documents = it->second.documents;
  }
  // One after the other, each with what is true then: the last one written is
  // the newest.
  std::lock_guard writing(*documents);
  std::shared_ptr<store::Disk> disk;
  Desired desired;
  {
    Lock lock(mutex_);
    const auto it = images_.find(key);
    if (it == images_.end() || it->second.documents != documents ||
        it->second.removing) {
      return;
    }
    const auto copy = it->second.copies.find(disk_uuid);
    disk = UsableDisk(disk_uuid);
    if (copy == it->second.copies.end() || copy->second.removing || !disk) {
      return;
    }
    desired = DesiredOf(it->second, disk_uuid, copy->second);
  }
  const Status put = disk->PutDesired(key, EncodeDesired(desired));
  if (!put.ok()) {
    BIM_LOG_WARN("disk {}: cannot remember the state of image {}: {}",
                 disk_uuid, key.name, put.message());
  }
}

void ManagerImpl::RememberSoon(const ImageKey& key,
                               const std::string& disk_uuid) {
  {
    Lock lock(mutex_);
    to_remember_.emplace_back(key, disk_uuid);
    if (std::exchange(remembering_, true)) return;
  }
  if (!control_.Submit([this] { RememberAll(); })) RememberAll();
}

void ManagerImpl::RememberAll() {
  Lock lock(mutex_);
  while (!to_remember_.empty()) {
    const auto [key, disk_uuid] = std::move(to_remember_.front());
    to_remember_.pop_front();
    lock.unlock();
    Remember(key, disk_uuid);
    lock.lock();
  }
  remembering_ = false;
}

bool ManagerImpl::RepairAsked(const CopyEntry& copy) const {
  return std::any_of(
      copy.verify_tasks.begin(), copy.verify_tasks.end(), [&](uint64_t id) {
        const auto task = verify_tasks_.find(id);
        return task != verify_tasks_.end() && task->second.repair;
      });
}

void ManagerImpl::EndVerify(CopyEntry& copy, const std::string& disk_uuid,
                            bool ok, const std::string& message,
                            uint64_t repaired_chunks) {
  copy.verify = ok ? VerifyState::kOk : VerifyState::kFailed;
  for (const uint64_t id : copy.verify_tasks) {
    const auto it = verify_tasks_.find(id);
    if (it == verify_tasks_.end()) continue;
    VerifyTask& task = it->second;
    task.waiting.erase(disk_uuid);
    task.finished_bytes += copy.record ? copy.record->stamp.size : 0;
    task.repaired_chunks += repaired_chunks;
    task.ok = task.ok && ok;
    if (!ok && task.message.empty()) task.message = message;
  }
  copy.verify_tasks.clear();
}

void ManagerImpl::TakeRecord(CopyEntry& copy, JobEnd& end) {
  copy.judged = end.record->stamp;
  copy.record = std::move(end.record);
  copy.real_size = end.real_size;
  copy.partial = false;
  copy.upload_offset = 0;
  copy.upload_size.reset();
}

void ManagerImpl::EndJob(Job& job, JobEnd end) {
  if (end.record) end.real_size = RealSize(*job.disk, job.key);
  BIM_FAILPOINT("manager.job.done");
  // Ingests do I/O when they end: never under the lock.
  std::vector<std::shared_ptr<store::Ingest>> ended;
  std::vector<std::string> remember;  // disk uuids
  std::vector<Happened> happened;
  bool check_disks = false;
  Lock lock(mutex_);
  CountJob(job, -1);
  CopyEntry* copy = CopyOf(job);
  if (copy == nullptr) {
    BeginWaiting();
    jobs_changed_.notify_all();
    return;
  }
  ImageEntry& image = images_.at(job.key);
  const bool was_failed = copy->retry.attempts > 0;
  const bool was_ready = copy->state == CopyState::kReady;
  const bool lost = UsableDisk(job.disk_uuid) != job.disk;
  if (lost || end.failure == transfer::Failure::kCancelled || stopping_) {
    // Stopped, or the disk went away: what comes next is for who did that to
    // say. A record that was published all the same is found again.
    if (!lost && end.record) {
      TakeRecord(*copy, end);
      if (copy->state != CopyState::kReady) {
        SetState(*copy, CopyState::kReady, "");
      }
    } else if (copy->state == CopyState::kStarting ||
               copy->state == CopyState::kInProgress) {
      SetState(*copy, CopyState::kPending, "");
    }
    if (job.step == Step::kVerify) {
      EndVerify(*copy, job.disk_uuid, false, "the verification was stopped");
      if (!lost) copy->verify = VerifyState::kNever;
    }
  } else if (end.record) {
    TakeRecord(*copy, end);
    copy->found_file = false;
    copy->damaged = false;
    copy->permanent = false;
    copy->retry = {};
    copy->unread = 0;
    copy->due.reset();
    if (copy->state != CopyState::kReady) {
      BIM_LOG_INFO("image {} ({}) on disk {}: ready ({}, {} bytes)",
                   job.key.name, job.key.uuid, job.disk_uuid,
                   copy->record->origin, copy->record->stamp.size);
    }
    SetState(*copy, CopyState::kReady, "");
    if (job.step == Step::kVerify) {
      EndVerify(*copy, job.disk_uuid, true, "", end.repaired_chunks);
    }
    if (was_failed) remember.push_back(job.disk_uuid);
  } else if (end.waits) {
    // Its bytes are kept for the next request.
    copy->partial = end.upload_offset > 0;
    copy->upload_offset = end.upload_offset;
    copy->upload_size = end.upload_size;
    if (copy->partial) {
      copy->expires = system_clock::now() + options_.upload_expiry;
    }
    copy->permanent = false;
    copy->retry = {};
    SetState(*copy, CopyState::kPending, end.status.message());
    if (was_failed) remember.push_back(job.disk_uuid);
  } else {
    copy->partial = end.ingest && Resumable(*end.ingest);
    ApplyFailure(job, image, *copy, end);
    check_disks = end.failure == transfer::Failure::kDisk;
    if (copy->state == CopyState::kFailed && !copy->damaged) {
      remember.push_back(job.disk_uuid);
      // A source that fails one disk fails them all, at the same time.
      if (job.step == Step::kDownload && !check_disks && !job.spec.directed) {
        for (auto& [other_uuid, other] : image.copies) {
          if (other.state != CopyState::kPending || !UsableDisk(other_uuid) ||
              other.running != Step::kNone || other.found_file) {
            continue;
          }
          SetState(other, CopyState::kFailed, copy->message);
          other.permanent = copy->permanent;
          other.retry = copy->retry;
          other.due = copy->due;
          remember.push_back(other_uuid);
          AddFailure(happened, UsableDisk(other_uuid), job.key, other);
        }
      }
    }
  }
  if (copy->ingest != end.ingest || copy->state == CopyState::kFailed ||
      copy->state == CopyState::kReady || lost || stopping_ || image.removing) {
    ended.push_back(std::move(copy->ingest));
    copy->ingest.reset();
  }
  ended.push_back(std::move(end.ingest));
  end.ingest.reset();
  if (copy->state == CopyState::kReady && !was_ready) {
    copy->told_failure.clear();
    happened.push_back(
        {job.disk, store::HistoryEvent::kReady, job.key, copy->record->origin});
  } else if (!lost) {
    AddFailure(happened, job.disk, job.key, *copy);
  }
  Touch(job.key, image);
  lock.unlock();

  // Still this copy's running job: a removal waits for it.
  job.ingest.reset();
  ended.clear();
  for (const std::string& uuid : remember) Remember(job.key, uuid);
  TellAll(happened);
  happened.clear();
  // Whoever waits for this job may want the disk's lock to be free.
  job.disk.reset();
  job.source_disk.reset();
  lock.lock();
  copy = CopyOf(job);
  if (copy != nullptr) {
    copy->running = Step::kNone;
    copy->dropping = false;
    copy->scanned.reset();
    // A repair that was asked for while the copy was only being read begins
    // now.
    const bool repair = copy->damaged && !job.repair && RepairAsked(*copy);
    if (!copy->verify_tasks.empty() && copy->state != CopyState::kReady &&
        copy->state != CopyState::kUnknown && !repair) {
      EndVerify(*copy, job.disk_uuid, false,
                "the copy is " + std::string(CopyStateName(copy->state)));
    }
    Touch(job.key, images_.at(job.key));
    Reconcile(job.key);
    ArmRetryTimer();
  }
  BeginWaiting();
  jobs_changed_.notify_all();
  const bool stopping = stopping_;
  lock.unlock();
  Notify();
  if (check_disks && !stopping) control_.Submit([this] { CheckDisks(true); });
}

void ManagerImpl::ApplyFailure(const Job& job, ImageEntry& image,
                               CopyEntry& copy, JobEnd& end) {
  const auto now = system_clock::now();
  std::string message = end.status.message();
  if (end.source_damaged) {
    for (auto& [uuid, source] : image.copies) {
      if (uuid != job.source_disk->uuid() || source.running != Step::kNone ||
          source.state != CopyState::kReady) {
        continue;
      }
      SetState(source, CopyState::kUnknown,
               "a copy of it failed; its content is being verified");
    }
  }
  if (end.file_gone) {
    if (job.step == Step::kVerify) {
      EndVerify(copy, job.disk_uuid, false, "the file is gone");
    }
    copy.found_file = false;
    copy.judged.reset();
    copy.record.reset();
    if (job.spec.directed &&
        (job.step == Step::kVerify || job.spec.source == SourceSpec())) {
      // It is for who directs it to say what comes next.
      copy.permanent = true;
      SetState(copy, CopyState::kFailed,
               job.step == Step::kVerify || message.empty() ? "the file is gone"
                                                            : message);
      return;
    }
    SetState(copy, CopyState::kPending, "");
    return;
  }
  if (end.damaged) {
    BIM_LOG_ERROR("image {} ({}) on disk {}: {}", job.key.name, job.key.uuid,
                  job.disk_uuid, message);
    copy.found_file = false;
    copy.damaged = true;
    copy.permanent = true;
    if (end.judged) copy.judged = end.judged;
    SetState(copy, CopyState::kFailed, message);
    if (job.step == Step::kVerify && (job.repair || !RepairAsked(copy))) {
      EndVerify(copy, job.disk_uuid, false, message);
    }
    return;
  }
  if (job.step == Step::kVerify) {
    // Not proven wrong: it could not be read, or changed meanwhile.
    EndVerify(copy, job.disk_uuid, false, message);
    // What was proven wrong before stays what it is.
    if (copy.damaged) return;
    const auto delay = std::min<std::chrono::milliseconds>(
        kVerifyAgain * (1 << std::min(copy.unread, 16u)),
        std::max<std::chrono::milliseconds>(options_.backoff_max,
                                            kVerifyAgain));
    ++copy.unread;
    copy.due = now + delay;
    SetState(copy, CopyState::kUnknown,
             fmt::format("{}; trying again in {:.0f} s", message,
                         static_cast<double>(delay.count()) / 1000.0));
    return;
  }
  const transfer::RetryDecision decision = transfer::Decide(
      copy.retry, end.failure, end.retry_after, end.progress, Jitter(),
      options_.transfer.retry, {options_.backoff_first, options_.backoff_max});
  copy.retry = decision.next;
  using Kind = transfer::RetryDecision::Kind;
  const double seconds = static_cast<double>(decision.delay.count()) / 1000.0;
  switch (decision.kind) {
    case Kind::kSoon:
      if (copy.order && !options_.data_source &&
          copy.state == CopyState::kStarting &&
          now + decision.delay > copy.order->since + options_.directed_begin) {
        message = "it did not begin in time: " + message;
        break;
      }
      copy.due = now + decision.delay;
      copy.message =
          fmt::format("{}; trying again in {:.1f} s", message, seconds);
      BIM_LOG_WARN("image {} ({}) on disk {}: {}", job.key.name, job.key.uuid,
                   job.disk_uuid, copy.message);
      return;
    case Kind::kLater:
      if (job.spec.directed) break;
      copy.due = now + decision.delay;
      copy.found_file = false;
      SetState(copy, CopyState::kFailed, message);
      BIM_LOG_ERROR(
          "image {} ({}) on disk {}: failed, next attempt in {:.0f} "
          "s: {}",
          job.key.name, job.key.uuid, job.disk_uuid, seconds, message);
      return;
    case Kind::kNever:
      break;
  }
  copy.permanent = true;
  copy.found_file = false;
  SetState(copy, CopyState::kFailed, message);
  BIM_LOG_ERROR("image {} ({}) on disk {}: failed for good: {}", job.key.name,
                job.key.uuid, job.disk_uuid, message);
}

// --- timers

void ManagerImpl::ArmRetryTimer() {
  std::optional<TimePoint> next;
  for (const auto& [key, image] : images_) {
    for (const auto& [disk, copy] : image.copies) {
      if (copy.running != Step::kNone || copy.permanent) continue;
      for (const auto& time : {copy.due, copy.expires}) {
        if (time && (!next || *time < *next)) next = time;
      }
    }
  }
  if (!next || stopping_ || !held_.empty()) return;
  const auto delay = std::max<std::chrono::milliseconds>(
      std::chrono::duration_cast<std::chrono::milliseconds>(
          *next - system_clock::now()) +
          std::chrono::milliseconds(1),
      std::chrono::milliseconds(1));
  loop_.Post([this, delay] {
    // Setting it anew cancels the wait before.
    retry_timer_.expires_after(delay);
    retry_timer_.async_wait([this](const boost::system::error_code& error) {
      if (error) return;
      {
        Lock lock(mutex_);
        if (stopping_) return;
        const auto now = system_clock::now();
        std::vector<ImageKey> due;
        for (const auto& [key, image] : images_) {
          for (const auto& [disk, copy] : image.copies) {
            if (copy.running == Step::kNone &&
                ((copy.due && *copy.due <= now) ||
                 (copy.expires && *copy.expires <= now))) {
              due.push_back(key);
              break;
            }
          }
        }
        for (const ImageKey& key : due) Reconcile(key);
        ArmRetryTimer();
      }
      Notify();
    });
  });
}

void ManagerImpl::ArmProgressTimer() {
  if (progress_armed_ || stopping_) return;
  progress_armed_ = true;
  loop_.Post([this] {
    progress_timer_.expires_after(kProgressInterval);
    progress_timer_.async_wait([this](const boost::system::error_code& error) {
      if (!error) OnProgressTimer();
    });
  });
}

void ManagerImpl::OnProgressTimer() {
  bool changed = false;
  {
    Lock lock(mutex_);
    progress_armed_ = false;
    for (auto& [key, image] : images_) {
      bool moved = false;
      for (auto& [disk, copy] : image.copies) {
        if (copy.running == Step::kNone) continue;
        const uint64_t bytes = copy.scanned  ? copy.scanned->load()
                               : copy.ingest ? copy.ingest->stored_bytes()
                                             : 0;
        moved = moved || bytes != copy.shown_bytes;
        copy.shown_bytes = bytes;
      }
      if (moved) Touch(key, image);
      changed = changed || moved;
    }
    if (scanning_ + transferring_ + uploading_ > 0) ArmProgressTimer();
  }
  if (changed) Notify();
}

}  // namespace bim::manager
