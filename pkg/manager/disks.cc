// Taking, checking, loading and losing disks.

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "pkg/base/log.h"
#include "pkg/base/names.h"
#include "pkg/manager/disk_list.h"
#include "pkg/manager/manager_impl.h"
#include "pkg/meta/version.h"
#include "pkg/store/parked.h"

namespace bim::manager {
namespace {

using base::Code;
using base::Result;
using base::Status;
using nlohmann::json;
using std::chrono::steady_clock;
using store::DiskFault;
using store::DiskState;

constexpr uint64_t kChecksPerProbe = 12;
constexpr std::chrono::seconds kTakeDeadline{30};
// How long a disk is left to a living manager that lost it.
constexpr std::chrono::seconds kReturnGrace{30};
constexpr std::chrono::seconds kReleaseDeadline{5};

bool IsWantedOn(const ImageSpec& spec, const std::string& disk_uuid) {
  return spec.all_disks || std::find(spec.disks.begin(), spec.disks.end(),
                                     disk_uuid) != spec.disks.end();
}

}  // namespace

Status ManagerImpl::LoadState() {
  // A manager has a state_dir, unlike who only reads.
  BIM_RETURN_IF_ERROR(io::Dir::Open(options_.state_dir).status());
  BIM_ASSIGN_OR_RETURN(DiskList list,
                       LoadDiskList(options_.state_dir, options_.disk_paths));
  for (ListedDisk& disk : list.disks) {
    DiskEntry entry;
    entry.path = std::move(disk.path);
    entry.expected_uuid = std::move(disk.uuid);
    disks_.push_back(std::move(entry));
  }
  for (MissedRemoval& removal : list.removals) {
    tombstones_[removal.disk_uuid].insert(std::move(removal.key));
  }
  return base::OkStatus();
}

Status ManagerImpl::SaveDisks() {
  // One at a time, each with what is known then: the last one written is the
  // newest.
  std::lock_guard saving(save_mutex_);
  json object = {
      {"version", 1}, {"disks", json::array()}, {"removed", json::array()}};
  {
    Lock lock(mutex_);
    for (const DiskEntry& entry : disks_) {
      object["disks"].push_back(
          {{"path", entry.path}, {"uuid", entry.expected_uuid}});
    }
    for (const auto& [disk, keys] : tombstones_) {
      for (const ImageKey& key : keys) {
        object["removed"].push_back(
            {{"disk", disk}, {"name", key.name}, {"uuid", key.uuid}});
      }
    }
  }
  BIM_ASSIGN_OR_RETURN(io::Dir state, io::Dir::Open(options_.state_dir));
  return state.ReplaceFile(
      kDisksFile,
      object.dump(1, ' ', false, json::error_handler_t::replace) + "\n", 0600);
}

DiskEntry* ManagerImpl::FindDisk(std::string_view uuid_or_path) {
  std::string path(uuid_or_path);
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  for (DiskEntry& entry : disks_) {
    if (entry.path == path) return &entry;
  }
  for (DiskEntry& entry : disks_) {
    if (!entry.expected_uuid.empty() && entry.expected_uuid == uuid_or_path) {
      return &entry;
    }
  }
  return nullptr;
}

std::shared_ptr<store::Disk> ManagerImpl::UsableDisk(const std::string& uuid) {
  for (const DiskEntry& entry : disks_) {
    if (entry.disk && entry.disk->uuid() == uuid) return entry.disk;
  }
  return nullptr;
}

DiskStatus ManagerImpl::StatusOf(const DiskEntry& entry) {
  DiskStatus status;
  status.uuid = entry.expected_uuid;
  status.path = entry.path;
  status.state = entry.disk ? "ready" : store::DiskStateName(entry.fault.state);
  status.message = entry.disk ? "" : entry.fault.message;
  status.total_bytes = entry.space.total_bytes;
  status.available_bytes = entry.space.available_bytes;
  status.epoch = entry.epoch;
  if (entry.disk && released_) {
    status.state = store::DiskStateName(DiskState::kOwned);
    status.message =
        "it was handed over; what is ready is served until the successor does";
  } else if (entry.disk) {
    status.format_version = entry.disk->format_version();
    status.compatible = status.format_version < meta::kDiskFormatVersion;
    if (status.compatible) {
      status.message = fmt::format(
          "its layout is of format {}, and stays readable for programs of that "
          "time, until a confirmed hand-over or \"bim disk migrate\" makes it "
          "{}",
          status.format_version, meta::kDiskFormatVersion);
    }
  } else {
    status.handover = entry.fault.handover;
  }
  for (const auto& [key, image] : images_) {
    if (image.copies.count(entry.expected_uuid) != 0) ++status.images;
  }
  return status;
}

std::vector<DiskStatus> ManagerImpl::ListDisks() {
  Lock lock(mutex_);
  std::vector<DiskStatus> list;
  for (const DiskEntry& entry : disks_) list.push_back(StatusOf(entry));
  std::sort(
      list.begin(), list.end(),
      [](const DiskStatus& a, const DiskStatus& b) { return a.path < b.path; });
  return list;
}

void ManagerImpl::ScheduleDiskCheck() {
  disk_timer_.expires_after(options_.disk_check_interval);
  disk_timer_.async_wait([this](const boost::system::error_code& error) {
    if (error) return;
    control_.Submit([this] {
      // A probe writes: not as often as the rest.
      CheckDisks(++disk_checks_ % kChecksPerProbe == 0);
      loop_.Post([this] {
        Lock lock(mutex_);
        if (!stopping_) ScheduleDiskCheck();
      });
    });
  });
}

void ManagerImpl::CheckDisks(bool probe) {
  std::vector<std::string> paths;
  {
    Lock lock(mutex_);
    if (stopping_ || released_ || checking_disks_) return;
    checking_disks_ = true;
    for (const DiskEntry& entry : disks_) paths.push_back(entry.path);
  }
  for (const std::string& path : paths) CheckDisk(path, probe);
  Lock lock(mutex_);
  checking_disks_ = false;
  jobs_changed_.notify_all();
}

void ManagerImpl::CheckDisk(const std::string& path, bool probe) {
  // Held for this disk's check only: it may be on its way out.
  std::shared_ptr<store::Disk> disk;
  {
    Lock lock(mutex_);
    const DiskEntry* entry = FindDisk(path);
    if (entry == nullptr) return;
    disk = entry->disk;
  }
  if (!disk) {
    (void)TryDisk(path);
    return;
  }
  if (probe && disk->owned()) {
    if (Status swept = store::SweepParked(*disk, kParkedFor); !swept.ok()) {
      BIM_LOG_WARN("disk at {}: {}", path, swept.message());
    }
  }
  const DiskFault fault = disk->Check(probe);
  const auto space = disk->GetSpace();
  {
    Lock lock(mutex_);
    DiskEntry* entry = FindDisk(path);
    if (entry == nullptr || entry->disk != disk) return;
    if (space.ok()) entry->space = *space;
    if (fault.state != DiskState::kReady) {
      BIM_LOG_ERROR("disk {} at {}: {}: {}", entry->expected_uuid, entry->path,
                    store::DiskStateName(fault.state), fault.message);
      LoseDisk(*entry, fault);
    }
  }
  if (fault.state == DiskState::kReady) {
    CheckFiles(disk->uuid(), disk);
  } else {
    Notify();
  }
}

void ManagerImpl::LoseDisk(DiskEntry& entry, DiskFault fault) {
  const std::string uuid = entry.expected_uuid;
  entry.disk.reset();
  entry.fault = std::move(fault);
  StopUsing(uuid);
  for (auto& [key, image] : images_) {
    const auto it = image.copies.find(uuid);
    if (it == image.copies.end()) continue;
    CopyEntry& copy = it->second;
    if (!copy.verify_tasks.empty()) {
      EndVerify(copy, uuid, false, "the disk cannot be used any more");
    }
    copy.found_file = false;
    copy.due.reset();
    copy.expires.reset();
    SetState(copy, CopyState::kUnknown,
             "disk " + uuid + " cannot be used: " + entry.fault.message);
    Touch(key, image);
    Reconcile(key);
  }
}

// Was a file that we know touched, or is it gone?
void ManagerImpl::CheckFiles(const std::string& disk_uuid,
                             const std::shared_ptr<store::Disk>& disk) {
  std::vector<std::pair<ImageKey, store::FileStamp>> files;
  std::vector<Happened> happened;
  {
    Lock lock(mutex_);
    for (const auto& [key, image] : images_) {
      const auto it = image.copies.find(disk_uuid);
      if (it == image.copies.end()) continue;
      const CopyEntry& copy = it->second;
      if (copy.running != Step::kNone || image.removing || !copy.judged) {
        continue;
      }
      if (copy.state == CopyState::kReady || copy.damaged) {
        files.emplace_back(key, *copy.judged);
      }
    }
  }
  bool any = false;
  for (const auto& [key, judged] : files) {
    const auto st = disk->root().Stat(store::DataFile(key));
    if (!st.ok() && st.status().code() != Code::kNotFound) continue;
    if (st.ok() && store::Matches(judged, store::StampOf(*st))) continue;
    Lock lock(mutex_);
    const auto it = images_.find(key);
    if (it == images_.end() || it->second.removing) continue;
    const auto copy_it = it->second.copies.find(disk_uuid);
    if (copy_it == it->second.copies.end()) continue;
    CopyEntry& copy = copy_it->second;
    if (copy.running != Step::kNone || !copy.judged ||
        !(*copy.judged == judged)) {
      continue;
    }
    any = true;
    copy.damaged = false;
    copy.permanent = false;
    if (st.ok()) {
      BIM_LOG_WARN(
          "image {} ({}) on disk {}: the file was modified, "
          "verifying it",
          key.name, key.uuid, disk_uuid);
      SetState(copy, CopyState::kUnknown,
               "the file was modified; its content is being verified");
    } else {
      BIM_LOG_WARN("image {} ({}) on disk {}: the file is gone", key.name,
                   key.uuid, disk_uuid);
      if (it->second.spec.directed) {
        copy.permanent = true;
        SetState(copy, CopyState::kFailed, "the file is gone");
        AddFailure(happened, disk, key, copy);
      } else {
        SetState(copy, CopyState::kPending,
                 "the file is gone; fetching it again");
      }
      copy.judged.reset();
      copy.record.reset();
    }
    Touch(key, it->second);
    Reconcile(key);
  }
  TellAll(happened);
  if (any) Notify();
}

bool ManagerImpl::TryDisk(const std::string& path) {
  std::string expected;
  {
    Lock lock(mutex_);
    const DiskEntry* entry = FindDisk(path);
    if (entry == nullptr || entry->disk || stopping_ || released_) return true;
    if (!busy_disks_.insert(path).second) return false;
    expected = entry->expected_uuid;
  }
  ClaimDisk(path, expected);
  // Only now: a disk that was claimed in vain has been let go of.
  Lock lock(mutex_);
  busy_disks_.erase(path);
  jobs_changed_.notify_all();
  return true;
}

void ManagerImpl::ClaimDisk(const std::string& path,
                            const std::string& expected) {
  store::Disk::Owner owner{options_.manager_id, options_.version,
                           options_.endpoint};
  {
    Lock lock(mutex_);
    const DiskEntry* entry = FindDisk(path);
    owner.yields = entry == nullptr || !entry->yielding ||
                   steady_clock::now() < *entry->yielding + kReturnGrace;
  }
  auto claimed = options_.data_source
                     ? store::Disk::OpenForDataSource(path, expected,
                                                      *options_.data_source)
                     : store::Disk::Claim(path, expected, owner);
  if (const auto* found = std::get_if<DiskFault>(&claimed);
      found != nullptr && found->handover &&
      DecideAlike(path, *found->handover)) {
    claimed = store::Disk::Claim(path, expected, owner);
  }
  std::shared_ptr<store::Disk> disk;
  DiskFault fault;
  if (auto* taken = std::get_if<std::shared_ptr<store::Disk>>(&claimed)) {
    disk = std::move(*taken);
  } else {
    fault = std::get<DiskFault>(std::move(claimed));
  }
  bool save = false;
  bool changed = false;
  {
    Lock lock(mutex_);
    DiskEntry* entry = FindDisk(path);
    const auto same =
        std::find_if(disks_.begin(), disks_.end(), [&](const DiskEntry& other) {
          return disk && other.path != path && other.disk &&
                 other.disk->uuid() == disk->uuid();
        });
    if (same != disks_.end()) {
      fault = {DiskState::kFailed,
               "disk " + disk->uuid() + " is already used at " + same->path};
      disk.reset();
    }
    if (entry == nullptr || stopping_) return;
    if (!fault.yielded) {
      entry->yielding.reset();
    } else if (!entry->yielding) {
      entry->yielding = steady_clock::now();
    }
    if (!disk) {
      changed = entry->fault.message != fault.message;
      if (changed) {
        BIM_LOG_WARN("disk at {}: {}: {}", path,
                     store::DiskStateName(fault.state), fault.message);
      }
      entry->fault = fault;
      // It said who it is, though it cannot be used.
      if (entry->expected_uuid.empty()) entry->expected_uuid = fault.uuid;
      AddMissingCopies();
    } else {
      save = entry->expected_uuid != disk->uuid();
      entry->expected_uuid = disk->uuid();
    }
  }
  if (!disk) {
    if (fault.state == DiskState::kReadOnly) ShowUnusable(path, fault.uuid);
    if (changed) Notify();
    return;
  }
  if (save) {
    if (Status saved = SaveDisks(); !saved.ok()) {
      BIM_LOG_ERROR("cannot remember the disks: {}", saved.message());
    }
  }
  LoadDisk(disk);
}

Result<std::vector<Desired>> ManagerImpl::ReadWanted(const io::Dir& root) {
  BIM_ASSIGN_OR_RETURN(auto files, store::LoadDesired(root));
  std::vector<Desired> wanted;
  for (const store::DesiredFileContent& file : files) {
    auto desired = DecodeDesired(file.json);
    if (!desired.ok()) return desired.status().WithContext(file.path);
    wanted.push_back(*std::move(desired));
  }
  return wanted;
}

void ManagerImpl::ShowUnusable(const std::string& path,
                               const std::string& uuid) {
  const auto root = io::Dir::Open(path);
  if (!root.ok()) return;
  const auto wanted = ReadWanted(*root);
  if (!wanted.ok()) return;
  Lock lock(mutex_);
  const DiskEntry* entry = FindDisk(path);
  if (entry == nullptr || entry->disk || entry->expected_uuid != uuid) return;
  for (const Desired& desired : *wanted) {
    const ImageKey key{desired.spec.name, desired.spec.uuid};
    if (desired.removing) continue;
    auto [it, is_new] = images_.try_emplace(key);
    if (is_new) it->second.spec = desired.spec;
    CopyEntry& copy = it->second.copies[uuid];
    if (copy.state == CopyState::kUnknown) continue;
    if (desired.spec.directed && it->second.spec.directed) {
      RestoreOrder(it->second, uuid, copy, desired.spec);
    }
    SetState(copy, CopyState::kUnknown,
             "disk " + uuid + " cannot be used: " + entry->fault.message);
    Touch(key, it->second);
  }
}

void ManagerImpl::AddMissingCopies() {
  for (auto& [key, image] : images_) {
    for (const DiskEntry& disk : disks_) {
      if (disk.expected_uuid.empty() ||
          !IsWantedOn(image.spec, disk.expected_uuid) || image.removing ||
          image.ensuring || image.copies.count(disk.expected_uuid) != 0) {
        continue;
      }
      CopyEntry& copy = image.copies[disk.expected_uuid];
      if (disk.disk == nullptr) {
        copy.state = CopyState::kUnknown;
        copy.message = "disk " + disk.expected_uuid +
                       " cannot be used: " + disk.fault.message;
      }
      Touch(key, image);
    }
  }
}

// What is wanted on a disk that was just taken, and what of it is there.
void ManagerImpl::LoadDisk(const std::shared_ptr<store::Disk>& disk) {
  const std::string uuid = disk->uuid();
  const auto give_up = [&](const Status& status) {
    BIM_LOG_ERROR("disk {} at {} cannot be used: {}", uuid, disk->path(),
                  status.message());
    Lock lock(mutex_);
    if (DiskEntry* entry = FindDisk(disk->path())) {
      entry->fault = {DiskState::kFailed, status.message()};
    }
    lock.unlock();
    TellTakenOver(*disk, "its images are not known: " + status.message());
  };
  auto read = disk->owned()
                  ? ReadWanted(disk->root())
                  : Result<std::vector<Desired>>(std::vector<Desired>());
  if (!read.ok()) {
    give_up(read.status());
    return Notify();
  }
  std::vector<Desired> wanted = *std::move(read);
  // Removals that this disk has not seen, and those a crash cut short.
  std::set<ImageKey> missed;
  {
    Lock lock(mutex_);
    if (const auto it = tombstones_.find(uuid); it != tombstones_.end()) {
      missed = it->second;
    }
  }
  std::set<ImageKey> unremoved;
  std::erase_if(wanted, [&](const Desired& desired) {
    const ImageKey key{desired.spec.name, desired.spec.uuid};
    if (!desired.removing && missed.count(key) == 0) return false;
    Status removed = store::RemoveImage(*disk, key, true);
    if (removed.ok()) removed = disk->RemoveDesired(key);
    if (removed.ok()) {
      Tell(*disk, store::HistoryEvent::kRemoved, key,
           "a removal from before was finished");
    } else {
      BIM_LOG_ERROR("image {} ({}) cannot be removed: {}", key.name, key.uuid,
                    removed.message());
      unremoved.insert(key);
    }
    return true;
  });
  if (!missed.empty()) {
    {
      Lock lock(mutex_);
      auto& left = tombstones_[uuid];
      std::erase_if(left, [&](const ImageKey& key) {
        return missed.count(key) != 0 && unremoved.count(key) == 0;
      });
      if (left.empty()) tombstones_.erase(uuid);
    }
    if (Status saved = SaveDisks(); !saved.ok()) {
      BIM_LOG_ERROR("cannot remember removals: {}", saved.message());
    }
  }
  // Images of the other disks that belong here, too.
  std::set<ImageKey> here;
  for (const Desired& desired : wanted) {
    here.insert({desired.spec.name, desired.spec.uuid});
  }
  std::vector<Desired> fresh;
  {
    Lock lock(mutex_);
    for (const auto& [key, image] : images_) {
      if (IsWantedOn(image.spec, uuid) && !image.removing && !image.ensuring &&
          here.count(key) == 0) {
        if (!image.spec.directed) {
          fresh.push_back(Desired{image.spec});
        } else if (const auto copy = image.copies.find(uuid);
                   copy != image.copies.end()) {
          fresh.push_back(Desired{SpecOf(image, uuid, copy->second)});
        }
      }
    }
  }
  const size_t found = wanted.size();
  for (Desired& desired : fresh) {
    const ImageKey key{desired.spec.name, desired.spec.uuid};
    if (Status put = disk->PutDesired(key, EncodeDesired(desired)); !put.ok()) {
      give_up(put);
      return Notify();
    }
    CopyEntry unseen;
    TellCreated(*disk, key, desired.spec, unseen);
    wanted.push_back(std::move(desired));
  }
  std::vector<CopyEntry> copies;
  for (const Desired& desired : wanted) {
    CopyEntry copy = Judge(desired.spec, InspectOn(*disk, desired.spec), *disk);
    if (desired.proven && copy.found_file) {
      // It changed behind a manager that was stopped: judged, never removed.
      copy.found_file = false;
      copy.state = CopyState::kUnknown;
      copy.message = "the file was modified; its content is being verified";
      store::ImageRecord record;
      record.key = {desired.spec.name, desired.spec.uuid};
      record.stamp = *copy.judged;
      record.sha512 = *desired.proven;
      copy.record = std::move(record);
    }
    if (desired.spec.directed && copy.state == CopyState::kPending &&
        !copy.found_file) {
      copy.state = CopyState::kFailed;
      copy.message = desired.last_error.empty()
                         ? "the manager was restarted before the file was "
                           "complete"
                         : desired.last_error;
      copy.permanent = true;
    } else if (copy.state == CopyState::kPending && !copy.found_file &&
               desired.last_error.empty() && copy.partial &&
               disk->taken_over() && !desired.spec.source.upload) {
      copy.state = CopyState::kFailed;
      copy.message = fmt::format(
          "it was in progress when manager {} ({}) gave up the disk; it goes "
          "on with the bytes it has in {} s",
          disk->predecessor()->manager_id, disk->predecessor()->version,
          options_.backoff_first.count() / 1000);
      copy.retry.attempts = 1;
      copy.due = std::chrono::system_clock::now() + options_.backoff_first;
    } else if (copy.state == CopyState::kPending && !copy.found_file &&
               !desired.last_error.empty()) {
      copy.state = CopyState::kFailed;
      copy.message = desired.last_error;
      copy.permanent = desired.permanent;
      copy.retry.attempts = desired.attempts;
      copy.due = desired.next_attempt;
    }
    copy.told_failure = desired.last_error;
    copies.push_back(std::move(copy));
  }
  const auto space = disk->GetSpace();
  size_t ready = 0;
  std::vector<ImageKey> unwanted;
  {
    Lock lock(mutex_);
    DiskEntry* entry = FindDisk(disk->path());
    if (entry == nullptr || stopping_) return;
    entry->disk = disk;
    entry->fault = {DiskState::kReady, ""};
    entry->epoch = disk->epoch();
    if (space.ok()) entry->space = *space;
    for (size_t i = 0; i < wanted.size(); ++i) {
      const ImageKey key{wanted[i].spec.name, wanted[i].spec.uuid};
      // Removed meanwhile, by somebody who could not know of this disk?
      if (i >= found) {
        const auto known = images_.find(key);
        if (known == images_.end() || known->second.removing) {
          unwanted.push_back(key);
          continue;
        }
      }
      auto [it, is_new] = images_.try_emplace(key);
      ImageEntry& image = it->second;
      if (is_new) image.spec = wanted[i].spec;
      if (wanted[i].spec.directed && image.spec.directed) {
        RestoreOrder(image, uuid, copies[i], wanted[i].spec);
      } else if (!(image.spec == wanted[i].spec)) {
        BIM_LOG_ERROR(
            "image {} ({}): disk {} wants it with another spec "
            "than the disks before it, which is used",
            key.name, key.uuid, uuid);
      }
      if (copies[i].state == CopyState::kReady) ++ready;
      CopyEntry& copy = image.copies[uuid];
      EndVerify(copy, uuid, false, "the disk was away");
      copy = std::move(copies[i]);
      Touch(key, image);
    }
    AddMissingCopies();
    for (const Desired& desired : wanted) {
      Reconcile({desired.spec.name, desired.spec.uuid});
    }
    ArmRetryTimer();
  }
  for (const ImageKey& key : unwanted) {
    (void)disk->RemoveDesired(key);
    Tell(*disk, store::HistoryEvent::kRemoved, key, "removed meanwhile");
  }
  TellTakenOver(*disk, fmt::format("{} of {} images ready", ready, found));
  BIM_LOG_INFO("disk {} at {}: taken in epoch {}, {} of {} images ready", uuid,
               disk->path(), disk->epoch(), ready, wanted.size());
  Notify();
}

Result<DiskStatus> ManagerImpl::AddDisk(const std::string& given,
                                        const std::string& uuid, bool init) {
  if (given.empty() || given[0] != '/') {
    return base::InvalidArgumentError(
        "disk path '" + base::Printable(given) +
        "' is not absolute: expected one like /var/lib/images");
  }
  const std::string path = NormalPath(given);
  if (!uuid.empty()) {
    BIM_RETURN_IF_ERROR(base::CheckName(uuid, "disk uuid"));
  }
  BIM_ASSIGN_OR_RETURN(io::Dir root, io::Dir::Open(path));
  auto identity = store::ReadIdentity(root);
  if (!identity.ok()) {
    if (identity.status().code() != Code::kNotFound) return identity.status();
    if (!init) {
      return base::FailedPreconditionError(
          "no " + std::string(store::kIdentityFile) + " in " + path +
          ": is the disk mounted? To make a new disk of this directory add it "
          "with init");
    }
    const std::string fresh = uuid.empty() ? base::GenerateUuid() : uuid;
    BIM_RETURN_IF_ERROR(store::InitIdentity(root, fresh));
    identity = fresh;
  }
  if (!uuid.empty() && *identity != uuid) {
    return base::FailedPreconditionError("expected disk " + uuid + " at " +
                                         path + ", found disk " + *identity);
  }
  {
    Lock lock(mutex_);
    BIM_RETURN_IF_ERROR(Admit());
    for (const DiskEntry& entry : disks_) {
      if (entry.expected_uuid == *identity && entry.path != path) {
        return base::AlreadyExistsError("disk " + *identity +
                                        " already exists at " + entry.path);
      }
    }
    DiskEntry* entry = FindDisk(path);
    if (entry != nullptr && entry->disk) {
      // Again, or its identity was changed under us, which Check will tell.
      return StatusOf(*entry);
    }
    if (entry == nullptr) {
      disks_.emplace_back();
      entry = &disks_.back();
      entry->path = path;
    }
    // Said by a person, now: whatever was expected before.
    entry->expected_uuid = *identity;
  }
  BIM_RETURN_IF_ERROR(SaveDisks());
  for (int tries = 0; !TryDisk(path) && tries < 3; ++tries) {
    // A check of the disks is taking it, or somebody removes it.
    Lock lock(mutex_);
    jobs_changed_.wait_for(lock, kTakeDeadline,
                           [&] { return busy_disks_.count(path) == 0; });
  }
  Lock lock(mutex_);
  const DiskEntry* entry = FindDisk(path);
  if (entry == nullptr) return base::AbortedError("the disk was removed");
  return StatusOf(*entry);
}

Status ManagerImpl::RemoveDisk(const std::string& uuid_or_path, bool force) {
  {
    Lock lock(mutex_);
    BIM_RETURN_IF_ERROR(Admit());
    // While it is being claimed nobody can say what holds it.
    const bool idle = jobs_changed_.wait_for(lock, kTakeDeadline, [&] {
      const DiskEntry* entry = FindDisk(uuid_or_path);
      return entry == nullptr || busy_disks_.count(entry->path) == 0;
    });
    DiskEntry* entry = FindDisk(uuid_or_path);
    if (entry == nullptr) {
      return base::NotFoundError("cannot find disk '" +
                                 base::Printable(uuid_or_path) + "'");
    }
    if (!idle) {
      return base::UnavailableError("disk at " + entry->path +
                                    " is being taken, or removed; try again");
    }
    const std::string uuid = entry->expected_uuid;
    const std::string path = entry->path;
    const uint32_t wanted = StatusOf(*entry).images;
    if (wanted > 0 && !force) {
      return base::FailedPreconditionError(
          std::to_string(wanted) + " images are wanted on disk " + uuid +
          " at " + entry->path +
          "; remove them first, or force: their files stay on the disk");
    }
    // Nobody takes it again meanwhile.
    busy_disks_.insert(path);
    std::shared_ptr<store::Disk> leaving = std::move(entry->disk);
    entry->disk.reset();
    const std::weak_ptr<store::Disk> released = leaving;
    lock.unlock();
    if (leaving) leaving->Leave();
    leaving.reset();
    lock.lock();
    StopUsing(uuid);
    const auto on_disk = [&](const ImageKey&, const std::string& disk) {
      return disk == uuid;
    };
    if (!AwaitJobs(lock, on_disk)) {
      busy_disks_.erase(path);
      jobs_changed_.notify_all();
      return base::DeadlineExceededError("the work on disk " + uuid +
                                         " did not stop in time; try again");
    }
    // A check or a retired ingest may hold it, and so its lock, a moment
    // longer.
    const auto until = steady_clock::now() + kReleaseDeadline;
    while (!released.expired() && steady_clock::now() < until) {
      jobs_changed_.wait_for(lock, std::chrono::milliseconds(10));
    }
    busy_disks_.erase(path);
    jobs_changed_.notify_all();
    std::vector<ImageKey> gone;
    for (auto& [key, image] : images_) {
      const auto it = image.copies.find(uuid);
      if (it == image.copies.end()) continue;
      EndVerify(it->second, uuid, false, "the disk was removed");
      image.copies.erase(it);
      // Nobody directed it to come back with the disk.
      if (image.spec.directed) std::erase(image.spec.disks, uuid);
      if (image.copies.empty()) {
        gone.push_back(key);
      } else {
        Touch(key, image);
        Reconcile(key);
      }
    }
    for (const ImageKey& key : gone) Forget(key);
    std::erase_if(disks_,
                  [&](const DiskEntry& other) { return other.path == path; });
  }
  Notify();
  return SaveDisks();
}

}  // namespace bim::manager
