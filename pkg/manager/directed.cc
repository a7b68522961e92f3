// Directed copies: registered, looked at and removed one by one.

#include "pkg/manager/directed.h"

#include <algorithm>

#include "pkg/base/log.h"
#include "pkg/base/names.h"
#include "pkg/manager/manager_impl.h"
#include "pkg/store/parked.h"

namespace bim::manager {

using base::Result;
using base::Status;

namespace {

constexpr std::chrono::seconds kTurnDeadline{90};

std::string Shown(const ImageKey& key) {
  return "image '" + key.name + "' with uuid '" + key.uuid + "'";
}

Status NotThere(const ImageKey& key) {
  return base::NotFoundError("cannot find " + Shown(key));
}

}  // namespace

Result<ImageKey> ManagerImpl::KeyOf(std::string_view name,
                                    std::string_view uuid) const {
  BIM_RETURN_IF_ERROR(base::CheckName(name, "name"));
  BIM_RETURN_IF_ERROR(base::CheckName(uuid, "uuid"));
  ImageKey key{std::string(name), std::string(uuid)};
  if (!options_.data_source) return key;
  if (key != *options_.data_source) {
    return base::InvalidArgumentError("this process makes " +
                                      Shown(*options_.data_source) +
                                      " only, found " + Shown(key));
  }
  return options_.data_source.value();
}

class ManagerImpl::Directing {
 public:
  // OK, or DEADLINE_EXCEEDED / UNAVAILABLE. `lock` is the manager's, held.
  Status Begin(ManagerImpl& manager, Lock& lock, const std::string& disk_uuid,
               const ImageKey& key) {
    // By directory: those of two keys may be the same one.
    const std::pair<std::string, std::string> what{disk_uuid,
                                                   store::DirName(key)};
    const bool had = manager.jobs_changed_.wait_for(lock, kTurnDeadline, [&] {
      return manager.stopping_ || manager.directing_.count(what) == 0;
    });
    if (manager.stopping_) {
      return base::UnavailableError("the daemon is stopping");
    }
    if (!had) {
      return base::DeadlineExceededError("another call for " + Shown(key) +
                                         " did not end in time; try again");
    }
    manager.directing_.insert(what);
    manager_ = &manager;
    what_ = what;
    return base::OkStatus();
  }
  // Not with the lock held.
  ~Directing() {
    if (manager_ == nullptr) return;
    Lock lock(manager_->mutex_);
    manager_->directing_.erase(what_);
    manager_->jobs_changed_.notify_all();
  }

 private:
  ManagerImpl* manager_ = nullptr;
  std::pair<std::string, std::string> what_;
};

ImageSpec ManagerImpl::SpecOf(const ImageEntry& image,
                              const std::string& disk_uuid,
                              const CopyEntry& copy) {
  ImageSpec spec = image.spec;
  if (!spec.directed) return spec;
  spec.disks = {disk_uuid};
  if (copy.order) {
    spec.source = copy.order->source;
    spec.sha512 = copy.order->sha512;
    spec.size = copy.order->size;
  }
  return spec;
}

void ManagerImpl::RestoreOrder(ImageEntry& image, const std::string& disk_uuid,
                               CopyEntry& copy, const ImageSpec& spec) {
  const auto known = image.copies.find(disk_uuid);
  // A disk that was away for a while brings nothing that is new to the caller.
  const bool seen = known != image.copies.end() && known->second.order &&
                    !known->second.order->restored;
  copy.order = Order{spec.source, spec.sha512, spec.size, !seen};
  image.spec.source = SourceSpec();
  image.spec.sha512.reset();
  image.spec.size = 0;
  auto& disks = image.spec.disks;
  if (std::find(disks.begin(), disks.end(), disk_uuid) == disks.end()) {
    disks.push_back(disk_uuid);
    std::sort(disks.begin(), disks.end());
  }
}

Result<DiskEntry*> ManagerImpl::DirectedDisk(std::string_view disk) {
  if (disk.empty()) {
    if (disks_.empty()) {
      return base::UnavailableError("this node has no disks: add one first");
    }
    return &disks_.front();
  }
  DiskEntry* entry = FindDisk(disk);
  if (entry == nullptr) {
    return base::NotFoundError("cannot find disk '" + base::Printable(disk) +
                               "'");
  }
  return entry;
}

Result<std::string> ManagerImpl::DirectedDiskUuid(std::string_view disk) {
  Lock lock(mutex_);
  BIM_ASSIGN_OR_RETURN(const DiskEntry* entry, DirectedDisk(disk));
  if (entry->expected_uuid.empty()) {
    return base::UnavailableError("disk at " + entry->path +
                                  " cannot be used: " + entry->fault.message);
  }
  return entry->expected_uuid;
}

DirectedStatus ManagerImpl::DirectedStatusOf(const ImageKey& key,
                                             const ImageEntry& image,
                                             const std::string& disk_uuid) {
  const CopyEntry& copy = image.copies.at(disk_uuid);
  DirectedStatus status;
  status.name = key.name;
  status.uuid = key.uuid;
  status.copy = CopyStatusOf(key, disk_uuid, copy);
  if (copy.order) {
    status.expected_sha512 = copy.order->sha512;
    status.size = copy.order->size;
    if (!copy.order->source.peers.empty()) {
      status.sender = copy.order->source.peers.front();
    }
  }
  if (copy.state == CopyState::kReady && copy.record) {
    status.current_sha512 = copy.record->sha512;
    status.size = copy.record->stamp.size;
    status.virtual_size = copy.record->virtual_size;
    status.mtime_ns = copy.record->stamp.mtime_ns;
  } else if (status.size == 0 && copy.ingest) {
    status.size = copy.ingest->total_bytes();
  }
  status.checking =
      !stopping_ && (copy.found_file || (copy.running != Step::kNone &&
                                         copy.running != Step::kUpload));
  if (image.turns) {
    status.readers =
        static_cast<uint32_t>(image.turns->taken() + image.downloads->taken());
  }
  return status;
}

Result<bool> ManagerImpl::TakeDataSource(const store::Disk& disk,
                                         const DirectedSpec& given,
                                         const ImageKey& key) const {
  BIM_RETURN_IF_ERROR(given.claim_data_source());
  ImageKey source = key;
  source.place = store::Place::kDataSource;
  const std::string where = disk.path() + "/" + store::DataFile(source);
  BIM_ASSIGN_OR_RETURN(const store::Found found,
                       store::Inspect(disk, source, options_.file_mode, ""));
  if (found.kind == store::Found::Kind::kNothing) {
    return base::FailedPreconditionError(
        "the data source gave up its file, but "
        "there is none at " +
        where);
  }
  std::string difference;
  if (given.size != 0 && given.size != found.stamp.size) {
    difference = "expected size " + std::to_string(given.size) + ", found " +
                 std::to_string(found.stamp.size);
  } else if (given.sha512 && found.kind == store::Found::Kind::kReady &&
             *given.sha512 != found.record.sha512) {
    difference = "expected SHA-512 " + given.sha512->Hex() + ", found " +
                 found.record.sha512.Hex();
  }
  if (!difference.empty()) {
    return base::FailedPreconditionError(where +
                                         " is not the file that is wanted (" +
                                         difference + ") and is left alone");
  }
  if (found.kind != store::Found::Kind::kReady) return false;
  BIM_RETURN_IF_ERROR(store::MoveImage(
      disk, source, key, given.sha512 ? given.sha512->Hex() : ""));
  // It gave it up: nobody needs its lock any more.
  (void)disk.root().RemoveFile(store::DataSourceLock(source));
  return true;
}

Result<DirectedStatus> ManagerImpl::Direct(DirectedSpec given) {
  BIM_ASSIGN_OR_RETURN(const ImageKey key, KeyOf(given.name, given.uuid));
  Directing turn;
  std::shared_ptr<store::Disk> disk;
  ImageSpec spec;
  {
    Lock lock(mutex_);
    BIM_RETURN_IF_ERROR(Admit());
    BIM_ASSIGN_OR_RETURN(DiskEntry * entry, DirectedDisk(given.disk));
    const std::string disk_uuid = entry->expected_uuid;
    const auto unusable = [](const DiskEntry& which) {
      return base::UnavailableError("disk at " + which.path +
                                    " cannot be used: " + which.fault.message);
    };
    if (disk_uuid.empty()) return unusable(*entry);
    spec.name = key.name;
    spec.uuid = key.uuid;
    spec.source = given.source;
    spec.sha512 = given.sha512;
    spec.size = given.size;
    spec.directed = true;
    spec.disks = {disk_uuid};
    if (!(spec.source == SourceSpec())) {
      BIM_RETURN_IF_ERROR(Resolve(spec).status());
    } else if (spec.size % 512 != 0 ||
               spec.size > options_.transfer.max_image_size) {
      ImageSpec checked = spec;
      checked.source.upload = true;  // its source is not what is in question
      BIM_RETURN_IF_ERROR(Resolve(checked).status());
    }
    BIM_RETURN_IF_ERROR(turn.Begin(*this, lock, disk_uuid, key));
    entry = FindDisk(disk_uuid);
    if (entry == nullptr || !entry->disk) {
      if (entry == nullptr) {
        return base::NotFoundError("cannot find disk '" + disk_uuid + "'");
      }
      return unusable(*entry);
    }
    disk = entry->disk;
    for (const auto& [other, image] : images_) {
      if (other == key || store::DirName(other) != store::DirName(key)) {
        continue;
      }
      return base::AlreadyExistsError("the directory of " + Shown(key) +
                                      " is that of " + Shown(other) +
                                      ", which already exists");
    }
    if (const auto it = images_.find(key); it != images_.end()) {
      ImageEntry& image = it->second;
      if (!image.spec.directed) {
        return base::AlreadyExistsError(
            Shown(key) +
            " already exists: it is wanted by the node API, not directed");
      }
      if (image.removing) {
        return base::UnavailableError(Shown(key) +
                                      " is being removed; try again");
      }
      if (const auto copy = image.copies.find(disk_uuid);
          copy != image.copies.end()) {
        std::optional<Order>& order = copy->second.order;
        const std::optional<store::ImageRecord>& record = copy->second.record;
        const auto size = record ? record->stamp.size : order ? order->size : 0;
        const auto sha512 = record  ? std::optional(record->sha512)
                            : order ? order->sha512
                                    : std::nullopt;
        if (order && order->restored &&
            (spec.size == 0 || size == 0 || size == spec.size) &&
            (!spec.sha512 || !sha512 || *sha512 == *spec.sha512)) {
          order->restored = false;
          return DirectedStatusOf(key, image, disk_uuid);
        }
        return base::AlreadyExistsError(Shown(key) +
                                        " already exists on disk " + disk_uuid);
      }
    }
  }
  BIM_RETURN_IF_ERROR(store::CheckPlace(*disk, KeyOn(key)));
  if (disk->owned()) {
    // Of an earlier try.
    const auto unparked = store::Unpark(*disk, key, spec.size);
    if (!unparked.ok()) {
      BIM_LOG_WARN(
          "image {} ({}) on disk {}: what was parked of it cannot be "
          "used: {}",
          key.name, key.uuid, disk->uuid(), unparked.status().message());
    }
  }
  // What lies there, before anybody can see the copy.
  CopyEntry copy = Judge(spec, InspectOn(*disk, spec), *disk);
  if (given.claim_data_source && copy.state == CopyState::kPending &&
      !copy.found_file) {
    BIM_ASSIGN_OR_RETURN(const bool moved, TakeDataSource(*disk, given, key));
    spec.source.data_source = !moved;
    copy = Judge(spec, InspectOn(*disk, spec), *disk);
  }
  const bool ready = copy.state == CopyState::kReady;
  // Behind the answer only for what lies there anyway, and never when there is
  // one of before: it might tell to remove it.
  if (!ready || given.claim_data_source || disk->HasDesired(key)) {
    BIM_RETURN_IF_ERROR(disk->PutDesired(key, EncodeDesired(Desired{spec})));
  }
  copy.order = Order{spec.source, spec.sha512, spec.size};
  // Judged first: it may be what is wanted.
  if (copy.found_file) copy.order->claim_data_source = given.claim_data_source;
  if (copy.state == CopyState::kPending && !copy.found_file &&
      spec.source == SourceSpec()) {
    copy.state = CopyState::kFailed;
    copy.permanent = true;
    copy.message = "there is no file to reuse at " + disk->path() + "/" +
                   store::DataFile(key) + ", and no source to fetch it from";
  }
  const bool failed = copy.state == CopyState::kFailed;
  // Before any work on it can end.
  TellCreated(*disk, key, spec, copy);
  DirectedStatus status;
  Status lost;
  {
    Lock lock(mutex_);
    const auto there = images_.find(key);
    if (UsableDisk(disk->uuid()) != disk) {
      lost = base::UnavailableError("disk " + disk->uuid() +
                                    " cannot be used any more");
    } else if (there != images_.end() && there->second.removing) {
      lost =
          base::UnavailableError(Shown(key) + " is being removed; try again");
    } else {
      ImageEntry& image = images_[key];
      const ImageSpec known = image.spec;
      image.spec = ImageSpec();
      image.spec.name = key.name;
      image.spec.uuid = key.uuid;
      image.spec.directed = true;
      image.spec.disks = known.disks;
      image.spec.disks.push_back(disk->uuid());
      std::sort(image.spec.disks.begin(), image.spec.disks.end());
      image.copies[disk->uuid()] = std::move(copy);
      Touch(key, image);
      Reconcile(key);
      ArmRetryTimer();
      status = DirectedStatusOf(key, image, disk->uuid());
    }
  }
  if (!lost.ok()) {
    (void)disk->RemoveDesired(key);
    Tell(*disk, store::HistoryEvent::kRemoved, key, lost.message());
    return lost;
  }
  if (failed) Remember(key, disk->uuid());
  if (ready) RememberSoon(key, disk->uuid());
  Notify();
  return status;
}

Result<DirectedStatus> ManagerImpl::GetDirected(std::string_view disk,
                                                std::string_view name,
                                                std::string_view uuid) {
  BIM_ASSIGN_OR_RETURN(const ImageKey key, KeyOf(name, uuid));
  Lock lock(mutex_);
  BIM_ASSIGN_OR_RETURN(const DiskEntry* entry, DirectedDisk(disk));
  const auto it = images_.find(key);
  if (it == images_.end() || !it->second.spec.directed ||
      it->second.copies.count(entry->expected_uuid) == 0) {
    return NotThere(key);
  }
  return DirectedStatusOf(key, it->second, entry->expected_uuid);
}

Status ManagerImpl::VisitDirected(
    std::string_view disk,
    const std::function<void(const DirectedStatus&)>& visit) {
  Lock lock(mutex_);
  BIM_ASSIGN_OR_RETURN(const DiskEntry* entry, DirectedDisk(disk));
  for (const auto& [key, image] : images_) {
    if (image.spec.directed && image.copies.count(entry->expected_uuid) != 0) {
      visit(DirectedStatusOf(key, image, entry->expected_uuid));
    }
  }
  return base::OkStatus();
}

Status ManagerImpl::StopDirected(Lock& lock, const ImageKey& key,
                                 const std::string& disk_uuid,
                                 std::shared_ptr<store::Ingest>& ended) {
  const auto copy_of = [&]() -> CopyEntry* {
    const auto it = images_.find(key);
    if (it == images_.end()) return nullptr;
    const auto copy = it->second.copies.find(disk_uuid);
    return copy == it->second.copies.end() ? nullptr : &copy->second;
  };
  CopyEntry* copy = copy_of();
  if (copy == nullptr) return base::OkStatus();
  Cancel(*copy);
  // Nothing begins for it any more.
  copy->removing = true;
  const bool stopped =
      AwaitJobs(lock, [&](const ImageKey& other, const std::string& on) {
        return other == key && on == disk_uuid;
      });
  copy = copy_of();
  if (copy == nullptr) return base::OkStatus();
  if (!stopped) {
    copy->removing = false;
    return base::DeadlineExceededError("the work on " + Shown(key) +
                                       " did not stop in time; try again");
  }
  ended = std::move(copy->ingest);
  copy->ingest.reset();
  return base::OkStatus();
}

void ManagerImpl::EndRemoval(const ImageKey& key, const std::string& disk_uuid,
                             const Status& status) {
  std::vector<Happened> happened;
  {
    Lock lock(mutex_);
    const auto it = images_.find(key);
    if (it != images_.end() && it->second.copies.count(disk_uuid) != 0) {
      ImageEntry& image = it->second;
      CopyEntry& copy = image.copies.at(disk_uuid);
      if (status.ok()) {
        EndVerify(copy, disk_uuid, false, "the image was removed");
        image.copies.erase(disk_uuid);
        std::erase(image.spec.disks, disk_uuid);
        if (image.copies.empty()) {
          Forget(key);
        } else {
          Touch(key, image);
        }
      } else {
        copy.removing = false;
        copy.permanent = true;
        SetState(copy, CopyState::kFailed,
                 "it could not be removed: " + status.message());
        AddFailure(happened, UsableDisk(disk_uuid), key, copy);
        Touch(key, image);
      }
    }
    jobs_changed_.notify_all();
  }
  TellAll(happened);
  Notify();
}

// Who writes an image's records now is waited for. Nobody else does any more
// when its copy is being removed.
static void AwaitDocuments(std::mutex& documents) {
  std::lock_guard wait(documents);
}

Result<std::shared_ptr<store::Disk>> ManagerImpl::BeginDirecting(
    Directing& turn, Lock& lock, std::string_view disk_name,
    const ImageKey& key) {
  BIM_RETURN_IF_ERROR(Admit());
  BIM_ASSIGN_OR_RETURN(const DiskEntry* entry, DirectedDisk(disk_name));
  const std::string disk_uuid = entry->expected_uuid;
  BIM_RETURN_IF_ERROR(turn.Begin(*this, lock, disk_uuid, key));
  std::shared_ptr<store::Disk> disk = UsableDisk(disk_uuid);
  if (!disk) {
    return base::UnavailableError("disk '" + disk_uuid +
                                  "' cannot be used now");
  }
  return disk;
}

Status ManagerImpl::ForgetDirected(std::string_view disk_name,
                                   std::string_view name,
                                   std::string_view uuid) {
  BIM_ASSIGN_OR_RETURN(const ImageKey key, KeyOf(name, uuid));
  Directing turn;
  std::shared_ptr<store::Disk> disk;
  std::shared_ptr<store::Ingest> ended;
  std::shared_ptr<std::mutex> documents;
  {
    Lock lock(mutex_);
    BIM_ASSIGN_OR_RETURN(disk, BeginDirecting(turn, lock, disk_name, key));
    const auto it = images_.find(key);
    if (it == images_.end() || it->second.copies.count(disk->uuid()) == 0) {
      return base::OkStatus();
    }
    if (!it->second.spec.directed) return NotThere(key);
    documents = it->second.documents;
    BIM_RETURN_IF_ERROR(StopDirected(lock, key, disk->uuid(), ended));
  }
  ended.reset();
  AwaitDocuments(*documents);
  const Status status = disk->RemoveDesired(key);
  if (status.ok()) {
    Tell(*disk, store::HistoryEvent::kRemoved, key,
         "forgotten; its files stay");
  }
  EndRemoval(key, disk->uuid(), status);
  return status;
}

Status ManagerImpl::RemoveDirected(std::string_view disk_name,
                                   std::string_view name,
                                   std::string_view uuid) {
  BIM_ASSIGN_OR_RETURN(const ImageKey key, KeyOf(name, uuid));
  Directing turn;
  std::shared_ptr<store::Disk> disk;
  std::shared_ptr<store::Ingest> ended;
  std::shared_ptr<std::mutex> documents;
  Desired desired;
  bool park = false;
  {
    Lock lock(mutex_);
    BIM_ASSIGN_OR_RETURN(disk, BeginDirecting(turn, lock, disk_name, key));
    const std::string& disk_uuid = disk->uuid();
    for (const auto& [other, image] : images_) {
      if (store::DirName(other) != store::DirName(key) ||
          (other == key && image.spec.directed)) {
        continue;
      }
      return base::FailedPreconditionError(
          "the files of " + Shown(key) + " are those of " + Shown(other) +
          (image.spec.directed ? "" : ", which is wanted by the node API") +
          ": nothing was removed");
    }
    const auto it = images_.find(key);
    if (it != images_.end() && it->second.copies.count(disk_uuid) != 0) {
      const CopyEntry& copy = it->second.copies.at(disk_uuid);
      park = disk->owned() && copy.state == CopyState::kFailed;
      documents = it->second.documents;
      desired.spec = SpecOf(it->second, disk_uuid, copy);
      BIM_RETURN_IF_ERROR(StopDirected(lock, key, disk_uuid, ended));
    }
  }
  ended.reset();
  if (documents) AwaitDocuments(*documents);
  // (What is registered here is ours, whatever its cfg says by now.)
  if (!documents) {
    if (Status place = store::CheckPlace(*disk, KeyOn(key)); !place.ok()) {
      return base::FailedPreconditionError(place.message() +
                                           ": nothing was removed");
    }
  }
  Status status;
  desired.removing = true;
  // A crash from here on: the removal is finished at the next start.
  if (documents) status = disk->PutDesired(key, EncodeDesired(desired));
  if (status.ok() && park) {
    if (Status parked = store::Park(*disk, key); !parked.ok()) {
      BIM_LOG_WARN(
          "image {} ({}) on disk {}: its verified bytes cannot be "
          "kept for a retry: {}",
          key.name, key.uuid, disk->uuid(), parked.message());
    }
  }
  if (status.ok()) status = store::RemoveImage(*disk, key, true);
  if (status.ok()) status = store::RemoveDataSourceRemains(*disk, key);
  if (status.ok()) status = disk->RemoveDesired(key);
  // (What nobody registered was nothing to the manager.)
  if (status.ok() && documents) {
    Tell(*disk, store::HistoryEvent::kRemoved, key, "");
  }
  EndRemoval(key, disk->uuid(), status);
  return status;
}

}  // namespace bim::manager
