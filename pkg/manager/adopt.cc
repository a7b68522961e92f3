// Taking over what another manager left on a disk, all at once.

#include <algorithm>
#include <string>
#include <vector>

#include "pkg/base/log.h"
#include "pkg/base/names.h"
#include "pkg/manager/manager_impl.h"
#include "pkg/store/record.h"

namespace bim::manager {
namespace {

using base::Code;
using base::Result;
using base::Status;

constexpr size_t kMaxAdopted = 100'000;

// The image whose directory it is, by Longhorn's cfg in it.
Result<ImageKey> KeyIn(const io::Dir& root, const std::string& directory,
                       store::LonghornConfig& config) {
  // Where the name ends and the uuid begins says the cfg: any split leads to
  // the same file.
  const size_t dash = directory.find('-');
  if (dash == std::string::npos) {
    return base::InvalidArgumentError(
        "expected a directory called <name>-<uuid>");
  }
  BIM_ASSIGN_OR_RETURN(config,
                       store::ReadConfig(root, {directory.substr(0, dash),
                                                directory.substr(dash + 1)}));
  if (!directory.ends_with("-" + config.uuid)) {
    return base::DataLossError("its backing.cfg is of uuid '" +
                               base::Printable(config.uuid) + "'");
  }
  ImageKey key{directory.substr(0, directory.size() - config.uuid.size() - 1),
               config.uuid};
  BIM_RETURN_IF_ERROR(base::CheckName(key.name, "name"));
  BIM_RETURN_IF_ERROR(base::CheckName(key.uuid, "uuid"));
  return key;
}

}  // namespace

Status ManagerImpl::Vouch(const store::Disk& disk, const ImageKey& key,
                          const store::LonghornConfig& config) {
  BIM_ASSIGN_OR_RETURN(const struct stat st,
                       disk.root().Stat(store::DataFile(key)));
  if (!S_ISREG(st.st_mode)) {
    return base::FailedPreconditionError("it is not a regular file");
  }
  if (static_cast<uint64_t>(st.st_size) != config.size) {
    return base::DataLossError(
        fmt::format("the file has {} bytes; its backing.cfg says {}",
                    st.st_size, config.size));
  }
  const std::string& checksum = config.current_checksum.empty()
                                    ? config.expected_checksum
                                    : config.current_checksum;
  if (checksum.empty()) {
    return base::FailedPreconditionError(
        "its backing.cfg has no checksum: nothing vouches for the file");
  }
  BIM_ASSIGN_OR_RETURN(
      const base::Digest wanted,
      base::Digest::FromHex(base::DigestAlgorithm::kSha512, checksum));
  const int64_t mtime =
      st.st_mtim.tv_sec * int64_t{1'000'000'000} + st.st_mtim.tv_nsec;
  if (config.modification_time == store::FormatModificationTime(mtime) &&
      !config.current_checksum.empty()) {
    return base::OkStatus();
  }
  BIM_ASSIGN_OR_RETURN(const store::ImageRecord found,
                       store::Scan(disk, key, /*want_sha256=*/false,
                                   stop_calls_.get_token(), nullptr));
  if (found.sha512 != wanted) {
    return base::DataLossError("its SHA-512 is " + found.sha512.Hex() +
                               "; its backing.cfg says " + checksum);
  }
  return base::OkStatus();
}

Result<std::vector<AdoptedImage>> ManagerImpl::Adopt(std::string_view disk_name,
                                                     bool dry_run) {
  std::shared_ptr<store::Disk> disk;
  {
    Lock lock(mutex_);
    BIM_RETURN_IF_ERROR(Admit());
    BIM_ASSIGN_OR_RETURN(DiskEntry * entry, DirectedDisk(disk_name));
    if (!entry->disk) {
      return base::UnavailableError("disk at " + entry->path +
                                    " cannot be used: " + entry->fault.message);
    }
    disk = entry->disk;
  }
  std::vector<std::string> directories;
  BIM_ASSIGN_OR_RETURN(const io::Dir images,
                       disk->root().OpenDir(store::kImagesDir));
  BIM_RETURN_IF_ERROR(images.List([&](std::string_view name, unsigned char) {
    directories.emplace_back(name);
    return directories.size() < kMaxAdopted;
  }));
  std::sort(directories.begin(), directories.end());
  std::vector<AdoptedImage> all;
  for (const std::string& directory : directories) {
    if (stop_calls_.stop_requested()) {
      return base::UnavailableError("the daemon is stopping");
    }
    AdoptedImage one;
    one.directory = directory;
    store::LonghornConfig config;
    const auto key = KeyIn(disk->root(), directory, config);
    if (key.ok()) {
      one.name = key->name;
      one.uuid = key->uuid;
      Lock lock(mutex_);
      const auto it = images_.find(*key);
      one.known =
          it != images_.end() && it->second.copies.count(disk->uuid()) != 0;
    }
    if (!one.known) {
      one.status = key.ok() ? Vouch(*disk, *key, config) : key.status();
      if (one.status.ok() && !dry_run) {
        DirectedSpec spec;
        spec.name = one.name;
        spec.uuid = one.uuid;
        spec.disk = disk->uuid();
        one.status = Direct(std::move(spec)).status();
      }
      if (!one.status.ok()) {
        BIM_LOG_WARN("disk {}: {} is not adopted: {}", disk->uuid(), directory,
                     one.status.message());
      }
    }
    all.push_back(std::move(one));
  }
  return all;
}

}  // namespace bim::manager
