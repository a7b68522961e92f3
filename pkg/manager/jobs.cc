// The work on copies: beginning it, doing it, and what its end means.

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

std::string ExpectedChecksum(const ImageSpec& spec) {
  return spec.sha512 ? spec.sha512->Hex() : "";
}

// What of `found` contradicts what is expected; empty: nothing.
std::string Difference(const ImageSpec& spec,
                       const std::optional<store::ImageRecord>& known,
                       const store::ImageRecord& found) {
  if (spec.size != 0 && spec.size != found.stamp.size) {
    return "expected size " + std::to_string(spec.size) + ", found " +
           std::to_string(found.stamp.size);
  }
  const auto& sha512 = spec.sha512 ? spec.sha512
                       : known     ? std::optional(known->sha512)
                                   : std::nullopt;
  if (sha512 && *sha512 != found.sha512) {
    return "expected SHA-512 " + sha512->Hex() + ", found " +
           found.sha512.Hex();
  }
  if (spec.sha256 && found.sha256 && *spec.sha256 != *found.sha256) {
    return "expected SHA-256 " + spec.sha256->Hex() + ", found " +
           found.sha256->Hex();
  }
  return "";
}

// "3 of 80 chunks differ, the first at byte 262144", when there is a manifest
// to compare with.
std::string DamagedChunks(const store::Disk& disk,
                          const store::ImageRecord& found) {
  const auto known = store::ReadRecord(disk.root(), found.key, true);
  if (!known.ok() || known->chunks.size() != found.chunks.size() ||
      known->chunk_size != found.chunk_size) {
    return "";
  }
  size_t damaged = 0;
  size_t first = 0;
  for (size_t i = 0; i < found.chunks.size(); ++i) {
    if (found.chunks[i] == known->chunks[i]) continue;
    if (damaged++ == 0) first = i;
  }
  return "; " + std::to_string(damaged) + " of " +
         std::to_string(found.chunks.size()) +
         " chunks differ, the first at byte " +
         std::to_string(first * found.chunk_size);
}

}  // namespace

// --- beginning

void ManagerImpl::Reconcile(const ImageKey& key) {
  const auto it = images_.find(key);
  // Nothing begins before all disks were looked at: what is missing on one may
  // lie, whole or in part, on the next.
  if (it == images_.end() || stopping_ || loading_) return;
  ImageEntry& image = it->second;
  if (image.removing || image.ensuring) return;
  std::vector<CopyView> views;
  for (const auto& [disk_uuid, copy] : image.copies) {
    views.push_back({copy.state, copy.running, UsableDisk(disk_uuid) != nullptr,
                     copy.found_file, copy.damaged, copy.permanent, copy.due,
                     copy.partial});
  }
  const std::vector<Step> steps = Plan(views, system_clock::now());
  size_t i = 0;
  for (auto& [disk_uuid, copy] : image.copies) {
    Step step = steps[i++];
    if (step == Step::kNone && copy.state == CopyState::kReady &&
        copy.running == Step::kNone && !copy.verify_tasks.empty() &&
        UsableDisk(disk_uuid)) {
      step = Step::kVerify;  // somebody asked for it
    }
    if (step == Step::kNone) continue;
    if (step != Step::kWait && HasSlot(step)) {
      if (copy.state == CopyState::kReady) copy.verify = VerifyState::kRunning;
      BeginJob(key, image, disk_uuid, copy, step);
      continue;
    }
    // Not by the clock, but when other work ends.
    copy.due.reset();
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

bool ManagerImpl::HasSlot(Step step) const {
  if (step == Step::kScan || step == Step::kVerify) {
    return running_scans_ < kMaxScans;
  }
  return running_jobs_ - running_scans_ < options_.max_transfers;
}

void ManagerImpl::BeginWaiting() {
  // Each once: what still has to wait comes in again at the end.
  for (size_t left = waiting_.size(); left > 0; --left) {
    const ImageKey key = std::move(waiting_.front());
    waiting_.pop_front();
    Reconcile(key);
  }
}

void ManagerImpl::BeginJob(const ImageKey& key, ImageEntry& image,
                           const std::string& disk_uuid, CopyEntry& copy,
                           Step step) {
  Job job;
  job.id = next_job_++;
  job.step = step;
  job.key = key;
  job.spec = image.spec;
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
  if (step == Step::kDownload) {
    job.ingest = copy.ingest;
  } else {
    Retire(copy);
  }
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
  ++running_jobs_;
  if (scan) ++running_scans_;
  ArmProgressTimer();
  exec::WorkerPool& pool = scan ? scans_ : transfers_;
  if (!pool.Submit(
          [this, job = std::move(job)]() mutable { RunJob(std::move(job)); })) {
    --running_jobs_;
    if (scan) --running_scans_;
    copy.running = Step::kNone;
  }
}

void ManagerImpl::Cancel(CopyEntry& copy) { copy.stop.request_stop(); }

void ManagerImpl::Retire(CopyEntry& copy) {
  if (!copy.ingest) return;
  control_.Submit(
      [ingest = std::move(copy.ingest)]() mutable { ingest.reset(); });
  copy.ingest.reset();
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

// --- doing

void ManagerImpl::RunJob(Job job) {
  JobEnd end;
  if (job.stop.stop_requested()) {
    end.status = base::CancelledError("stopped");
    end.failure = transfer::Failure::kCancelled;
  } else {
    switch (job.step) {
      case Step::kDownload:
        end = Download(job);
        break;
      case Step::kCopy:
        end = CopyFromDisk(job);
        break;
      case Step::kScan:
        end = ScanFile(job);
        break;
      case Step::kVerify:
        end = VerifyFile(job);
        break;
      case Step::kNone:
      case Step::kWait:
        break;
    }
  }
  EndJob(job, std::move(end));
}

store::IngestOptions ManagerImpl::IngestOptionsOf(
    const Job& job, const std::string& origin) const {
  store::IngestOptions options;
  options.expect_sha512 = job.spec.sha512;
  options.expect_sha256 = job.spec.sha256;
  options.file_mode = options_.file_mode;
  options.origin = origin;
  options.shown_checksum = ExpectedChecksum(job.spec);
  return options;
}

CopyEntry* ManagerImpl::CopyOf(const Job& job) {
  const auto it = images_.find(job.key);
  if (it == images_.end()) return nullptr;
  const auto copy = it->second.copies.find(job.disk_uuid);
  return copy != it->second.copies.end() && copy->second.job == job.id
             ? &copy->second
             : nullptr;
}

void ManagerImpl::ShowIngest(const Job& job,
                             const std::shared_ptr<store::Ingest>& ingest) {
  Lock lock(mutex_);
  if (CopyEntry* copy = CopyOf(job)) copy->ingest = ingest;
}

void ManagerImpl::JobState(const Job& job, CopyState state,
                           std::string message) {
  {
    Lock lock(mutex_);
    CopyEntry* copy = CopyOf(job);
    if (copy == nullptr || copy->running == Step::kNone ||
        copy->state == CopyState::kUnknown) {
      return;
    }
    SetState(*copy, state, std::move(message));
    Touch(job.key, images_.at(job.key));
  }
  Notify();
}

ManagerImpl::JobEnd ManagerImpl::Download(const Job& job) {
  JobEnd end;
  const auto fail = [&](Status status, transfer::Failure failure) {
    end.status = std::move(status);
    end.failure = failure;
    return std::move(end);
  };
  const auto disk_failure = [&](Status status) {
    const bool final = status.code() == Code::kAlreadyExists ||
                       status.code() == Code::kFailedPrecondition;
    return fail(std::move(status), final ? transfer::Failure::kPermanent
                                         : transfer::Failure::kDisk);
  };
  end.ingest = job.ingest;
  if (!end.ingest) {
    // What was wanted here before this process knew may be done already.
    CopyEntry judged =
        Judge(job.spec, InspectOn(*job.disk, job.spec), *job.disk);
    if (judged.state == CopyState::kReady) {
      end.record = std::move(judged.record);
      return end;
    }
    if (judged.state != CopyState::kPending || judged.found_file) {
      end = ScanFile(job);
      if (!end.file_gone) return end;
      end = JobEnd();
    }
    const auto desired = job.disk->root().Stat(store::DesiredFile(job.key));
    if (!desired.ok()) {
      Status put =
          job.disk->PutDesired(job.key, EncodeDesired(Desired{job.spec}));
      if (!put.ok()) return disk_failure(std::move(put));
    }
    auto opened = store::Ingest::Open(job.disk, job.key,
                                      IngestOptionsOf(job, "download"));
    if (!opened.ok()) return disk_failure(opened.status());
    end.ingest = *std::move(opened);
    ShowIngest(job, end.ingest);
  }
  auto source = transfer::MakeUrlSource(
      job.spec.source.url, job.spec.source.credential, options_.transfer);
  if (!source.ok()) {
    return fail(source.status(), transfer::Failure::kPermanent);
  }
  const uint64_t before = end.ingest->position();
  transfer::PullResult pulled = transfer::Pull(
      **source, *end.ingest, {job.spec.size, options_.transfer.max_image_size},
      [&] { JobState(job, CopyState::kInProgress, ""); }, job.stop);
  end.status = std::move(pulled.outcome.status);
  end.failure = pulled.outcome.failure;
  end.retry_after = pulled.outcome.retry_after;
  end.progress =
      end.ingest->position() > std::max(before, pulled.resumed_bytes);
  if (pulled.record) {
    end.record = std::move(pulled.record);
    end.ingest.reset();
  }
  return end;
}

ManagerImpl::JobEnd ManagerImpl::CopyFromDisk(const Job& job) {
  JobEnd end;
  const auto fail = [&](Status status, transfer::Failure failure) {
    end.status = std::move(status);
    end.failure = failure;
    return std::move(end);
  };
  CopyEntry judged = Judge(job.spec, InspectOn(*job.disk, job.spec), *job.disk);
  if (judged.state == CopyState::kReady) {
    end.record = std::move(judged.record);
    return end;
  }
  if (judged.state != CopyState::kPending || judged.found_file) {
    end = ScanFile(job);
    if (!end.file_gone) return end;
    end = JobEnd();
  }
  if (!job.disk->root().Stat(store::DesiredFile(job.key)).ok()) {
    Status put =
        job.disk->PutDesired(job.key, EncodeDesired(Desired{job.spec}));
    if (!put.ok()) return fail(std::move(put), transfer::Failure::kDisk);
  }
  const io::Dir& from = job.source_disk->root();
  auto file = from.OpenFile(store::DataFile(job.key), O_RDONLY | O_NONBLOCK);
  if (!file.ok()) return fail(file.status(), transfer::Failure::kTransient);
  auto record = store::ReadRecord(from, job.key, true);
  if (!record.ok()) record = *job.record;  // without a manifest
  struct stat st = {};
  if (::fstat(file->get(), &st) != 0 ||
      !store::Matches(record->stamp, store::StampOf(st))) {
    end.source_damaged = true;  // or touched: verification will tell
    return fail(base::AbortedError("the copy on disk " +
                                   job.source_disk->uuid() + " was modified"),
                transfer::Failure::kTransient);
  }
  record->stamp = store::StampOf(st);
  JobState(job, CopyState::kInProgress, "");
  store::ImageRecord cloned = *record;
  cloned.origin = "reflink";
  auto reflinked =
      store::Reflink(*job.disk, job.key, file->get(), cloned,
                     options_.file_mode, ExpectedChecksum(job.spec));
  if (reflinked.ok()) {
    end.record = *std::move(reflinked);
    return end;
  }
  if (reflinked.status().code() != Code::kUnimplemented) {
    return fail(reflinked.status(), transfer::Failure::kDisk);
  }
  store::IngestOptions options = IngestOptionsOf(job, "copy");
  options.expect_sha512 = record->sha512;
  options.reference = std::make_shared<const store::ImageRecord>(*record);
  auto opened = store::Ingest::Open(job.disk, job.key, std::move(options));
  if (!opened.ok()) return fail(opened.status(), transfer::Failure::kDisk);
  end.ingest = *std::move(opened);
  ShowIngest(job, end.ingest);
  const auto source =
      transfer::MakeFileSource(*std::move(file), *std::move(record));
  transfer::PullResult pulled = transfer::Pull(
      *source, *end.ingest, {}, [] {}, job.stop);
  end.status = std::move(pulled.outcome.status);
  end.failure = pulled.outcome.failure;
  if (pulled.record) {
    end.record = std::move(pulled.record);
  } else if (end.failure == transfer::Failure::kPermanent) {
    // The ready copy is not what its manifest says.
    end.source_damaged = true;
    end.status =
        end.status.WithContext("the copy on disk " + job.source_disk->uuid());
    end.failure = transfer::Failure::kTransient;
  }
  // The next attempt looks for a source anew.
  end.ingest.reset();
  return end;
}

Result<store::ImageRecord> ManagerImpl::ScanOf(const Job& job) {
  const bool want_sha256 =
      job.spec.sha256 || (job.record && job.record->sha256);
  return store::Scan(*job.disk, job.key, want_sha256, job.stop,
                     [&](uint64_t done) {
                       if (job.scanned) job.scanned->store(done);
                     });
}

ManagerImpl::JobEnd ManagerImpl::ScanFile(const Job& job) {
  JobEnd end;
  JobState(job, CopyState::kInProgress, "checking the file that lies there");
  const auto found = InspectOn(*job.disk, job.spec);
  const std::string what = job.disk->path() + "/" + store::DataFile(job.key);
  std::string difference;
  if (found.ok() && job.spec.size != 0 && found->stamp.size != job.spec.size) {
    difference = "expected size " + std::to_string(job.spec.size) + ", found " +
                 std::to_string(found->stamp.size);
  }
  std::optional<store::ImageRecord> known;
  if (found.ok() && (found->kind == store::Found::Kind::kChanged ||
                     found->kind == store::Found::Kind::kReady)) {
    known = found->record;
  }
  if (difference.empty()) {
    auto scanned = ScanOf(job);
    if (!scanned.ok()) {
      end.status = scanned.status();
      switch (scanned.status().code()) {
        case Code::kCancelled:
          end.failure = transfer::Failure::kCancelled;
          break;
        case Code::kNotFound:
          end.file_gone = true;
          break;
        case Code::kAborted:
          end.failure = transfer::Failure::kTransient;
          break;
        case Code::kDataLoss:
        case Code::kFailedPrecondition:
          end.failure = transfer::Failure::kPermanent;
          end.damaged = true;
          end.status = scanned.status().WithContext(
              what +
              " lies at the image's place, is no sound image, and is "
              "left alone");
          break;
        default:
          end.failure = transfer::Failure::kDisk;
      }
      return end;
    }
    difference = Difference(job.spec, known, *scanned);
    if (difference.empty()) {
      scanned->origin = "reused file, rehashed";
      Status written =
          store::WriteRecord(*job.disk, *scanned, ExpectedChecksum(job.spec));
      if (!written.ok()) {
        end.status = std::move(written);
        end.failure = transfer::Failure::kDisk;
        return end;
      }
      scanned->chunks.clear();
      end.record = *std::move(scanned);
      return end;
    }
  }
  BIM_LOG_WARN("{} is not the image that is wanted ({}): replaced", what,
               difference);
  if (Status removed = store::RemoveImage(*job.disk, job.key, true);
      !removed.ok()) {
    end.status = std::move(removed);
    end.failure = transfer::Failure::kDisk;
    return end;
  }
  end.file_gone = true;
  return end;
}

ManagerImpl::JobEnd ManagerImpl::VerifyFile(const Job& job) {
  JobEnd end;
  auto scanned = ScanOf(job);
  if (!scanned.ok()) {
    end.status = scanned.status();
    switch (end.status.code()) {
      case Code::kCancelled:
        end.failure = transfer::Failure::kCancelled;
        return end;
      case Code::kNotFound:
        end.file_gone = true;
        return end;
      case Code::kFailedPrecondition:
      case Code::kDataLoss:
        end.damaged = true;
        end.failure = transfer::Failure::kPermanent;
        break;
      default:
        end.failure = transfer::Failure::kDisk;
        return end;
    }
  } else {
    const std::string difference = Difference(job.spec, job.record, *scanned);
    if (difference.empty()) {
      scanned->origin = job.record ? job.record->origin : "";
      const Status written =
          store::WriteRecord(*job.disk, *scanned, ExpectedChecksum(job.spec));
      if (!written.ok()) {
        // Proven all the same; a restart will have to prove it again.
        BIM_LOG_WARN(
            "image {} ({}) on disk {}: cannot record that it was verified: {}",
            job.key.name, job.key.uuid, job.disk_uuid, written.message());
      }
      scanned->chunks.clear();
      end.record = *std::move(scanned);
      return end;
    }
    end.judged = scanned->stamp;
    end.damaged = true;
    end.failure = transfer::Failure::kPermanent;
    end.status =
        base::DataLossError("the content is not what it was: " + difference +
                            DamagedChunks(*job.disk, *scanned));
  }
  end.status =
      end.status.WithContext(job.disk->path() + "/" + store::DataFile(job.key));
  if (!end.judged) {
    if (const auto st = job.disk->root().Stat(store::DataFile(job.key));
        st.ok()) {
      end.judged = store::StampOf(*st);
    }
  }
  return end;
}

// --- ending

Desired ManagerImpl::DesiredOf(const ImageEntry& image,
                               const CopyEntry& copy) const {
  Desired desired{image.spec};
  if (copy.state == CopyState::kFailed) {
    desired.last_error = copy.message.empty() ? "failed" : copy.message;
    desired.permanent = copy.permanent;
    desired.attempts = copy.retry.attempts;
    desired.next_attempt = copy.due;
  }
  return desired;
}

void ManagerImpl::EndVerify(CopyEntry& copy, const std::string& disk_uuid,
                            bool ok, const std::string& message) {
  copy.verify = ok ? VerifyState::kOk : VerifyState::kFailed;
  for (const uint64_t id : copy.verify_tasks) {
    const auto it = verify_tasks_.find(id);
    if (it == verify_tasks_.end()) continue;
    VerifyTask& task = it->second;
    task.waiting.erase(disk_uuid);
    task.finished_bytes += copy.record ? copy.record->stamp.size : 0;
    task.ok = task.ok && ok;
    if (!ok && task.message.empty()) task.message = message;
  }
  copy.verify_tasks.clear();
}

void ManagerImpl::EndJob(Job& job, JobEnd end) {
  if (end.record) end.real_size = RealSize(*job.disk, job.key);
  BIM_FAILPOINT("manager.job.done");
  // Ingests do I/O when they end: never under the lock.
  std::vector<std::shared_ptr<store::Ingest>> ended;
  std::vector<std::pair<std::shared_ptr<store::Disk>, Desired>> documents;
  bool check_disks = false;
  Lock lock(mutex_);
  --running_jobs_;
  if (job.step == Step::kScan || job.step == Step::kVerify) --running_scans_;
  CopyEntry* copy = CopyOf(job);
  if (copy == nullptr) {
    BeginWaiting();
    jobs_changed_.notify_all();
    return;
  }
  ImageEntry& image = images_.at(job.key);
  const bool was_failed = copy->retry.attempts > 0;
  const bool lost = UsableDisk(job.disk_uuid) != job.disk;
  if (lost || end.failure == transfer::Failure::kCancelled || stopping_) {
    // Stopped, or the disk went away: what comes next is for who did that to
    // say. A record that was published all the same is found again.
    if (!lost && end.record) {
      copy->judged = end.record->stamp;
      copy->record = std::move(end.record);
      copy->real_size = end.real_size;
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
    copy->judged = end.record->stamp;
    copy->record = std::move(end.record);
    copy->real_size = end.real_size;
    copy->found_file = false;
    copy->damaged = false;
    copy->permanent = false;
    copy->retry = {};
    copy->due.reset();
    if (copy->state != CopyState::kReady) {
      BIM_LOG_INFO("image {} ({}) on disk {}: ready ({}, {} bytes)",
                   job.key.name, job.key.uuid, job.disk_uuid,
                   copy->record->origin, copy->record->stamp.size);
    }
    SetState(*copy, CopyState::kReady, "");
    if (job.step == Step::kVerify) EndVerify(*copy, job.disk_uuid, true, "");
    if (was_failed) documents.emplace_back(job.disk, DesiredOf(image, *copy));
  } else {
    copy->partial = end.ingest && end.ingest->position() > 0;
    ApplyFailure(job, image, *copy, end);
    check_disks = end.failure == transfer::Failure::kDisk;
    if (copy->state == CopyState::kFailed && !copy->damaged) {
      documents.emplace_back(job.disk, DesiredOf(image, *copy));
      // A source that fails one disk fails them all, at the same time.
      if (job.step == Step::kDownload && !check_disks) {
        for (auto& [other_uuid, other] : image.copies) {
          auto disk = UsableDisk(other_uuid);
          if (other.state != CopyState::kPending || !disk ||
              other.running != Step::kNone || other.found_file) {
            continue;
          }
          SetState(other, CopyState::kFailed, copy->message);
          other.permanent = copy->permanent;
          other.retry = copy->retry;
          other.due = copy->due;
          documents.emplace_back(std::move(disk), DesiredOf(image, other));
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
  if (image.removing) documents.clear();
  Touch(job.key, image);
  lock.unlock();

  // Still this copy's running job: a removal waits for it.
  job.ingest.reset();
  ended.clear();
  for (const auto& [disk, desired] : documents) {
    const Status put = disk->PutDesired(job.key, EncodeDesired(desired));
    if (!put.ok()) {
      BIM_LOG_WARN("disk {}: cannot remember the state of image {}: {}",
                   disk->uuid(), job.key.name, put.message());
    }
  }
  documents.clear();
  // Whoever waits for this job may want the disk's lock to be free.
  job.disk.reset();
  job.source_disk.reset();
  lock.lock();
  copy = CopyOf(job);
  if (copy != nullptr) {
    copy->running = Step::kNone;
    copy->scanned.reset();
    if (!copy->verify_tasks.empty() && copy->state != CopyState::kReady) {
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
  const std::string message = end.status.message();
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
    if (job.step == Step::kVerify) {
      EndVerify(copy, job.disk_uuid, false, message);
    }
    return;
  }
  if (job.step == Step::kVerify) {
    // Not proven wrong: it could not be read, or changed meanwhile.
    EndVerify(copy, job.disk_uuid, false, message);
    copy.due = now + kVerifyAgain;
    SetState(copy, CopyState::kUnknown, message + "; trying again");
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
      copy.due = now + decision.delay;
      copy.message =
          fmt::format("{}; trying again in {:.1f} s", message, seconds);
      BIM_LOG_WARN("image {} ({}) on disk {}: {}", job.key.name, job.key.uuid,
                   job.disk_uuid, copy.message);
      return;
    case Kind::kLater:
      copy.due = now + decision.delay;
      copy.found_file = false;
      SetState(copy, CopyState::kFailed, message);
      BIM_LOG_ERROR(
          "image {} ({}) on disk {}: failed, next attempt in {:.0f} "
          "s: {}",
          job.key.name, job.key.uuid, job.disk_uuid, seconds, message);
      return;
    case Kind::kNever:
      copy.permanent = true;
      copy.found_file = false;
      SetState(copy, CopyState::kFailed, message);
      BIM_LOG_ERROR("image {} ({}) on disk {}: failed for good: {}",
                    job.key.name, job.key.uuid, job.disk_uuid, message);
      return;
  }
}

// --- timers

void ManagerImpl::ArmRetryTimer() {
  std::optional<TimePoint> next;
  for (const auto& [key, image] : images_) {
    for (const auto& [disk, copy] : image.copies) {
      if (!copy.due || copy.running != Step::kNone || copy.permanent) continue;
      if (!next || *copy.due < *next) next = copy.due;
    }
  }
  if (!next || stopping_) return;
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
            if (copy.due && *copy.due <= now && copy.running == Step::kNone) {
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
    if (running_jobs_ > 0) ArmProgressTimer();
  }
  if (changed) Notify();
}

}  // namespace bim::manager
