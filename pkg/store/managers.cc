#include "pkg/store/managers.h"

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>
#include <utility>

#include "pkg/base/names.h"
#include "pkg/store/layout.h"

namespace bim::store {
namespace {

using base::Code;
using base::Result;
using base::Status;
using nlohmann::json;

constexpr size_t kMaxFile = 64 * 1024;
// Of a directory that somebody else filled.
constexpr size_t kMaxListed = 4096;
constexpr std::string_view kSuffix = ".json";

std::string ManagerFile(const std::string& manager_id) {
  return std::string(kManagersDir) + "/" + manager_id + std::string(kSuffix);
}

// Which go first.
int Worth(const FoundManager& found) {
  if (!found.record) return 1;
  const std::optional<bool> alive = IsAlive(found.record->owner);
  if (!alive) return 2;
  return *alive ? 3 : 0;
}

Status DropOldest(const io::Dir& root, const std::string& newest) {
  BIM_ASSIGN_OR_RETURN(std::vector<FoundManager> all, ListManagers(root));
  if (all.size() <= kMaxManagers) return base::OkStatus();
  const auto owner = ReadOwner(root);
  if (!owner.ok() && owner.status().code() != Code::kNotFound) {
    return owner.status();
  }
  const size_t surplus = all.size() - kMaxManagers;
  std::erase_if(all, [&](const FoundManager& found) {
    return found.manager_id == newest ||
           (owner.ok() && found.manager_id == owner->manager_id);
  });
  std::vector<std::tuple<int, int64_t, std::string>> order;
  for (const FoundManager& found : all) {
    order.emplace_back(Worth(found),
                       found.record ? found.record->owner.since_ns : 0,
                       found.manager_id);
  }
  std::sort(order.begin(), order.end());
  for (size_t i = 0; i < std::min(surplus, order.size()); ++i) {
    BIM_RETURN_IF_ERROR(root.RemoveFile(ManagerFile(std::get<2>(order[i]))));
  }
  return base::OkStatus();
}

}  // namespace

std::string_view ManagerRoleName(ManagerRole role) {
  switch (role) {
    case ManagerRole::kOwner:
      return "owner";
    case ManagerRole::kCandidate:
      return "candidate";
  }
  return "owner";
}

std::string EncodeManager(const ManagerRecord& record) {
  json object = json::parse(EncodeOwner(record.owner));
  object["role"] = ManagerRoleName(record.role);
  return object.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
}

Result<ManagerRecord> DecodeManager(std::string_view text) {
  ManagerRecord record;
  auto owner = DecodeOwner(text);
  if (!owner.ok()) {
    return base::DataLossError(
        "the record of a manager is damaged: no JSON object with an epoch");
  }
  record.owner = *std::move(owner);
  const json object = json::parse(text, nullptr, false);
  const std::string role = object.contains("role") && object["role"].is_string()
                               ? object["role"].get<std::string>()
                               : std::string();
  for (const ManagerRole known :
       {ManagerRole::kOwner, ManagerRole::kCandidate}) {
    if (role != ManagerRoleName(known)) continue;
    record.role = known;
    return record;
  }
  return base::DataLossError(
      "the record of a manager is damaged: expected the role owner or "
      "candidate, found '" +
      base::Printable(role) + "'");
}

Status WriteManager(const io::Dir& root, const ManagerRecord& record) {
  const std::string& id = record.owner.manager_id;
  BIM_RETURN_IF_ERROR(base::CheckName(id, "manager id"));
  BIM_RETURN_IF_ERROR(root.MakeDir(kManagersDir, 0755));
  BIM_RETURN_IF_ERROR(root.ReplaceFile(ManagerFile(id), EncodeManager(record)));
  return DropOldest(root, id);
}

Status WriteCandidate(const io::Dir& root, const Disk::Owner& self) {
  ManagerRecord record;
  record.role = ManagerRole::kCandidate;
  record.owner.manager_id = self.manager_id;
  record.owner.version = self.version;
  record.owner.endpoint = self.endpoint;
  record.owner.phase = "candidate";
  record.owner.since_ns =
      std::chrono::duration_cast<std::chrono::nanoseconds>(
          std::chrono::system_clock::now().time_since_epoch())
          .count();
  DescribeSelf(record.owner);
  return WriteManager(root, record);
}

Result<std::vector<FoundManager>> ListManagers(const io::Dir& root) {
  std::vector<FoundManager> all;
  const auto dir = root.OpenDir(kManagersDir);
  if (!dir.ok()) {
    if (dir.status().code() == Code::kNotFound) return all;
    return dir.status();
  }
  BIM_RETURN_IF_ERROR(dir->List([&](std::string_view name, unsigned char) {
    if (!name.ends_with(kSuffix)) return true;
    name.remove_suffix(kSuffix.size());
    if (base::CheckName(name, "manager id").ok()) {
      all.push_back({std::string(name), std::nullopt, ""});
    }
    return all.size() < kMaxListed;
  }));
  std::sort(all.begin(), all.end(),
            [](const FoundManager& a, const FoundManager& b) {
              return a.manager_id < b.manager_id;
            });
  std::set<std::string> gone;
  for (FoundManager& found : all) {
    const std::string name = found.manager_id + std::string(kSuffix);
    const auto text = dir->ReadFile(name, kMaxFile);
    if (text.status().code() == Code::kNotFound) gone.insert(found.manager_id);
    auto record =
        text.ok() ? DecodeManager(*text) : Result<ManagerRecord>(text.status());
    if (!record.ok()) {
      found.error = record.status().message();
    } else if (record->owner.manager_id != found.manager_id) {
      found.error = "it is the record of manager '" +
                    base::Printable(record->owner.manager_id) + "'";
    } else {
      found.record = *std::move(record);
    }
  }
  std::erase_if(all, [&](const FoundManager& found) {
    return gone.count(found.manager_id) != 0;
  });
  return all;
}

Status RemoveManager(const io::Dir& root, const std::string& manager_id) {
  BIM_RETURN_IF_ERROR(base::CheckName(manager_id, "manager id"));
  BIM_RETURN_IF_ERROR(root.RemoveFile(ManagerFile(manager_id)));
  const auto dir = root.OpenDir(kManagersDir);
  if (!dir.ok()) {
    return dir.status().code() == Code::kNotFound ? base::OkStatus()
                                                  : dir.status();
  }
  return dir->Sync();
}

}  // namespace bim::store
