#include "daemon/disk_managers.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "daemon/table.h"
#include "daemon/units.h"

namespace bim::daemon {
namespace {

using Json = nlohmann::ordered_json;

Life LifeOf(const store::OwnerRecord& record) {
  const std::optional<bool> alive = store::IsAlive(record);
  if (!alive) return Life::kUnknown;
  return *alive ? Life::kAlive : Life::kDead;
}

std::string ApiVersions(const store::OwnerRecord& record) {
  return fmt::format("{} to {}", record.api_min_version, record.api_version);
}

std::string Dump(const Json& json) {
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace

std::string_view StandingName(Standing standing) {
  switch (standing) {
    case Standing::kOwner:
      return "owner";
    case Standing::kLastOwner:
      return "last owner";
    case Standing::kWasOwner:
      return "was owner";
    case Standing::kCandidate:
      return "candidate";
    case Standing::kDamaged:
      return "damaged";
  }
  return "damaged";
}

std::string_view LifeName(Life life) {
  switch (life) {
    case Life::kAlive:
      return "alive";
    case Life::kDead:
      return "dead";
    case Life::kUnknown:
      return "unknown";
  }
  return "unknown";
}

std::vector<ManagerRow> JudgeManagers(
    const std::optional<store::OwnerRecord>& owner, bool owned,
    const std::vector<store::FoundManager>& found) {
  std::vector<ManagerRow> rows;
  if (owner) {
    ManagerRow row;
    row.manager_id = owner->manager_id;
    row.record = *owner;
    row.standing = owned ? Standing::kOwner : Standing::kLastOwner;
    row.life = owned ? Life::kAlive : LifeOf(*owner);
    // Wherever it was, it would hold the lock.
    if (row.life == Life::kUnknown) row.life = Life::kDead;
    rows.push_back(std::move(row));
  }
  for (const store::FoundManager& one : found) {
    // The owner record is the newer one of the two.
    if (owner && one.manager_id == owner->manager_id) continue;
    ManagerRow row;
    row.manager_id = one.manager_id;
    row.error = one.error;
    if (one.record) {
      row.record = one.record->owner;
      row.standing = one.record->role == store::ManagerRole::kCandidate
                         ? Standing::kCandidate
                         : Standing::kWasOwner;
      row.life = LifeOf(one.record->owner);
    }
    rows.push_back(std::move(row));
  }
  std::stable_sort(rows.begin() + (owner ? 1 : 0), rows.end(),
                   [](const ManagerRow& a, const ManagerRow& b) {
                     return (a.record ? a.record->since_ns : 0) >
                            (b.record ? b.record->since_ns : 0);
                   });
  return rows;
}

CleanupStep PlanCleanup(const ManagerRow& row, bool force) {
  switch (row.standing) {
    case Standing::kOwner:
      return {false, "the owner"};
    case Standing::kLastOwner:
      return {false, "the last owner: the next one takes the disk from it"};
    case Standing::kDamaged:
      return {force, force ? "damaged; forced" : "damaged: use --force"};
    case Standing::kWasOwner:
    case Standing::kCandidate:
      break;
  }
  switch (row.life) {
    case Life::kAlive:
      return {false, "it lives"};
    case Life::kDead:
      return {true, "it is dead"};
    case Life::kUnknown:
      break;
  }
  return {force, force ? "it cannot be seen from here; forced"
                       : "it cannot be seen from here, being in another pid "
                         "namespace: use --force when it is gone"};
}

std::string RenderManagers(const std::vector<DiskManagers>& disks) {
  Table table({{"DISK"},
               {"MANAGER"},
               {"ROLE"},
               {"LIFE"},
               {"VERSION"},
               {"API"},
               {"EPOCH", Table::Align::kRight},
               {"PID", Table::Align::kRight},
               {"SINCE"},
               {"MESSAGE"}});
  for (const DiskManagers& disk : disks) {
    for (const ManagerRow& row : disk.managers) {
      std::vector<std::string> cells = {disk.path, row.manager_id,
                                        std::string(StandingName(row.standing)),
                                        std::string(LifeName(row.life))};
      if (const auto& record = row.record) {
        cells.insert(cells.end(), {record->version, ApiVersions(*record),
                                   std::to_string(record->epoch),
                                   std::to_string(record->pid),
                                   FormatTime(record->since_ns)});
      } else {
        cells.resize(cells.size() + 5);
      }
      cells.push_back(row.error);
      table.AddRow(std::move(cells));
    }
  }
  return table.Render();
}

std::string ManagersJson(const std::vector<DiskManagers>& disks) {
  Json json;
  json["disks"] = Json::array();
  for (const DiskManagers& disk : disks) {
    Json managers = Json::array();
    for (const ManagerRow& row : disk.managers) {
      const store::OwnerRecord record =
          row.record.value_or(store::OwnerRecord());
      managers.push_back(
          {{"manager_id", row.manager_id},
           {"role", StandingName(row.standing)},
           {"life", LifeName(row.life)},
           {"version", record.version},
           {"api_version", record.api_version},
           {"api_min_version", record.api_min_version},
           {"epoch", record.epoch},
           {"pid", record.pid},
           {"pid_namespace", record.pid_namespace},
           {"endpoint", record.endpoint},
           {"since", row.record ? FormatTimeNs(record.since_ns) : ""},
           {"error", row.error}});
    }
    json["disks"].push_back({{"path", disk.path},
                             {"uuid", disk.uuid},
                             {"owned", disk.owned},
                             {"managers", std::move(managers)},
                             {"error", disk.status.message()}});
  }
  return Dump(json);
}

std::string RenderCleaned(const std::vector<DiskCleaned>& disks, bool dry_run) {
  Table table({{"DISK"}, {"MANAGER"}, {"ROLE"}, {"LIFE"}, {"RECORD"}, {"WHY"}});
  for (const DiskCleaned& disk : disks) {
    for (const CleanedManager& one : disk.managers) {
      table.AddRow({disk.path, one.row.manager_id,
                    std::string(StandingName(one.row.standing)),
                    std::string(LifeName(one.row.life)),
                    !one.step.remove ? "kept"
                    : dry_run        ? "would be removed"
                                     : "removed",
                    one.step.why});
    }
  }
  return table.Render();
}

std::string CleanedJson(const std::vector<DiskCleaned>& disks, bool dry_run) {
  Json json;
  json["dry_run"] = dry_run;
  json["disks"] = Json::array();
  for (const DiskCleaned& disk : disks) {
    Json removed = Json::array();
    Json kept = Json::array();
    for (const CleanedManager& one : disk.managers) {
      (one.step.remove ? removed : kept)
          .push_back({{"manager_id", one.row.manager_id},
                      {"role", StandingName(one.row.standing)},
                      {"life", LifeName(one.row.life)},
                      {"why", one.step.why}});
    }
    json["disks"].push_back({{"path", disk.path},
                             {"uuid", disk.uuid},
                             {"removed", std::move(removed)},
                             {"kept", std::move(kept)},
                             {"error", disk.status.message()}});
  }
  return Dump(json);
}

}  // namespace bim::daemon
