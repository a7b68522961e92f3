#include "pkg/manager/disk_list.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "pkg/io/dir.h"

namespace bim::manager {
namespace {

using base::Code;
using base::Result;
using base::Status;
using nlohmann::json;

constexpr size_t kMaxDisksFile = 4 << 20;

// NOT_FOUND: there is none.
Result<std::string> ReadList(const std::string& state_dir) {
  BIM_ASSIGN_OR_RETURN(const io::Dir state, io::Dir::Open(state_dir));
  return state.ReadFile(kDisksFile, kMaxDisksFile);
}

Status Parse(const std::string& text, const std::string& shown,
             DiskList& list) {
  const json object = json::parse(text, nullptr, false);
  try {
    for (const json& item : object.at("disks")) {
      ListedDisk disk;
      item.at("path").get_to(disk.path);
      item.at("uuid").get_to(disk.uuid);
      list.disks.push_back(std::move(disk));
    }
    for (const json& item : object.at("removed")) {
      list.removals.push_back({item.at("disk").get<std::string>(),
                               {item.at("name").get<std::string>(),
                                item.at("uuid").get<std::string>()}});
    }
  } catch (const json::exception& error) {
    return base::FailedPreconditionError(
        shown + " is damaged (" + error.what() +
        "): restore it, or delete it and add the disks again");
  }
  return base::OkStatus();
}

}  // namespace

std::string NormalPath(const std::string& path) {
  std::string normal = std::filesystem::path(path).lexically_normal().string();
  while (normal.size() > 1 && normal.back() == '/') normal.pop_back();
  return normal;
}

Result<DiskList> LoadDiskList(const std::string& state_dir,
                              const std::vector<std::string>& configured) {
  DiskList list;
  if (!state_dir.empty()) {
    const auto text = ReadList(state_dir);
    if (text.ok()) {
      BIM_RETURN_IF_ERROR(Parse(*text, state_dir + "/" + kDisksFile, list));
    } else if (text.status().code() != Code::kNotFound) {
      return text.status();
    }
  }
  for (const std::string& given : configured) {
    if (given.empty() || given[0] != '/') {
      return base::InvalidArgumentError("disk path '" + given +
                                        "' is not absolute");
    }
    const std::string path = NormalPath(given);
    if (std::none_of(
            list.disks.begin(), list.disks.end(),
            [&](const ListedDisk& disk) { return disk.path == path; })) {
      list.disks.push_back({path, ""});
    }
  }
  return list;
}

}  // namespace bim::manager
