#include "pkg/store/disk.h"

#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "pkg/base/failpoint.h"
#include "pkg/base/log.h"
#include "pkg/base/names.h"
#include "pkg/meta/version.h"
#include "pkg/store/managers.h"
#include "pkg/store/migrate.h"

namespace bim::store {
namespace {

using base::Code;
using base::Result;
using base::Status;
using base::UniqueFd;
using nlohmann::json;

constexpr size_t kMaxSmallFile = 64 * 1024;
constexpr size_t kMaxDesiredFile = 256 * 1024;
constexpr size_t kMaxReadAhead = 20'000;  // images
constexpr size_t kMaxReadAheadFile = 8 << 20;

// Of an owner record.
constexpr char kSteady[] = "steady";
constexpr char kLeft[] = "left";

std::string ReadProc(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  char buffer[1024];
  if (!fd) return "";
  const ssize_t count = ::read(fd.get(), buffer, sizeof(buffer));
  std::string text(buffer, count > 0 ? static_cast<size_t>(count) : 0);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

// Field 22 of /proc/<pid>/stat; the command in field 2 may hold blanks. 0: no
// such process.
uint64_t StartTime(const std::string& pid) {
  const std::string stat = ReadProc("/proc/" + pid + "/stat");
  size_t at = stat.rfind(')');
  if (at == std::string::npos) return 0;
  for (int field = 3; field <= 22; ++field) {
    at = stat.find(' ', at);
    if (at == std::string::npos) return 0;
    ++at;
  }
  return std::strtoull(stat.c_str() + at, nullptr, 10);
}

std::string OwnPidNamespace() {
  char buffer[64];
  const ssize_t count = ::readlink("/proc/self/ns/pid", buffer, sizeof(buffer));
  return count > 0 ? std::string(buffer, static_cast<size_t>(count)) : "";
}

DiskFault Fault(DiskState state, std::string message) {
  return {state, std::move(message), ""};
}

// What a failed access to the disk's own files means.
DiskFault FaultOf(const Status& status) {
  if (status.message().find("Read-only file system") != std::string::npos) {
    return Fault(DiskState::kReadOnly,
                 "the file system is read-only: " + status.message());
  }
  return Fault(DiskState::kFailed, status.message());
}

std::string DescribeOwner(const Result<OwnerRecord>& owner) {
  if (!owner.ok()) return "another process";
  std::string text = "manager " + owner->manager_id + " (process " +
                     std::to_string(owner->pid);
  if (owner->pid_namespace != OwnPidNamespace()) {
    text += " in another pid namespace";
  }
  text += ", epoch " + std::to_string(owner->epoch);
  if (!owner->endpoint.empty()) text += ", reached at " + owner->endpoint;
  return text + ")";
}

std::string DescribeHandover(const std::string& uuid, const std::string& path,
                             const HandoverRecord& record) {
  const std::string disk = "disk " + uuid + " at " + path;
  switch (record.phase) {
    case HandoverPhase::kConfirmed:
      return disk + " was handed over to manager " + record.candidate +
             " and waits for it";
    case HandoverPhase::kRolledBack:
      return disk + " waits for its owner, manager " + record.owner +
             ": the hand-over to manager " + record.candidate +
             " was rolled back";
    case HandoverPhase::kBegun:
      break;
  }
  return disk + " waits for a decision: its owner, manager " + record.owner +
         ", ended while handing it over to manager " + record.candidate +
         "; \"bim handover confirm\" gives it to the latter, \"bim handover "
         "rollback\" back to the former";
}

// Whether another manager lost a disk, without having left it.
bool MayComeBack(const OwnerRecord& last, const Disk::Owner& owner) {
  return last.manager_id != owner.manager_id && last.phase != kLeft &&
         last.pid != ::getpid() && IsAlive(last) == true;
}

}  // namespace

std::string_view DiskStateName(DiskState state) {
  switch (state) {
    case DiskState::kReady:
      return "ready";
    case DiskState::kReadOnly:
      return "read-only";
    case DiskState::kMissing:
      return "missing";
    case DiskState::kSwapped:
      return "swapped";
    case DiskState::kOwned:
      return "owned";
    case DiskState::kWaiting:
      return "waiting";
    case DiskState::kFailed:
      return "failed";
  }
  return "failed";
}

std::string EncodeOwner(const OwnerRecord& owner) {
  return json{{"managerId", owner.manager_id},
              {"epoch", owner.epoch},
              {"pid", owner.pid},
              {"pidNamespace", owner.pid_namespace},
              {"startTime", owner.start_time},
              {"bootId", owner.boot_id},
              {"version", owner.version},
              {"apiVersion", owner.api_version},
              {"apiMinVersion", owner.api_min_version},
              {"endpoint", owner.endpoint},
              {"phase", owner.phase},
              {"sinceNs", owner.since_ns}}
             .dump(-1, ' ', false, json::error_handler_t::replace) +
         "\n";
}

Result<OwnerRecord> DecodeOwner(std::string_view text) {
  const json object = json::parse(text, nullptr, false);
  if (!object.is_object() || !object.contains("epoch") ||
      !object["epoch"].is_number_unsigned()) {
    return base::DataLossError(
        "the owner record is damaged: no JSON object with an epoch");
  }
  const auto string = [&](const char* key) {
    const auto it = object.find(key);
    return it != object.end() && it->is_string() ? it->get<std::string>()
                                                 : std::string();
  };
  const auto number = [&](const char* key) -> int64_t {
    const auto it = object.find(key);
    return it != object.end() && it->is_number_integer() ? it->get<int64_t>()
                                                         : 0;
  };
  OwnerRecord owner;
  owner.manager_id = string("managerId");
  owner.epoch = object["epoch"].get<uint64_t>();
  owner.pid = number("pid");
  owner.pid_namespace = string("pidNamespace");
  owner.start_time = static_cast<uint64_t>(number("startTime"));
  owner.boot_id = string("bootId");
  owner.version = string("version");
  owner.api_version = static_cast<int>(number("apiVersion"));
  owner.api_min_version = static_cast<int>(number("apiMinVersion"));
  owner.endpoint = string("endpoint");
  owner.phase = string("phase");
  owner.since_ns = number("sinceNs");
  return owner;
}

Result<OwnerRecord> ReadOwner(const io::Dir& root) {
  BIM_ASSIGN_OR_RETURN(std::string text,
                       root.ReadFile(kOwnerFile, kMaxSmallFile));
  return DecodeOwner(text);
}

void DescribeSelf(OwnerRecord& record) {
  record.pid = ::getpid();
  record.pid_namespace = OwnPidNamespace();
  record.start_time = StartTime("self");
  record.boot_id = ReadProc("/proc/sys/kernel/random/boot_id");
  record.api_version = meta::kApiVersion;
  record.api_min_version = meta::kApiMinVersion;
}

std::optional<bool> IsAlive(const OwnerRecord& record) {
  if (record.boot_id != ReadProc("/proc/sys/kernel/random/boot_id")) {
    return false;
  }
  if (record.pid_namespace != OwnPidNamespace()) return std::nullopt;
  const uint64_t now = StartTime(std::to_string(record.pid));
  return now != 0 && now == record.start_time;
}

Result<UniqueFd> LockUnowned(const io::Dir& root) {
  BIM_ASSIGN_OR_RETURN(UniqueFd lock,
                       root.OpenFile(kLockFile, O_RDONLY | O_CREAT, 0644));
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) == 0) return lock;
  if (errno != EWOULDBLOCK) {
    return base::ErrnoError(errno, "cannot lock " + root.path());
  }
  return base::AbortedError("the disk at " + root.path() + " is owned by " +
                            DescribeOwner(ReadOwner(root)));
}

Result<bool> IsOwned(const io::Dir& root) {
  const auto lock = root.OpenFile(kLockFile, O_RDONLY | O_NONBLOCK);
  if (!lock.ok()) {
    if (lock.status().code() == Code::kNotFound) return false;
    return lock.status();
  }
  // Shared: two who look at once do not take one another for an owner.
  if (::flock(lock->get(), LOCK_SH | LOCK_NB) == 0) return false;
  if (errno == EWOULDBLOCK) return true;
  return base::ErrnoError(errno, "cannot lock " + root.path());
}

Result<DiskFormat> ReadFormat(const io::Dir& root) {
  BIM_ASSIGN_OR_RETURN(std::string text,
                       root.ReadFile(kFormatFile, kMaxSmallFile));
  const json format = json::parse(text, nullptr, false);
  if (!format.is_object() || !format.contains("version") ||
      !format["version"].is_number_integer() ||
      !format.contains("minVersion") ||
      !format["minVersion"].is_number_integer()) {
    return base::DataLossError(root.path() + "/" + kFormatFile +
                               " is damaged: expected {\"version\":N,"
                               "\"minVersion\":N}");
  }
  return DiskFormat{format["version"].get<int64_t>(),
                    format["minVersion"].get<int64_t>()};
}

Status CheckFormat(const DiskFormat& format) {
  if (format.min_version > meta::kDiskFormatVersion) {
    return base::FailedPreconditionError(
        "the disk's format is " + std::to_string(format.version) +
        ", readable from version " + std::to_string(format.min_version) +
        " on; this program reads up to " +
        std::to_string(meta::kDiskFormatVersion) +
        ": use a newer program for this disk");
  }
  if (format.version < meta::kDiskFormatMinVersion) {
    return base::FailedPreconditionError(
        "the disk's format is " + std::to_string(format.version) +
        ", this program needs at least " +
        std::to_string(meta::kDiskFormatMinVersion) +
        ": \"bim disk migrate\" raises it");
  }
  return base::OkStatus();
}

Result<std::string> ReadIdentity(const io::Dir& root) {
  BIM_ASSIGN_OR_RETURN(std::string text,
                       root.ReadFile(kIdentityFile, kMaxSmallFile));
  const json object = json::parse(text, nullptr, false);
  const std::string shown = root.path() + "/" + kIdentityFile;
  if (!object.is_object() || !object.contains("diskUUID") ||
      !object["diskUUID"].is_string()) {
    return base::DataLossError(shown +
                               " is damaged: expected {\"diskUUID\":\"...\"}");
  }
  std::string uuid = object["diskUUID"].get<std::string>();
  if (Status valid = base::CheckName(uuid, "diskUUID"); !valid.ok()) {
    return base::DataLossError(shown + ": " + valid.message());
  }
  return uuid;
}

Status InitIdentity(const io::Dir& root, const std::string& uuid) {
  BIM_RETURN_IF_ERROR(base::CheckName(uuid, "disk uuid"));
  const auto existing = root.Stat(kIdentityFile);
  if (existing.ok()) {
    return base::AlreadyExistsError(root.path() + " already has a " +
                                    kIdentityFile);
  }
  if (existing.status().code() != Code::kNotFound) return existing.status();
  return root.ReplaceFile(kIdentityFile, json{{"diskUUID", uuid}}.dump());
}

std::variant<std::shared_ptr<Disk>, DiskFault> Disk::Claim(
    const std::string& path, const std::string& expected_uuid,
    const Owner& owner) {
  std::string found_uuid;
  auto claimed = TryClaim(path, expected_uuid, owner, found_uuid);
  if (auto* fault = std::get_if<DiskFault>(&claimed)) {
    fault->uuid = found_uuid;
  }
  return claimed;
}

std::variant<std::shared_ptr<Disk>, DiskFault> Disk::Look(
    const std::string& path, const std::string& expected_uuid,
    std::string& found_uuid) {
  auto root = io::Dir::Open(path);
  if (!root.ok()) {
    if (root.status().code() == Code::kNotFound) {
      return Fault(DiskState::kMissing, "no directory at " + path);
    }
    return Fault(DiskState::kFailed, root.status().message());
  }
  auto uuid = ReadIdentity(*root);
  if (!uuid.ok()) {
    if (uuid.status().code() == Code::kNotFound) {
      return Fault(DiskState::kMissing,
                   "no " + std::string(kIdentityFile) + " in " + path +
                       ": is the disk mounted? To make a new disk of it: bim "
                       "disk add --init " +
                       path);
    }
    return FaultOf(uuid.status());
  }
  found_uuid = *uuid;
  if (!expected_uuid.empty() && *uuid != expected_uuid) {
    return Fault(DiskState::kSwapped, "expected disk " + expected_uuid +
                                          " at " + path + ", found disk " +
                                          *uuid);
  }
  struct statvfs fs = {};
  struct stat st = {};
  if (::fstatvfs(root->fd(), &fs) != 0 || ::fstat(root->fd(), &st) != 0) {
    return Fault(DiskState::kFailed,
                 base::ErrnoError(errno, "cannot stat " + path).message());
  }
  if ((fs.f_flag & ST_RDONLY) != 0) {
    return Fault(
        DiskState::kReadOnly,
        "the file system at " + path + " is read-only: remount it read-write");
  }

  std::shared_ptr<Disk> disk(new Disk);
  disk->path_ = path;
  disk->uuid_ = *uuid;
  disk->root_ = std::move(*root);
  disk->device_ = st.st_dev;
  disk->inode_ = st.st_ino;
  return disk;
}

std::variant<std::shared_ptr<Disk>, DiskFault> Disk::OpenForDataSource(
    const std::string& path, const std::string& expected_uuid,
    const ImageKey& key) {
  BIM_CHECK(key.place == Place::kDataSource);
  std::string found_uuid;
  auto looked = Look(path, expected_uuid, found_uuid);
  if (auto* fault = std::get_if<DiskFault>(&looked)) {
    fault->uuid = found_uuid;
    return looked;
  }
  const auto disk = std::get<std::shared_ptr<Disk>>(std::move(looked));
  const auto fault = [&](const Status& status) {
    DiskFault made = FaultOf(status);
    made.uuid = found_uuid;
    return made;
  };
  const io::Dir& dir = disk->root_;
  if (Status made = dir.MakeDir(kDataSourceDir, 0755); !made.ok()) {
    return fault(made);
  }
  // One that a process which ends has removed meanwhile is made again.
  for (int tries = 0; tries < 8; ++tries) {
    auto lock = dir.OpenFile(DataSourceLock(key), O_RDONLY | O_CREAT, 0644);
    if (!lock.ok()) return fault(lock.status());
    if (::flock(lock->get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) {
        return fault(base::ErrnoError(
            errno, "cannot lock " + path + "/" + DataSourceLock(key)));
      }
      return DiskFault{DiskState::kOwned,
                       "another process makes the file " + path + "/" +
                           DataFile(key) + " (it holds the lock " +
                           DataSourceLock(key) + ")",
                       found_uuid};
    }
    struct stat held = {};
    const auto there = dir.Stat(DataSourceLock(key));
    if (::fstat(lock->get(), &held) != 0 || !there.ok() ||
        there->st_ino != held.st_ino) {
      continue;
    }
    disk->lock_ = *std::move(lock);
    disk->owned_ = false;
    disk->data_source_ = key;
    return disk;
  }
  return fault(base::UnavailableError("the lock " + path + "/" +
                                      DataSourceLock(key) +
                                      " goes away again and again"));
}

std::variant<std::shared_ptr<Disk>, DiskFault> Disk::TryClaim(
    const std::string& path, const std::string& expected_uuid,
    const Owner& owner, std::string& found_uuid) {
  auto looked = Look(path, expected_uuid, found_uuid);
  if (std::holds_alternative<DiskFault>(looked)) return looked;
  auto disk = std::get<std::shared_ptr<Disk>>(std::move(looked));
  const std::string* const uuid = &disk->uuid_;
  const io::Dir& dir = disk->root_;
  if (Status made = dir.MakeDir(kBimDir, 0755); !made.ok()) {
    return FaultOf(made);
  }
  // Open for reading only, so that an operator can remount read-only.
  auto lock = dir.OpenFile(kLockFile, O_RDONLY | O_CREAT, 0644);
  if (!lock.ok()) return FaultOf(lock.status());
  if (::flock(lock->get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) {
      return Fault(DiskState::kOwned,
                   "disk " + *uuid + " at " + path + " is owned by " +
                       DescribeOwner(ReadOwner(dir)) +
                       "; it is left alone until that process ends");
    }
    return Fault(DiskState::kFailed,
                 base::ErrnoError(errno, "cannot lock " + path).message());
  }
  disk->lock_ = *std::move(lock);
  BIM_FAILPOINT("store.claim.locked");

  // From here on nobody else writes below .bim.
  const auto format = ReadFormat(dir);
  const bool fresh = format.status().code() == Code::kNotFound;
  if (!format.ok() && !fresh) return FaultOf(format.status());
  if (!fresh) {
    if (Status readable = CheckFormat(*format); !readable.ok()) {
      return FaultOf(readable);
    }
  }
  auto handover = ReadHandover(dir);
  if (!handover.ok()) return FaultOf(handover.status());
  if (const ClaimVerdict may = MayClaim(*handover, owner.manager_id);
      may != ClaimVerdict::kYes) {
    DiskFault fault =
        Fault(DiskState::kWaiting, DescribeHandover(*uuid, path, **handover));
    fault.handover = **handover;
    return fault;
  }
  auto last = ReadOwner(dir);
  if (!last.ok() && !(fresh && last.status().code() == Code::kNotFound)) {
    return Fault(DiskState::kFailed,
                 "the owner record " + path + "/" + kOwnerFile +
                     " cannot be read and its epoch is never guessed (" +
                     last.status().message() + "): restore it");
  }
  if (owner.yields && last.ok() && !*handover && MayComeBack(*last, owner)) {
    DiskFault fault = Fault(
        DiskState::kOwned,
        "disk " + *uuid + " at " + path + " was lost by " +
            DescribeOwner(last) +
            ", which lives and may come back for it; it is taken when that "
            "process has ended, or in a while");
    fault.yielded = true;
    return fault;
  }
  OwnerRecord record;
  record.manager_id = owner.manager_id;
  record.epoch = last.ok() ? last->epoch + 1 : 1;
  DescribeSelf(record);
  record.version = owner.version;
  record.endpoint = owner.endpoint;
  record.phase = kSteady;
  record.since_ns = std::chrono::duration_cast<std::chrono::nanoseconds>(
                        std::chrono::system_clock::now().time_since_epoch())
                        .count();
  disk->epoch_ = record.epoch;
  // (It kept nobody from anything, and is done.)
  const bool automatic = *handover && (**handover).automatic;
  if (last.ok()) {
    disk->predecessor_ = *last;
    disk->taken_over_ = last->manager_id != record.manager_id ||
                        last->version != record.version || automatic;
  }
  // Before anything of it is changed.
  if (fresh) {
    if (Status kept = KeepMetadata(dir, 0); !kept.ok()) return FaultOf(kept);
  }
  Status written = dir.ReplaceFile(kOwnerFile, EncodeOwner(record));
  BIM_FAILPOINT("store.claim.owner_written");
  // The format file last: while it is missing the folder is still being made.
  if (written.ok() && fresh) {
    written = WriteFormat(dir);
  }
  if (written.ok() && automatic) written = store::RemoveHandover(dir);
  if (written.ok()) written = dir.MakeDir(kDesiredDir, 0700);
  if (written.ok()) written = dir.MakeDir(kImagesDir, 0755);
  if (!written.ok()) return FaultOf(written);
  disk->format_version_ = fresh ? meta::kDiskFormatVersion : format->version;
  if (!fresh && *handover && (**handover).phase == HandoverPhase::kConfirmed) {
    // The upgrade is confirmed: the disk need not be as old as its last owner.
    if (const auto migrated = Migrate(dir); migrated.ok()) {
      disk->format_version_ = migrated->to;
    } else {
      BIM_LOG_WARN("disk {} at {}: it stays in format {}: {}", *uuid, path,
                   format->version, migrated.status().message());
    }
  }
  disk->owner_ = owner;
  if (Status kept = WriteManager(dir, {record, ManagerRole::kOwner});
      !kept.ok()) {
    BIM_LOG_WARN("disk {} at {}: its list of managers cannot be kept: {}",
                 *uuid, path, kept.message());
  }
  return disk;
}

Disk::~Disk() {
  // Its lock is of no use to anybody; an owned disk's stays.
  if (!owned_ && lock_) (void)root_.RemoveFile(DataSourceLock(data_source_));
}

void Disk::Release() const {
  if (!owned_ || released_.exchange(true)) return;
  BIM_FAILPOINT("store.handover.releasing");
  (void)::flock(lock_.get(), LOCK_UN);
}

void Disk::Leave() const {
  if (!owned_ || released_) return;
  auto owner = ReadOwner(root_);
  if (!owner.ok() || owner->epoch != epoch_) return;
  owner->phase = kLeft;
  (void)root_.ReplaceFile(kOwnerFile, EncodeOwner(*owner));
}

Status Disk::PutHandover(const HandoverRecord& record) const {
  BIM_RETURN_IF_ERROR(CheckOwner());
  BIM_RETURN_IF_ERROR(WriteHandover(root_, record));
  if (Status told = AppendHistory(*this, ToHistory(record)); !told.ok()) {
    BIM_LOG_WARN("disk {}: its history lacks a hand-over: {}", uuid_,
                 told.message());
  }
  return base::OkStatus();
}

Status Disk::RemoveHandover() const {
  BIM_RETURN_IF_ERROR(CheckOwner());
  return store::RemoveHandover(root_);
}

DiskFault Disk::Check(bool probe) const {
  struct stat held = {}, seen = {};
  if (::fstat(root_.fd(), &held) != 0) {
    return Fault(DiskState::kFailed,
                 base::ErrnoError(errno, "cannot stat " + path_).message());
  }
  auto now = io::Dir::Open(path_);
  if (!now.ok()) {
    if (now.status().code() == Code::kNotFound) {
      return Fault(DiskState::kMissing, "no directory at " + path_);
    }
    return Fault(DiskState::kFailed, now.status().message());
  }
  auto uuid = ReadIdentity(*now);
  if (!uuid.ok()) {
    if (uuid.status().code() == Code::kNotFound) {
      return Fault(DiskState::kMissing, "no " + std::string(kIdentityFile) +
                                            " in " + path_ +
                                            ": is the disk mounted?");
    }
    return FaultOf(uuid.status());
  }
  if (*uuid != uuid_) {
    return Fault(DiskState::kSwapped, "expected disk " + uuid_ + " at " +
                                          path_ + ", found disk " + *uuid);
  }
  if (::fstat(now->fd(), &seen) != 0 || seen.st_dev != device_ ||
      seen.st_ino != inode_) {
    return Fault(DiskState::kMissing,
                 "the directory at " + path_ +
                     " is another one than the disk that was opened");
  }
  struct statvfs fs = {};
  if (::fstatvfs(now->fd(), &fs) != 0) {
    return Fault(DiskState::kFailed,
                 base::ErrnoError(errno, "cannot stat " + path_).message());
  }
  if ((fs.f_flag & ST_RDONLY) != 0) {
    return Fault(DiskState::kReadOnly, "the file system at " + path_ +
                                           " is read-only: remount it "
                                           "read-write");
  }
  if (probe && ::futimens(lock_.get(), nullptr) != 0) {
    return FaultOf(
        base::ErrnoError(errno, "cannot write to the disk at " + path_));
  }
  if (Status owner = CheckOwner(); !owner.ok()) {
    return Fault(DiskState::kFailed, owner.message());
  }
  return Fault(DiskState::kReady, "");
}

Status Disk::CheckOwner() const {
  if (!owned_) return base::OkStatus();
  if (released_) {
    return base::AbortedError("disk " + uuid_ + " was handed over");
  }
  const auto owner = ReadOwner(root_);
  if (!owner.ok()) {
    return base::AbortedError("the owner record of disk " + uuid_ +
                              " cannot be read: " + owner.status().message());
  }
  if (owner->epoch != epoch_) {
    return base::AbortedError("disk " + uuid_ + " is owned in epoch " +
                              std::to_string(owner->epoch) + " by manager " +
                              owner->manager_id +
                              ", this process took it in epoch " +
                              std::to_string(epoch_) + " and is late");
  }
  return base::OkStatus();
}

Result<Space> Disk::GetSpace() const {
  struct statvfs fs = {};
  if (::fstatvfs(root_.fd(), &fs) != 0) {
    return base::ErrnoError(errno, "cannot stat " + path_);
  }
  return Space{static_cast<uint64_t>(fs.f_blocks) * fs.f_frsize,
               static_cast<uint64_t>(fs.f_bavail) * fs.f_frsize};
}

Status Disk::PutDesired(const ImageKey& key, std::string_view json) const {
  if (!owned_) return base::OkStatus();
  if (released_) return CheckOwner();
  BIM_FAILPOINT_ERROR("store.desired.put");
  return root_.ReplaceFile(DesiredFile(key), json, 0600);
}

bool Disk::HasDesired(const ImageKey& key) const {
  return owned_ && root_.Stat(DesiredFile(key)).ok();
}

Status Disk::RemoveDesired(const ImageKey& key) const {
  if (!owned_) return base::OkStatus();
  if (released_) return CheckOwner();
  BIM_RETURN_IF_ERROR(root_.RemoveFile(DesiredFile(key)));
  BIM_ASSIGN_OR_RETURN(io::Dir dir, root_.OpenDir(kDesiredDir));
  return dir.Sync();
}

Result<std::vector<DesiredFileContent>> LoadDesired(const io::Dir& root) {
  BIM_ASSIGN_OR_RETURN(io::Dir dir, root.OpenDir(kDesiredDir));
  std::vector<std::string> names;
  BIM_RETURN_IF_ERROR(dir.List([&](std::string_view name, unsigned char) {
    if (name.ends_with(".json")) names.emplace_back(name);
    return true;
  }));
  std::vector<DesiredFileContent> files;
  files.reserve(names.size());
  for (const std::string& name : names) {
    BIM_ASSIGN_OR_RETURN(std::string text, dir.ReadFile(name, kMaxDesiredFile));
    files.push_back({dir.path() + "/" + name, std::move(text)});
  }
  return files;
}

void ReadAhead(const io::Dir& root) {
  (void)LoadDesired(root);
  const auto images = root.OpenDir(kImagesDir);
  if (!images.ok()) return;
  std::vector<std::string> names;
  (void)images->List([&](std::string_view name, unsigned char) {
    names.emplace_back(name);
    return names.size() < kMaxReadAhead;
  });
  for (const std::string& name : names) {
    (void)images->Stat(name + "/backing");
    (void)images->ReadFile(name + "/backing.bim", kMaxReadAheadFile);
    (void)images->ReadFile(name + "/backing.cfg", kMaxSmallFile);
  }
}

}  // namespace bim::store
