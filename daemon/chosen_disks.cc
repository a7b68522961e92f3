#include "daemon/chosen_disks.h"

#include <fmt/format.h>

#include <filesystem>
#include <system_error>
#include <utility>

#include "pkg/store/disk.h"
#include "pkg/store/layout.h"

namespace bim::daemon {

std::vector<manager::ListedDisk> NamedDisks(
    const std::vector<std::string>& paths) {
  std::vector<manager::ListedDisk> disks;
  for (const std::string& path : paths) {
    std::error_code ignored;  // then it is opened as it is
    const std::string absolute =
        std::filesystem::absolute(path, ignored).string();
    disks.push_back(
        {manager::NormalPath(absolute.empty() ? path : absolute), ""});
  }
  return disks;
}

base::Result<std::vector<manager::ListedDisk>> ConfiguredDisks(
    const Config& config) {
  BIM_ASSIGN_OR_RETURN(
      manager::DiskList list,
      manager::LoadDiskList(config.ephemeral_state ? "" : config.state_dir,
                            config.disk_paths));
  return std::move(list.disks);
}

base::Result<std::vector<manager::ListedDisk>> ChooseDisks(
    const DiskChoice& choice, const Environment& environment) {
  if (!choice.paths.empty()) return NamedDisks(choice.paths);
  BIM_ASSIGN_OR_RETURN(const EffectiveConfig loaded,
                       LoadConfig(choice.config_path, environment, {}));
  BIM_ASSIGN_OR_RETURN(std::vector<manager::ListedDisk> disks,
                       ConfiguredDisks(loaded.config));
  if (disks.empty()) {
    return base::FailedPreconditionError(
        fmt::format("{} names no disks, and none was added: name one by --disk",
                    loaded.file.empty() ? "the configuration" : loaded.file));
  }
  return disks;
}

base::Result<OpenDisk> Open(const manager::ListedDisk& disk) {
  OpenDisk opened;
  auto root = io::Dir::Open(disk.path);
  if (!root.ok()) {
    if (root.status().code() == base::Code::kNotFound) {
      return base::NotFoundError("no directory at " + disk.path);
    }
    return root.status();
  }
  opened.root = *std::move(root);
  auto uuid = store::ReadIdentity(opened.root);
  if (!uuid.ok()) {
    if (uuid.status().code() == base::Code::kNotFound) {
      return base::NotFoundError(
          fmt::format("no {} in {}: is the disk mounted?", store::kIdentityFile,
                      disk.path));
    }
    return uuid.status();
  }
  opened.uuid = *std::move(uuid);
  if (!disk.uuid.empty() && disk.uuid != opened.uuid) {
    return base::FailedPreconditionError(
        fmt::format("expected disk {} at {}, found disk {}", disk.uuid,
                    disk.path, opened.uuid));
  }
  return opened;
}

}  // namespace bim::daemon
