// Uploads: a copy whose bytes somebody brings, request by request. Between
// requests the copy is pending, with the ingest kept; each request is a job.

#include <mutex>

#include "pkg/base/failpoint.h"
#include "pkg/base/log.h"
#include "pkg/base/names.h"
#include "pkg/manager/manager_impl.h"

namespace bim::manager {

using base::Code;
using base::Result;
using base::Status;
using std::chrono::system_clock;

namespace {

constexpr std::chrono::seconds kDropDeadline{5};
constexpr char kWaiting[] = "waiting for an upload";
constexpr char kWaitingForRest[] = "waiting for the rest of an upload";

Status BeingVerified(const ImageKey& key, const std::string& disk_uuid) {
  return base::UnavailableError("a file of the image '" + key.name +
                                "' on disk " + disk_uuid +
                                " is being verified; try again");
}

bool SaysWaiting(const std::string& message) {
  return message.starts_with(kWaiting) || message.starts_with(kWaitingForRest);
}

}  // namespace

// One request. Shared with what ends it when the image is removed meanwhile.
class ManagerImpl::UploadJob {
 public:
  UploadJob(ManagerImpl& manager, Job job, uint64_t offset,
            std::optional<uint64_t> size)
      : manager_(manager), job_(std::move(job)), offset_(offset), size_(size) {}

  Status Begin() {
    transfer::PullSpec spec;
    spec.expected_size = job_.spec.size;
    spec.max_size = manager_.options_.transfer.max_image_size;
    spec.limiter = &manager_.download_rate_;
    spec.progress = job_.progress.get();
    receiver_ = transfer::Receiver::Make(*job_.ingest, spec, job_.stop);
    transfer::SourceHead head;
    head.size = size_;
    head.offset = offset_;
    if (offset_ > 0) {
      head.validator = job_.ingest->validator();
    } else if (size_) {
      head.validator = "upload:" + std::to_string(*size_);
    }
    return receiver_->OnHead(head);
  }

  Status Append(std::span<const std::byte> data) {
    std::lock_guard lock(mutex_);
    if (ended_) return base::CancelledError("the upload was stopped");
    if (size_ && data.size() > *size_ - offset_) {
      const Status more = base::OutOfRangeError(
          "more bytes came than the " + std::to_string(*size_) + " announced");
      if (job_.spec.directed) GiveUp(more);
      return more;
    }
    Status status = receiver_->OnData(data);
    if (status.ok()) {
      offset_ += data.size();
    } else {
      Fail(status);
    }
    return status;
  }

  Result<UploadStatus> Finish(bool complete) {
    std::lock_guard lock(mutex_);
    if (ended_) return base::CancelledError("the upload was stopped");
    complete = complete || (size_ && offset_ == *size_);
    if (!complete && !job_.spec.directed) {
      BIM_RETURN_IF_ERROR(Suspend());
      return UploadStatus{offset_, size_, false};
    }
    if (size_ && offset_ < *size_) {
      const Status early = base::InvalidArgumentError(
          "the upload ended early: " + std::to_string(offset_) + " of " +
          std::to_string(*size_) + " bytes came");
      if (job_.spec.directed) {
        GiveUp(early);
      } else {
        (void)Suspend();
      }
      return early;
    }
    Status status = receiver_->Finish();
    if (!status.ok()) {
      Fail(status);
      return status;
    }
    receiver_.reset();
    JobEnd end;
    BIM_FAILPOINT("manager.upload.received");
    auto record = job_.ingest->Commit(job_.stop);
    if (!record.ok()) {
      Fail(record.status());
      return record.status();
    }
    end.record = *std::move(record);
    end = manager_.Convert(job_, std::move(end));
    if (!end.record) {
      const Status status = end.status;
      job_.ingest.reset();
      End(std::move(end));
      return status;
    }
    // The file's size, which an encoded upload's is not.
    const uint64_t size = end.record->stamp.size;
    job_.ingest.reset();
    End(std::move(end));
    return UploadStatus{size, size, true};
  }

  // The request broke off, or the work was cancelled: what came is kept.
  void Leave(const std::string& why = "") {
    std::lock_guard lock(mutex_);
    if (ended_) return;
    if (job_.spec.directed && !job_.stop.stop_requested()) {
      GiveUp(base::UnavailableError(
          "the upload broke off: " + std::to_string(offset_) +
          (size_ ? " of " + std::to_string(*size_) : std::string()) +
          " bytes came" + (why.empty() ? "" : "; " + why)));
    } else {
      (void)Suspend();
    }
  }

  std::stop_token stop() const { return job_.stop; }

 private:
  // All locked.
  // Waits for the next request. What is acknowledged then is in the file.
  Status Suspend() {
    receiver_.reset();
    if (Status rested = job_.ingest->Rest(); !rested.ok()) {
      Fail(rested);
      return rested;
    }
    JobEnd end;
    end.waits = true;
    end.ingest = job_.ingest;
    // What was decoded, or has no size, cannot be gone on with.
    const bool resumable = job_.ingest->begun() &&
                           !job_.ingest->validator().empty() &&
                           job_.progress->encoding().empty();
    if (!resumable) (void)job_.ingest->Discard();
    end.upload_offset = resumable ? job_.ingest->position() : 0;
    if (resumable) end.upload_size = job_.ingest->total_bytes();
    offset_ = end.upload_offset;
    if (job_.stop.stop_requested()) {
      end.waits = false;
      end.failure = transfer::Failure::kCancelled;
      end.status = base::CancelledError("stopped");
    } else {
      end.status = base::UnavailableError(
          resumable && offset_ > 0
              ? std::string(kWaitingForRest) + ": " + std::to_string(offset_) +
                    " of " + std::to_string(*end.upload_size) + " bytes came"
              : kWaiting);
    }
    End(std::move(end));
    return base::OkStatus();
  }

  // There will be no other request.
  void GiveUp(const Status& status) {
    receiver_.reset();
    (void)job_.ingest->Discard();
    JobEnd end;
    end.status = status;
    end.failure = transfer::Failure::kPermanent;
    end.ingest = job_.ingest;
    End(std::move(end));
  }

  void Fail(const Status& status) {
    const bool wrong = receiver_ && receiver_->refused();
    receiver_.reset();
    JobEnd end;
    end.status = status;
    end.failure = transfer::ClassifyIngest(status);
    end.ingest = job_.ingest;
    if (end.failure == transfer::Failure::kPermanent || wrong) {
      end.failure = transfer::Failure::kPermanent;
      // Proven wrong.
      (void)job_.ingest->Discard();
    }
    End(std::move(end));
  }

  void End(JobEnd end) {
    ended_ = true;
    job_.ingest.reset();
    manager_.EndJob(job_, std::move(end));
  }

  ManagerImpl& manager_;
  std::mutex mutex_;
  Job job_;
  uint64_t offset_;  // of the next byte
  const std::optional<uint64_t> size_;
  std::unique_ptr<transfer::Receiver> receiver_;
  bool ended_ = false;
};

class ManagerImpl::UploadImpl : public Upload {
 public:
  UploadImpl(ManagerImpl& manager, std::shared_ptr<UploadJob> job)
      : job_(std::move(job)),
        // The client may be silent: a removal does not wait for it.
        cancelled_(job_->stop(), Ender{&manager, job_}) {}
  ~UploadImpl() override { job_->Leave(); }

  Status Append(std::span<const std::byte> data) override {
    return job_->Append(data);
  }
  Result<UploadStatus> Finish(bool complete) override {
    return job_->Finish(complete);
  }
  void Break(const Status& why) override { job_->Leave(why.message()); }

 private:
  // Called with the manager's mutex held: elsewhere, then.
  struct Ender {
    ManagerImpl* manager;
    std::weak_ptr<UploadJob> job;
    void operator()() const {
      manager->control_.Submit([weak = job] {
        if (const auto held = weak.lock()) held->Leave();
      });
    }
  };
  const std::shared_ptr<UploadJob> job_;
  const std::stop_callback<Ender> cancelled_;
};

void ManagerImpl::AwaitUpload(const ImageKey& key, ImageEntry& image,
                              const std::string& disk_uuid, CopyEntry& copy,
                              TimePoint now) {
  if (copy.partial && copy.expires && *copy.expires <= now) {
    BIM_LOG_WARN(
        "image {} ({}) on disk {}: its upload was abandoned; what came is "
        "dropped",
        key.name, key.uuid, disk_uuid);
    copy.dropping = true;
    Job job = BeginJob(key, image, disk_uuid, copy, Step::kUpload);
    transfers_.Submit([this, job = std::move(job)]() mutable {
      JobEnd end;
      end.ingest = std::move(job.ingest);
      if (end.ingest) {
        (void)end.ingest->Discard();
      } else {
        (void)store::RemovePartial(*job.disk, job.key);
      }
      end.waits = true;
      end.status = base::UnavailableError(
          std::string(kWaiting) +
          "; an earlier one was abandoned and its bytes dropped");
      EndJob(job, std::move(end));
    });
    return;
  }
  copy.due.reset();
  if (!copy.partial) {
    copy.expires.reset();
  } else if (!copy.expires) {
    copy.expires = now + options_.upload_expiry;
    ArmRetryTimer();
  }
  if (copy.state == CopyState::kPending && SaysWaiting(copy.message)) return;
  SetState(copy, CopyState::kPending,
           copy.partial ? kWaitingForRest : kWaiting);
  Touch(key, image);
}

bool ManagerImpl::TakesUpload(const ImageEntry& image, const CopyEntry& copy) {
  return image.spec.directed ? copy.order && copy.order->source.upload
                             : image.spec.source.upload;
}

Result<ManagerImpl::Job> ManagerImpl::BeginUploadJob(Lock& lock,
                                                     std::string_view name,
                                                     std::string_view uuid,
                                                     std::string_view disk) {
  BIM_CHECK(lock.owns_lock());
  BIM_RETURN_IF_ERROR(Admit());
  AwaitEnsured(lock, name);
  // What an earlier one left is told to be gone a moment before it is.
  jobs_changed_.wait_for(lock, kDropDeadline, [&] {
    const auto found = Find(name, uuid);
    return stopping_ || !found.ok() ||
           std::none_of((*found)->second.copies.begin(),
                        (*found)->second.copies.end(),
                        [](const auto& copy) { return copy.second.dropping; });
  });
  BIM_ASSIGN_OR_RETURN(auto it, Find(name, uuid));
  ImageEntry& image = it->second;
  if (image.removing) {
    return base::UnavailableError("the image is being removed");
  }
  const DiskEntry* only = nullptr;
  if (!disk.empty()) {
    only = FindDisk(disk);
    if (only == nullptr) {
      return base::NotFoundError("cannot find disk '" + base::Printable(disk) +
                                 "'");
    }
  }
  const auto counts = [&](const std::string& disk_uuid, const CopyEntry& copy) {
    return TakesUpload(image, copy) &&
           (only == nullptr || only->expected_uuid == disk_uuid);
  };
  if (std::none_of(
          image.copies.begin(), image.copies.end(),
          [&](const auto& copy) { return counts(copy.first, copy.second); })) {
    return base::FailedPreconditionError(
        "the image '" + it->first.name +
        "' has another source than an upload (source.upload)");
  }
  std::string chosen;
  for (const auto& [disk_uuid, copy] : image.copies) {
    if (!counts(disk_uuid, copy)) continue;
    if (copy.state == CopyState::kReady) {
      return base::AlreadyExistsError("the image '" + it->first.name +
                                      "' already exists: it is ready");
    }
    if (copy.running == Step::kUpload && !copy.dropping) {
      return base::AbortedError("another request is uploading the image '" +
                                it->first.name + "'");
    }
    if (copy.running != Step::kNone || copy.found_file) {
      return base::UnavailableError("the image '" + it->first.name +
                                    "' is being worked on; try again");
    }
    if (image.spec.directed && copy.state == CopyState::kFailed) {
      return base::FailedPreconditionError(
          "the copy has failed, remove it first: " + copy.message);
    }
    if (!UsableDisk(disk_uuid) || copy.damaged) continue;
    if (copy.state == CopyState::kUnknown) {
      return BeingVerified(it->first, disk_uuid);
    }
    if (chosen.empty() || (copy.partial && !image.copies.at(chosen).partial)) {
      chosen = disk_uuid;
    }
  }
  if (chosen.empty()) {
    return base::UnavailableError("no disk can take the upload now");
  }
  if (!HasSlot(Step::kUpload, chosen)) {
    return base::UnavailableError(std::to_string(kMaxUploads) +
                                  " uploads run already; try again later");
  }
  return BeginJob(it->first, image, chosen, image.copies.at(chosen),
                  Step::kUpload);
}

Status ManagerImpl::RestoreUpload(Job& job) {
  const auto fail = [&](JobEnd end) {
    const Status status = end.status;
    job.ingest.reset();
    EndJob(job, std::move(end));
    return status;
  };
  if (job.ingest) return base::OkStatus();
  if (auto settled = Prepare(job)) {
    const bool ready = settled->record.has_value();
    const Status status = fail(*std::move(settled));
    return ready ? base::AlreadyExistsError("the image '" + job.key.name +
                                            "' already exists: it is ready")
                 : status;
  }
  JobEnd opened = OpenIngest(job, IngestOptionsOf(job, "upload"));
  if (!opened.ingest) return fail(std::move(opened));
  job.ingest = std::move(opened.ingest);
  if (!job.ingest->partial_validator().starts_with("upload:")) {
    return base::OkStatus();
  }
  if (Status restored = job.ingest->Restore(job.stop); !restored.ok()) {
    JobEnd end;
    end.ingest = job.ingest;
    end.failure = transfer::ClassifyIngest(restored);
    end.status = std::move(restored);
    return fail(std::move(end));
  }
  return base::OkStatus();
}

Result<UploadStatus> ManagerImpl::GetUpload(std::string_view name,
                                            std::string_view uuid) {
  Job job;
  {
    Lock lock(mutex_);
    BIM_ASSIGN_OR_RETURN(auto it, Find(name, uuid));
    if (std::none_of(it->second.copies.begin(), it->second.copies.end(),
                     [&](const auto& copy) {
                       return TakesUpload(it->second, copy.second);
                     })) {
      return base::FailedPreconditionError(
          "the image '" + it->first.name +
          "' has another source than an upload (source.upload)");
    }
    for (const auto& [disk_uuid, copy] : it->second.copies) {
      if (copy.state == CopyState::kReady && copy.record) {
        const uint64_t size = copy.record->stamp.size;
        return UploadStatus{size, size, true};
      }
    }
    bool restore = false;
    UploadStatus status;
    for (const auto& [disk_uuid, copy] : it->second.copies) {
      if (copy.running == Step::kUpload) {
        status.offset = copy.ingest ? copy.ingest->stored_bytes() : 0;
        if (copy.ingest && copy.ingest->total_bytes() > 0) {
          status.size = copy.ingest->total_bytes();
        }
        return status;
      }
      if (copy.upload_offset > 0 && copy.ingest) {
        return UploadStatus{copy.upload_offset, copy.upload_size, false};
      }
      // Who asks shall not begin to bring what may be here.
      if (copy.state == CopyState::kUnknown && UsableDisk(disk_uuid)) {
        return BeingVerified(it->first, disk_uuid);
      }
      restore = restore || (copy.partial && UsableDisk(disk_uuid));
    }
    if (!restore) return status;
    // What an earlier process left: read again before it is promised.
    BIM_ASSIGN_OR_RETURN(job, BeginUploadJob(lock, name, uuid, {}));
  }
  Notify();
  BIM_RETURN_IF_ERROR(RestoreUpload(job));
  UploadStatus status;
  if (job.ingest->begun()) {
    status.offset = job.ingest->position();
    status.size = job.ingest->total_bytes();
  }
  (void)job.ingest->Rest();  // a failure is found by who goes on
  JobEnd end;
  end.waits = true;
  end.upload_offset = status.offset;
  end.upload_size = status.size;
  end.status = base::UnavailableError(kWaitingForRest);
  end.ingest = std::move(job.ingest);
  EndJob(job, std::move(end));
  return status;
}

Result<std::unique_ptr<Upload>> ManagerImpl::BeginUpload(
    std::string_view name, std::string_view uuid, uint64_t offset,
    std::optional<uint64_t> size, std::string_view disk) {
  if (size && (*size == 0 || *size > options_.transfer.max_image_size)) {
    return base::InvalidArgumentError(
        "expected a size of 1 to " +
        std::to_string(options_.transfer.max_image_size) +
        " bytes (sources.max_image_size), found " + std::to_string(*size));
  }
  Job job;
  {
    Lock lock(mutex_);
    BIM_ASSIGN_OR_RETURN(job, BeginUploadJob(lock, name, uuid, disk));
  }
  Notify();
  BIM_RETURN_IF_ERROR(RestoreUpload(job));
  store::Ingest& ingest = *job.ingest;
  const uint64_t expected = ingest.begun() ? ingest.position() : 0;
  const uint64_t announced = ingest.begun() ? ingest.total_bytes() : 0;
  Status wrong;
  if (offset != 0 && offset != expected) {
    wrong = base::OutOfRangeError("expected the bytes from offset " +
                                  std::to_string(expected) + " on, found " +
                                  std::to_string(offset));
  } else if (offset != 0 && size && *size != announced) {
    wrong = base::InvalidArgumentError(
        "expected a size of " + std::to_string(announced) +
        " bytes, as announced before, found " + std::to_string(*size));
  }
  if (!wrong.ok()) {
    (void)ingest.Rest();
    JobEnd end;
    end.waits = true;
    end.upload_offset = expected;
    if (announced > 0) end.upload_size = announced;
    end.status =
        base::UnavailableError(expected > 0 ? kWaitingForRest : kWaiting);
    end.ingest = std::move(job.ingest);
    EndJob(job, std::move(end));
    return wrong;
  }
  if (offset != 0) size = announced;
  if (offset == 0 && ingest.begun()) (void)ingest.Discard();
  JobState(job, CopyState::kInProgress, "");
  auto upload =
      std::make_shared<UploadJob>(*this, std::move(job), offset, size);
  if (Status begun = upload->Begin(); !begun.ok()) {
    upload->Leave();
    return begun;
  }
  return std::unique_ptr<Upload>(
      std::make_unique<UploadImpl>(*this, std::move(upload)));
}

}  // namespace bim::manager
