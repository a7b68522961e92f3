#include "daemon/disk_migrated.h"

#include <nlohmann/json.hpp>

#include "daemon/table.h"

namespace bim::daemon {

std::string RenderMigrated(const std::vector<DiskMigrated>& disks,
                           bool dry_run) {
  Table table({{"DISK"},
               {"FORMAT", Table::Align::kRight},
               {"RESULT"},
               {"OLD METADATA"}});
  for (const DiskMigrated& disk : disks) {
    if (!disk.status.ok()) continue;
    const store::Migration& migration = disk.migration;
    const std::string to = std::to_string(migration.to);
    table.AddRow(
        {disk.path, std::to_string(migration.from),
         migration.from == migration.to ? "nothing to migrate"
         : dry_run                      ? "would be migrated to " + to
                                        : "migrated to " + to,
         migration.backup.empty() ? "" : disk.path + "/" + migration.backup});
  }
  return table.Render();
}

std::string MigratedJson(const std::vector<DiskMigrated>& disks, bool dry_run) {
  using Json = nlohmann::ordered_json;
  Json json;
  json["dry_run"] = dry_run;
  json["disks"] = Json::array();
  for (const DiskMigrated& disk : disks) {
    const store::Migration& migration = disk.migration;
    json["disks"].push_back(
        {{"path", disk.path},
         {"uuid", disk.uuid},
         {"from", migration.from},
         {"to", migration.to},
         {"backup", migration.backup},
         {"changed", disk.status.ok() && migration.from != migration.to},
         {"error", disk.status.message()}});
  }
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace bim::daemon
