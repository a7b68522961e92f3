// The calls of the faces.

#include "pkg/manager/manager.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>

#include "pkg/base/log.h"
#include "pkg/base/names.h"
#include "pkg/manager/manager_impl.h"

namespace bim::manager {

using base::Code;
using base::Result;
using base::Status;

namespace {

constexpr uint32_t kDefaultPage = 100;
constexpr uint32_t kMaxPage = 1000;
constexpr size_t kKeptVerifyTasks = 256;
constexpr size_t kMaxUrl = 8192;

Status CheckLimits(const Limits& limits) {
  const auto rate = [](const char* name, uint64_t value) -> Status {
    if (value == 0 || value >= kMinRate) return base::OkStatus();
    return base::InvalidArgumentError(
        std::string(name) + ": expected 0 (no limit) or at least " +
        std::to_string(kMinRate) + " bytes a second, found " +
        std::to_string(value));
  };
  const auto count = [](const char* name, uint32_t value) -> Status {
    if (value >= 1 && value <= kMaxTransfers) return base::OkStatus();
    return base::InvalidArgumentError(std::string(name) + ": expected 1 to " +
                                      std::to_string(kMaxTransfers) +
                                      ", found " + std::to_string(value));
  };
  BIM_RETURN_IF_ERROR(rate("download_rate", limits.download_rate));
  BIM_RETURN_IF_ERROR(rate("peer_rate", limits.peer_rate));
  BIM_RETURN_IF_ERROR(
      rate("background_read_rate", limits.background_read_rate));
  BIM_RETURN_IF_ERROR(count("transfers", limits.transfers));
  return count("transfers_per_disk", limits.transfers_per_disk);
}

std::string Shown(const ImageKey& key) {
  return "image '" + key.name + "' with uuid '" + key.uuid + "'";
}

}  // namespace

Result<std::unique_ptr<Manager>> Manager::Create(Options options,
                                                 exec::EventLoop& loop) {
  if (options.manager_id.empty()) {
    return base::InvalidArgumentError("the manager needs an id");
  }
  BIM_RETURN_IF_ERROR(CheckLimits(options.limits));
  auto manager = std::make_unique<ManagerImpl>(std::move(options), loop);
  BIM_RETURN_IF_ERROR(manager->LoadState());
  return std::unique_ptr<Manager>(std::move(manager));
}

ManagerImpl::ManagerImpl(Options options, exec::EventLoop& loop)
    : options_(std::move(options)),
      download_rate_(options_.limits.download_rate),
      peer_rate_(options_.limits.peer_rate),
      send_rate_(
          std::make_shared<exec::RateLimiter>(options_.limits.peer_rate)),
      scan_rate_(options_.limits.background_read_rate),
      instance_(base::GenerateUuid()),
      loop_(loop),
      transfers_("bim-transfer", kMaxTransfers),
      scans_("bim-scan", kMaxScans),
      control_("bim-control", 2),
      receivers_("bim-receive", kReceiveThreads),
      senders_("bim-send", kMaxSends),
      limits_(options_.limits),
      disk_timer_(loop.context()),
      retry_timer_(loop.context()),
      progress_timer_(loop.context()) {}

ManagerImpl::~ManagerImpl() { Stop(); }

void ManagerImpl::Start() {
  {
    Lock lock(mutex_);
    if (started_ || stopping_) return;
    started_ = true;
  }
  CheckDisks(false);
  {
    Lock lock(mutex_);
    loading_ = false;
    for (auto& [key, image] : images_) Reconcile(key);
    ArmRetryTimer();
  }
  loop_.Post([this] {
    Lock lock(mutex_);
    if (!stopping_) ScheduleDiskCheck();
  });
}

void ManagerImpl::BeginStop() {
  Lock lock(mutex_);
  if (stopping_) return;
  stopping_ = true;
  stop_calls_.request_stop();
  for (auto& [key, image] : images_) {
    for (auto& [disk, copy] : image.copies) Cancel(copy);
  }
  jobs_changed_.notify_all();
}

void ManagerImpl::Stop() {
  BeginStop();
  // Jobs that wait for a thread are dropped, those that run end by their stop
  // token; what they have is made resumable by the ingest's end.
  transfers_.Shutdown();
  scans_.Shutdown();
  control_.Shutdown();
  RememberAll();
  receivers_.Shutdown();
  senders_.Shutdown();
  // Timers are the loop's: cancelled there, and waited for.
  std::mutex done_mutex;
  std::condition_variable done_changed;
  bool done = false;
  if (loop_.InLoop()) return;
  loop_.Post([&] {
    disk_timer_.cancel();
    retry_timer_.cancel();
    progress_timer_.cancel();
    // Behind the handlers that the cancels queued.
    loop_.Post([&] {
      std::lock_guard lock(done_mutex);
      done = true;
      done_changed.notify_all();
    });
  });
  {
    std::unique_lock lock(done_mutex);
    done_changed.wait(lock, [&] { return done; });
  }
  std::vector<std::shared_ptr<store::Ingest>> ended;
  {
    Lock lock(mutex_);
    for (auto& [key, image] : images_) {
      for (auto& [disk, copy] : image.copies) {
        ended.push_back(std::move(copy.ingest));
        copy.ingest.reset();
      }
    }
  }
  ended.clear();
  for (const auto& disk : OwnedDisks()) disk->Leave();
  Lock lock(mutex_);
  for (DiskEntry& entry : disks_) {
    entry.disk.reset();
    entry.fault = {store::DiskState::kMissing, "the daemon is stopping"};
  }
}

Result<std::map<ImageKey, ImageEntry>::iterator> ManagerImpl::Find(
    std::string_view name, std::string_view uuid) {
  BIM_RETURN_IF_ERROR(base::CheckName(name, "name"));
  if (!uuid.empty()) {
    BIM_RETURN_IF_ERROR(base::CheckName(uuid, "uuid"));
    const auto it = images_.find({std::string(name), std::string(uuid)});
    if (it == images_.end()) {
      return base::NotFoundError("cannot find " +
                                 Shown({std::string(name), std::string(uuid)}));
    }
    return it;
  }
  auto it = images_.lower_bound({std::string(name), ""});
  if (it == images_.end() || it->first.name != name) {
    return base::NotFoundError("cannot find image '" + std::string(name) + "'");
  }
  if (const auto next = std::next(it);
      next != images_.end() && next->first.name == name) {
    return base::InvalidArgumentError(
        "several images are named '" + std::string(name) +
        "': state the uuid, " + it->first.uuid + " or " + next->first.uuid);
  }
  return it;
}

// Checks the spec and makes its list of disks one of known uuids.
Result<ImageSpec> ManagerImpl::Resolve(ImageSpec spec) {
  BIM_RETURN_IF_ERROR(base::CheckName(spec.name, "name"));
  if (!spec.uuid.empty()) {
    BIM_RETURN_IF_ERROR(base::CheckName(spec.uuid, "uuid"));
  }
  if (spec.source.url.size() > kMaxUrl) {
    return base::InvalidArgumentError(
        "source.url has " + std::to_string(spec.source.url.size()) +
        " bytes, at most " + std::to_string(kMaxUrl) + " are allowed");
  }
  const SourceSpec& source = spec.source;
  const bool of_directed_only =
      source.receive_port != 0 || source.volume || !source.clone_name.empty();
  if (source.url.empty() && source.peers.empty() && !source.upload &&
      !of_directed_only) {
    return base::InvalidArgumentError(
        "the source is missing: expected source.url, source.peers or "
        "source.upload");
  }
  if (source.upload && (!source.url.empty() || !source.peers.empty())) {
    return base::InvalidArgumentError(
        "source.upload goes without source.url and source.peers");
  }
  if (source.url.empty() && !source.peers.empty() && spec.uuid.empty()) {
    return base::InvalidArgumentError(
        "an image that comes from peers alone is asked for by its uuid: state "
        "it");
  }
  if (!source.peers.empty() && !options_.peers) {
    return base::UnimplementedError("this manager cannot ask peers");
  }
  if (!source.url.empty()) {
    BIM_RETURN_IF_ERROR(
        transfer::CheckSourceUrl(source.url, options_.transfer));
  }
  if (!spec.source.credential.empty()) {
    BIM_RETURN_IF_ERROR(base::CheckName(spec.source.credential, "credential"));
  }
  if (spec.size % 512 != 0) {
    return base::InvalidArgumentError("size " + std::to_string(spec.size) +
                                      " is not a multiple of 512");
  }
  if (spec.size > options_.transfer.max_image_size) {
    return base::InvalidArgumentError(
        "size " + std::to_string(spec.size) + " is beyond the limit of " +
        std::to_string(options_.transfer.max_image_size) +
        " (sources.max_image_size)");
  }
  if (spec.disks.empty() ||
      (spec.disks.size() == 1 && spec.disks[0] == "all")) {
    spec.disks.clear();
    spec.all_disks = true;
    return spec;
  }
  std::set<std::string> uuids;
  for (const std::string& disk : spec.disks) {
    const DiskEntry* entry = FindDisk(disk);
    if (entry == nullptr) {
      return base::NotFoundError("cannot find disk '" + base::Printable(disk) +
                                 "'");
    }
    if (entry->expected_uuid.empty()) {
      return base::UnavailableError("disk at " + entry->path +
                                    " cannot be used: " + entry->fault.message);
    }
    uuids.insert(entry->expected_uuid);
  }
  spec.disks.assign(uuids.begin(), uuids.end());
  return spec;
}

Result<store::Found> ManagerImpl::InspectOn(const store::Disk& disk,
                                            const ImageSpec& spec) const {
  const auto place =
      options_.data_source ? store::Place::kDataSource : store::Place::kImages;
  return store::Inspect(disk, {spec.name, spec.uuid, place}, options_.file_mode,
                        spec.sha512 ? spec.sha512->Hex() : "");
}

CopyEntry ManagerImpl::Judge(const ImageSpec& spec, Result<store::Found> found,
                             const store::Disk& disk) {
  using Kind = store::Found::Kind;
  CopyEntry copy;
  if (!found.ok()) {
    copy.state = CopyState::kFailed;
    copy.message = found.status().message();
    copy.permanent = true;
    copy.damaged = true;  // left as it is
    return copy;
  }
  copy.partial = found->partial;
  if (found->kind == Kind::kNothing) return copy;
  copy.judged = found->stamp;
  const store::ImageRecord& record = found->record;
  switch (found->kind) {
    case Kind::kNothing:
      break;
    case Kind::kReady: {
      const bool fits =
          (!spec.sha512 || *spec.sha512 == record.sha512) &&
          (spec.size == 0 || spec.size == record.stamp.size) &&
          (!spec.sha256 || (record.sha256 && *spec.sha256 == *record.sha256));
      if (!fits) {
        copy.found_file = true;
        break;
      }
      copy.state = CopyState::kReady;
      copy.record = record;
      if (const auto st = disk.root().Stat(store::DataFile(record.key));
          st.ok()) {
        copy.real_size = static_cast<uint64_t>(st->st_blocks) * 512;
      }
      break;
    }
    case Kind::kChanged:
      copy.state = CopyState::kUnknown;
      copy.message = "the file was modified; its content is being verified";
      copy.record = record;
      break;
    case Kind::kUnproven:
      copy.found_file = true;
      break;
  }
  return copy;
}

bool ManagerImpl::IsEnsuring(std::string_view name) const {
  for (auto it = images_.lower_bound({std::string(name), ""});
       it != images_.end() && it->first.name == name; ++it) {
    if (it->second.ensuring) return true;
  }
  return false;
}

void ManagerImpl::AwaitEnsured(Lock& lock, std::string_view name) {
  jobs_changed_.wait_for(lock, std::chrono::seconds(30),
                         [&] { return stopping_ || !IsEnsuring(name); });
}

Status ManagerImpl::AwaitOthers(Lock& lock, std::string_view name) {
  const std::string prefix = std::string(name) + "-";  // of any uuid
  const bool had = jobs_changed_.wait_for(lock, std::chrono::seconds(30), [&] {
    if (stopping_) return true;
    const bool directing = std::any_of(
        directing_.begin(), directing_.end(),
        [&](const auto& one) { return one.second.starts_with(prefix); });
    return !directing && !IsEnsuring(name);
  });
  if (stopping_) return base::UnavailableError("the daemon is stopping");
  if (had) return base::OkStatus();
  return base::UnavailableError("another call for image '" + std::string(name) +
                                "' did not end in time; try again");
}

Manager::Ensured ManagerImpl::ChangePeers(Lock& lock, const ImageKey& key,
                                          ImageSpec spec) {
  ImageEntry& image = images_.at(key);
  image.spec = std::move(spec);
  std::vector<std::string> disks;
  for (auto& [disk_uuid, copy] : image.copies) {
    // The new ones may have what the old ones had not.
    if (copy.state == CopyState::kFailed && !copy.damaged) {
      copy.permanent = false;
      copy.due.reset();
    }
    disks.push_back(disk_uuid);
  }
  Touch(key, image);
  Reconcile(key);
  Ensured ensured{StatusOf(key, image), false};
  lock.unlock();
  for (const std::string& disk_uuid : disks) Remember(key, disk_uuid);
  Notify();
  return ensured;
}

Result<Manager::Ensured> ManagerImpl::Ensure(ImageSpec given) {
  ImageSpec spec;
  ImageKey key;
  std::vector<std::shared_ptr<store::Disk>> disks;
  std::vector<std::pair<std::string, std::string>> unusable;  // uuid, why
  std::optional<ImageKey> known;
  {
    Lock lock(mutex_);
    BIM_RETURN_IF_ERROR(Admit());
    BIM_ASSIGN_OR_RETURN(spec, Resolve(std::move(given)));
    BIM_RETURN_IF_ERROR(AwaitOthers(lock, spec.name));
    if (spec.uuid.empty()) {
      // The image of this name and spec, if there is one.
      const auto first = images_.lower_bound({spec.name, ""});
      for (auto it = first; it != images_.end() && it->first.name == spec.name;
           ++it) {
        ImageSpec same = it->second.spec;
        same.uuid.clear();
        same.source.peers = spec.source.peers;
        if (same == spec && !it->second.removing) {
          known = it->first;
          break;
        }
      }
      if (!known && first != images_.end() && first->first.name == spec.name) {
        return base::AlreadyExistsError(
            Shown(first->first) +
            " already exists with another spec: remove it first, or state "
            "another uuid");
      }
      spec.uuid = known ? known->uuid : base::GenerateUuid();
    }
    key = {spec.name, spec.uuid};
    for (const auto& [other, image] : images_) {
      if (other == key || store::DirName(other) != store::DirName(key)) {
        continue;
      }
      return base::AlreadyExistsError("the directory of " + Shown(key) +
                                      " is that of " + Shown(other) +
                                      ", which already exists");
    }
    if (const auto it = images_.find(key); it != images_.end()) {
      if (it->second.removing) {
        return base::UnavailableError(Shown(key) +
                                      " is being removed; try again");
      }
      ImageSpec same = it->second.spec;
      same.source.peers = spec.source.peers;
      if (same == spec) {
        if (it->second.spec == spec) {
          return Ensured{StatusOf(key, it->second), false};
        }
        return ChangePeers(lock, key, std::move(spec));
      }
      return base::AlreadyExistsError(
          Shown(key) +
          " already exists with another spec: remove it first to change it");
    }
    for (const DiskEntry& entry : disks_) {
      if (entry.expected_uuid.empty()) continue;
      const bool wanted =
          spec.all_disks || std::find(spec.disks.begin(), spec.disks.end(),
                                      entry.expected_uuid) != spec.disks.end();
      if (!wanted) continue;
      if (entry.disk) {
        disks.push_back(entry.disk);
      } else {
        unusable.emplace_back(entry.expected_uuid, entry.fault.message);
      }
    }
    if (disks.empty()) {
      return base::UnavailableError(
          unusable.empty() ? "this node has no disks: add one first"
                           : "disk " + unusable[0].first +
                                 " cannot be used: " + unusable[0].second);
    }
    // From here on the name is taken; nothing works on it yet.
    ImageEntry& image = images_[key];
    image.spec = spec;
    image.ensuring = true;
    for (const auto& [uuid, why] : unusable) {
      CopyEntry& copy = image.copies[uuid];
      copy.state = CopyState::kUnknown;
      copy.message = "disk " + uuid + " cannot be used: " + why;
    }
  }
  Status stored;
  std::map<std::string, CopyEntry> copies;
  for (const auto& disk : disks) {
    stored = disk->PutDesired(key, EncodeDesired(Desired{spec}));
    if (!stored.ok()) {
      stored = stored.WithContext("disk " + disk->uuid());
      break;
    }
    copies[disk->uuid()] = Judge(spec, InspectOn(*disk, spec), *disk);
  }
  if (!stored.ok()) {
    // Refused as a whole: what was written is taken back.
    for (const auto& disk : disks) (void)disk->RemoveDesired(key);
    Lock lock(mutex_);
    Forget(key);
    jobs_changed_.notify_all();
    return stored;
  }
  // Before any work on it can end.
  for (const auto& disk : disks) {
    TellCreated(*disk, key, spec, copies[disk->uuid()]);
  }
  Ensured ensured;
  ensured.created = true;
  {
    Lock lock(mutex_);
    const auto it = images_.find(key);
    if (it == images_.end()) {
      return base::AbortedError(Shown(key) +
                                ": its disks were removed meanwhile");
    }
    it->second.ensuring = false;
    jobs_changed_.notify_all();
    for (auto& [uuid, copy] : copies) {
      if (UsableDisk(uuid)) it->second.copies[uuid] = std::move(copy);
    }
    Touch(key, it->second);
    Reconcile(key);
    ensured.image = StatusOf(key, it->second);
  }
  Notify();
  return ensured;
}

Result<ImageStatus> ManagerImpl::Get(std::string_view name,
                                     std::string_view uuid) {
  Lock lock(mutex_);
  BIM_ASSIGN_OR_RETURN(auto it, Find(name, uuid));
  if (it->second.ensuring) {
    return base::NotFoundError("cannot find " + Shown(it->first) + " yet");
  }
  return StatusOf(it->first, it->second);
}

Result<Manager::Page> ManagerImpl::List(uint32_t page_size,
                                        std::string_view page_token) {
  if (page_size == 0) page_size = kDefaultPage;
  if (page_size > kMaxPage) {
    return base::InvalidArgumentError("page_size is " +
                                      std::to_string(page_size) +
                                      ", at most 1000 is allowed");
  }
  // The token is the key of the last image shown: "<name>/<uuid>".
  ImageKey last;
  if (!page_token.empty()) {
    const size_t slash = page_token.find('/');
    if (slash == std::string_view::npos ||
        !base::CheckName(page_token.substr(0, slash), "name").ok() ||
        !base::CheckName(page_token.substr(slash + 1), "uuid").ok()) {
      return base::InvalidArgumentError(
          "page_token is not one that List returned");
    }
    last = {std::string(page_token.substr(0, slash)),
            std::string(page_token.substr(slash + 1))};
  }
  Page page;
  Lock lock(mutex_);
  auto it = page_token.empty() ? images_.begin() : images_.upper_bound(last);
  for (; it != images_.end() && page.images.size() < page_size; ++it) {
    if (!it->second.ensuring) {
      page.images.push_back(StatusOf(it->first, it->second));
    }
    last = it->first;
  }
  if (it != images_.end()) page.next_page_token = last.name + "/" + last.uuid;
  return page;
}

Status ManagerImpl::Remove(std::string_view name, std::string_view uuid,
                           bool force) {
  ImageKey key;
  Desired desired;
  std::vector<std::shared_ptr<store::Disk>> disks;
  std::vector<std::string> absent;
  std::vector<std::shared_ptr<store::Ingest>> ended;
  std::shared_ptr<std::mutex> documents;
  {
    Lock lock(mutex_);
    BIM_RETURN_IF_ERROR(Admit());
    BIM_RETURN_IF_ERROR(AwaitOthers(lock, name));
    BIM_ASSIGN_OR_RETURN(auto it, Find(name, uuid));
    key = it->first;
    ImageEntry& image = it->second;
    documents = image.documents;
    if (image.removing) {
      return base::UnavailableError(Shown(key) + " is being removed already");
    }
    for (const auto& [disk_uuid, copy] : image.copies) {
      if (auto disk = UsableDisk(disk_uuid)) {
        disks.push_back(std::move(disk));
      } else {
        absent.push_back(disk_uuid);
      }
    }
    if (!absent.empty() && !force) {
      const DiskEntry* disk = FindDisk(absent[0]);
      return base::FailedPreconditionError(
          "a copy of " + Shown(key) + " is on disk " + absent[0] +
          (disk ? " at " + disk->path : "") + ", which cannot be used now" +
          (disk ? " (" + disk->fault.message + ")" : "") +
          "; force removes the image, and that copy when the disk is back");
    }
    image.removing = true;
    for (auto& [disk_uuid, copy] : image.copies) Cancel(copy);
    const bool stopped =
        AwaitJobs(lock, [&](const ImageKey& other, const std::string&) {
          return other == key;
        });
    const auto found = images_.find(key);
    if (found == images_.end()) return base::OkStatus();  // with its disks
    if (!stopped) {
      found->second.removing = false;
      return base::DeadlineExceededError("the work on " + Shown(key) +
                                         " did not stop in time; try again");
    }
    ImageEntry& entry = found->second;
    for (auto& [disk_uuid, copy] : entry.copies) {
      ended.push_back(std::move(copy.ingest));
      copy.ingest.reset();
    }
    desired.spec = entry.spec;
    desired.removing = true;
    if (!absent.empty()) {
      for (const std::string& disk : absent) tombstones_[disk].insert(key);
    }
  }
  ended.clear();
  // Who writes its records now is waited for; nobody else does from here on.
  documents->lock();
  documents->unlock();
  Status status;
  if (!absent.empty()) status = SaveDisks();
  // All or none as far as open files go: a copy that is in use stops it before
  // anything is deleted.
  if (status.ok() && !force) {
    for (const auto& disk : disks) {
      status = store::CheckUnused(*disk, key);
      if (!status.ok()) break;
    }
  }
  for (const auto& disk : disks) {
    if (!status.ok()) break;
    // A crash from here on: the removal is finished at the next start.
    status = disk->PutDesired(key, EncodeDesired(desired));
    if (status.ok()) status = store::RemoveImage(*disk, key, force);
    if (status.ok()) status = disk->RemoveDesired(key);
    if (status.ok()) Tell(*disk, store::HistoryEvent::kRemoved, key, "");
    if (!status.ok()) {
      Desired again = desired;
      again.removing = false;
      (void)disk->PutDesired(key, EncodeDesired(again));
    }
  }
  {
    Lock lock(mutex_);
    if (status.ok()) {
      Forget(key);
    } else if (const auto it = images_.find(key); it != images_.end()) {
      // What is still there goes on to be wanted.
      it->second.removing = false;
      for (auto& [disk_uuid, copy] : it->second.copies) {
        if (UsableDisk(disk_uuid) && copy.state != CopyState::kReady &&
            copy.state != CopyState::kFailed) {
          SetState(copy, CopyState::kPending, "");
        }
      }
      Touch(key, it->second);
      Reconcile(key);
    }
  }
  Notify();
  return status;
}

Result<uint64_t> ManagerImpl::StartVerify(std::string_view name,
                                          std::string_view uuid,
                                          const std::vector<std::string>& disks,
                                          bool repair) {
  uint64_t id = 0;
  {
    Lock lock(mutex_);
    BIM_RETURN_IF_ERROR(Admit());
    BIM_ASSIGN_OR_RETURN(auto it, Find(name, uuid));
    const ImageKey key = it->first;
    ImageEntry& image = it->second;
    std::set<std::string> chosen;
    for (const std::string& disk : disks) {
      const DiskEntry* entry = FindDisk(disk);
      if (entry == nullptr || image.copies.count(entry->expected_uuid) == 0) {
        return base::NotFoundError("cannot find a copy of " + Shown(key) +
                                   " on disk '" + base::Printable(disk) + "'");
      }
      const CopyEntry& copy = image.copies.at(entry->expected_uuid);
      // One that is being read again anyway is as good.
      if (copy.state != CopyState::kReady &&
          !(copy.state == CopyState::kUnknown && entry->disk) &&
          !(repair && copy.damaged && entry->disk)) {
        return base::FailedPreconditionError(
            "the copy on disk " + entry->expected_uuid + " is " +
            std::string(CopyStateName(copy.state)) +
            ": only a ready one can be verified");
      }
      chosen.insert(entry->expected_uuid);
    }
    if (disks.empty()) {
      for (const auto& [disk_uuid, copy] : image.copies) {
        if (copy.state == CopyState::kReady ||
            ((copy.state == CopyState::kUnknown || (repair && copy.damaged)) &&
             UsableDisk(disk_uuid))) {
          chosen.insert(disk_uuid);
        }
      }
      if (chosen.empty()) {
        return base::FailedPreconditionError(
            Shown(key) + " has no ready copy to verify: it is " +
            std::string(CopyStateName(StatusOf(key, image).state)));
      }
    }
    id = next_verify_++;
    VerifyTask& task = verify_tasks_[id];
    task.key = key;
    task.waiting = chosen;
    task.repair = repair;
    for (const std::string& disk_uuid : chosen) {
      CopyEntry& copy = image.copies.at(disk_uuid);
      task.total_bytes += copy.record ? copy.record->stamp.size : 0;
      copy.verify_tasks.push_back(id);
      // Asked for: now.
      if (copy.state == CopyState::kUnknown) copy.due.reset();
    }
    Reconcile(key);
    while (verify_tasks_.size() > kKeptVerifyTasks &&
           verify_tasks_.begin()->second.waiting.empty()) {
      verify_tasks_.erase(verify_tasks_.begin());
    }
    Touch(key, image);
  }
  Notify();
  return id;
}

Result<VerifyProgress> ManagerImpl::VerifyProgressOf(uint64_t id) {
  Lock lock(mutex_);
  const auto it = verify_tasks_.find(id);
  if (it == verify_tasks_.end()) {
    return base::NotFoundError("cannot find verification " +
                               std::to_string(id));
  }
  const VerifyTask& task = it->second;
  VerifyProgress progress;
  progress.total_bytes = task.total_bytes;
  progress.verified_bytes = task.finished_bytes;
  if (const auto image = images_.find(task.key); image != images_.end()) {
    for (const std::string& disk : task.waiting) {
      const auto copy = image->second.copies.find(disk);
      if (copy != image->second.copies.end() && copy->second.scanned) {
        progress.verified_bytes += copy->second.scanned->load();
      }
    }
  }
  progress.done = task.waiting.empty();
  progress.ok = progress.done && task.ok;
  progress.message = task.message;
  progress.repaired_chunks = task.repaired_chunks;
  return progress;
}

Result<OpenImage> ManagerImpl::Open(std::string_view name,
                                    std::string_view uuid,
                                    std::string_view disk_name) {
  ImageKey key;
  std::vector<std::pair<std::shared_ptr<store::Disk>, store::ImageRecord>>
      ready;
  std::shared_ptr<exec::Turns> turns, downloads;
  {
    Lock lock(mutex_);
    BIM_ASSIGN_OR_RETURN(auto it, Find(name, uuid));
    key = it->first;
    std::string wanted;
    if (!disk_name.empty()) {
      const DiskEntry* entry = FindDisk(disk_name);
      if (entry == nullptr ||
          it->second.copies.count(entry->expected_uuid) == 0) {
        return base::NotFoundError("cannot find a copy of " + Shown(key) +
                                   " on disk '" + base::Printable(disk_name) +
                                   "'");
      }
      wanted = entry->expected_uuid;
    }
    for (const auto& [disk_uuid, copy] : it->second.copies) {
      if (copy.state != CopyState::kReady || !copy.record ||
          (!wanted.empty() && disk_uuid != wanted)) {
        continue;
      }
      if (auto disk = UsableDisk(disk_uuid)) {
        ready.emplace_back(std::move(disk), *copy.record);
      }
    }
    if (ready.empty()) {
      return base::FailedPreconditionError(
          Shown(key) + " is not ready: it is " +
          std::string(CopyStateName(StatusOf(key, it->second).state)));
    }
    if (!it->second.turns) {
      it->second.turns = exec::Turns::Make(options_.readers_per_image);
      it->second.downloads = exec::Turns::Make(kMaxDownloads);
    }
    turns = it->second.turns;
    downloads = it->second.downloads;
  }
  Status last;
  for (const auto& [disk, record] : ready) {
    auto fd =
        disk->root().OpenFile(store::DataFile(key), O_RDONLY | O_NONBLOCK);
    if (!fd.ok()) {
      last = fd.status();
      continue;
    }
    struct stat st = {};
    if (::fstat(fd->get(), &st) != 0 ||
        !store::Matches(record.stamp, store::StampOf(st))) {
      last = base::FailedPreconditionError(Shown(key) + " on disk " +
                                           disk->uuid() +
                                           " was modified and is not ready");
      continue;
    }
    return OpenImage{*std::move(fd), record.stamp, record.sha512.Hex(),
                     turns,          downloads,    send_rate_};
  }
  return last;
}

Result<store::ImageRecord> ManagerImpl::Manifest(std::string_view name,
                                                 std::string_view uuid) {
  ImageKey key;
  std::vector<std::pair<std::shared_ptr<store::Disk>, store::ImageRecord>>
      ready;
  {
    Lock lock(mutex_);
    BIM_ASSIGN_OR_RETURN(auto it, Find(name, uuid));
    key = it->first;
    for (const auto& [disk_uuid, copy] : it->second.copies) {
      if (copy.state != CopyState::kReady || !copy.record) continue;
      if (auto disk = UsableDisk(disk_uuid)) {
        ready.emplace_back(std::move(disk), *copy.record);
      }
    }
    if (ready.empty()) {
      return base::FailedPreconditionError(
          Shown(key) + " is not ready: it is " +
          std::string(CopyStateName(StatusOf(key, it->second).state)));
    }
  }
  for (const auto& [disk, known] : ready) {
    auto record = store::ReadRecord(disk->root(), key, true);
    if (record.ok() && record->sha512 == known.sha512 &&
        !record->chunks.empty()) {
      return record;
    }
  }
  // Of a file that came without a manifest: what is known.
  return ready.front().second;
}

Limits ManagerImpl::GetLimits() {
  Lock lock(mutex_);
  return limits_;
}

Status ManagerImpl::SetLimits(const Limits& limits) {
  BIM_RETURN_IF_ERROR(CheckLimits(limits));
  download_rate_.SetRate(limits.download_rate);
  peer_rate_.SetRate(limits.peer_rate);
  send_rate_->SetRate(limits.peer_rate);
  scan_rate_.SetRate(limits.background_read_rate);
  {
    Lock lock(mutex_);
    limits_ = limits;
    BeginWaiting();
  }
  Notify();
  return base::OkStatus();
}

}  // namespace bim::manager
