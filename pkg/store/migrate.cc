#include "pkg/store/migrate.h"

#include <fcntl.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "pkg/base/failpoint.h"
#include "pkg/base/log.h"
#include "pkg/meta/version.h"
#include "pkg/store/disk.h"
#include "pkg/store/handover.h"
#include "pkg/store/layout.h"

namespace bim::store {
namespace {

using base::Code;
using base::Result;
using base::Status;

constexpr size_t kMaxConfig = 64 * 1024;
// Of a directory that somebody else filled.
constexpr size_t kMaxEntries = 100'000;
constexpr std::string_view kPart = ".part";

Result<std::vector<std::string>> NamesIn(const io::Dir& root,
                                         const std::string& path) {
  std::vector<std::string> names;
  const auto dir = root.OpenDir(path);
  if (!dir.ok()) {
    if (dir.status().code() == Code::kNotFound) return names;
    return dir.status();
  }
  BIM_RETURN_IF_ERROR(dir->List([&](std::string_view name, unsigned char) {
    names.emplace_back(name);
    return names.size() < kMaxEntries;
  }));
  return names;
}

// What we write is always replaced by another file, so a second name keeps the
// old one; fine when there is none.
Status KeepLink(const io::Dir& root, const std::string& from,
                const std::string& to) {
  const Status linked = root.Link(from, to);
  return linked.code() == Code::kNotFound ? base::OkStatus() : linked;
}

// What others write in place is copied. Not durable before it is synced.
Status KeepCopy(const io::Dir& root, const std::string& from,
                const std::string& to) {
  const auto content = root.ReadFile(from, kMaxConfig);
  if (!content.ok()) {
    if (content.status().code() == Code::kNotFound) return base::OkStatus();
    // It is broken, is judged later, and nothing that we could have written.
    BIM_LOG_WARN("{} is not copied: {}", from, content.status().message());
    return base::OkStatus();
  }
  BIM_RETURN_IF_ERROR(root.RemoveFile(to));
  BIM_ASSIGN_OR_RETURN(const base::UniqueFd fd,
                       root.OpenFile(to, O_WRONLY | O_CREAT | O_EXCL, 0644));
  BIM_RETURN_IF_ERROR(io::PwriteAll(fd.get(), *content, 0, to));
  if (::fsync(fd.get()) != 0)
    return base::ErrnoError(errno, "cannot sync " + to);
  return base::OkStatus();
}

Status SyncDir(const io::Dir& root, const std::string& path) {
  BIM_ASSIGN_OR_RETURN(const io::Dir dir, root.OpenDir(path));
  return dir.Sync();
}

}  // namespace

std::string BackupDir(int64_t format) {
  return std::string(kBackupDir) + "/format-" + std::to_string(format);
}

Status KeepMetadata(const io::Dir& root, int64_t format) {
  const std::string to = BackupDir(format);
  if (root.Stat(to).ok()) return base::OkStatus();
  BIM_ASSIGN_OR_RETURN(const auto names, NamesIn(root, kImagesDir));
  if (format == 0 && names.empty()) return base::OkStatus();
  const std::string part = to + std::string(kPart);
  BIM_RETURN_IF_ERROR(root.MakeDir(kBackupDir, 0700));
  BIM_RETURN_IF_ERROR(root.MakeDir(part, 0700));
  for (const char* file : {kFormatFile, kOwnerFile, kHandoverFile}) {
    BIM_RETURN_IF_ERROR(KeepLink(
        root, file, part + std::string(file).substr(sizeof(kBimDir) - 1)));
  }
  BIM_RETURN_IF_ERROR(root.MakeDir(part + "/desired", 0700));
  BIM_ASSIGN_OR_RETURN(const auto desired, NamesIn(root, kDesiredDir));
  for (const std::string& name : desired) {
    if (!name.ends_with(".json")) continue;
    BIM_RETURN_IF_ERROR(KeepLink(root, std::string(kDesiredDir) + "/" + name,
                                 part + "/desired/" + name));
  }
  BIM_RETURN_IF_ERROR(SyncDir(root, part + "/desired"));
  const std::string images = part + "/" + kImagesDir;
  BIM_RETURN_IF_ERROR(root.MakeDir(images, 0700));
  for (const std::string& name : names) {
    const std::string from = std::string(kImagesDir) + "/" + name;
    const auto dir = root.OpenDir(from);
    if (!dir.ok()) continue;  // a file, or a link: nothing of ours
    const std::string kept = images + "/" + name;
    BIM_RETURN_IF_ERROR(root.MakeDir(kept, 0700));
    BIM_RETURN_IF_ERROR(
        KeepCopy(root, from + "/backing.cfg", kept + "/backing.cfg"));
    BIM_RETURN_IF_ERROR(
        KeepLink(root, from + "/backing.bim", kept + "/backing.bim"));
    BIM_RETURN_IF_ERROR(SyncDir(root, kept));
  }
  BIM_RETURN_IF_ERROR(SyncDir(root, images));
  BIM_RETURN_IF_ERROR(SyncDir(root, part));
  BIM_FAILPOINT("store.migrate.copied");
  BIM_RETURN_IF_ERROR(root.Rename(part, to));
  return SyncDir(root, kBackupDir);
}

Result<Migration> PlanMigration(const io::Dir& root) {
  BIM_ASSIGN_OR_RETURN(const DiskFormat format, ReadFormat(root));
  Migration migration;
  migration.from = format.version;
  migration.to = format.version;
  // One that is newer, but says that it can be read, stays what it is.
  if (format.min_version > meta::kDiskFormatVersion) {
    return CheckFormat(format);
  }
  if (format.version >= meta::kDiskFormatVersion) return migration;
  migration.to = meta::kDiskFormatVersion;
  migration.backup = BackupDir(format.version);
  return migration;
}

Result<Migration> Migrate(const io::Dir& root) {
  BIM_ASSIGN_OR_RETURN(Migration migration, PlanMigration(root));
  if (migration.to == migration.from) return migration;
  BIM_RETURN_IF_ERROR(KeepMetadata(root, migration.from));
  BIM_FAILPOINT("store.migrate.kept");
  BIM_RETURN_IF_ERROR(WriteFormat(root));
  return migration;
}

Status WriteFormat(const io::Dir& root) {
  return root.ReplaceFile(
      kFormatFile, nlohmann::json{{"version", meta::kDiskFormatVersion},
                                  {"minVersion", meta::kDiskFormatMinVersion}}
                           .dump() +
                       "\n");
}

}  // namespace bim::store
