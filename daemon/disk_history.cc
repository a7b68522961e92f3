#include "daemon/disk_history.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "daemon/table.h"
#include "daemon/units.h"

namespace bim::daemon {
namespace {

using Json = nlohmann::ordered_json;

std::string Dump(const Json& json) {
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace

std::vector<HistoryRow> SelectHistory(const std::vector<DiskHistory>& disks,
                                      const std::string& image,
                                      uint64_t limit) {
  std::vector<HistoryRow> rows;
  for (const DiskHistory& disk : disks) {
    for (const store::HistoryEntry& entry : disk.history.entries) {
      if (image.empty() || entry.name == image) {
        rows.push_back({disk.path, entry});
      }
    }
  }
  // Those of one disk stay as they were written, whatever the clock did.
  if (disks.size() > 1) {
    std::stable_sort(rows.begin(), rows.end(),
                     [](const HistoryRow& a, const HistoryRow& b) {
                       return a.entry.time_ns < b.entry.time_ns;
                     });
  }
  if (limit > 0 && rows.size() > limit) {
    rows.erase(rows.begin(), rows.end() - static_cast<ptrdiff_t>(limit));
  }
  return rows;
}

std::string RenderHistory(const std::vector<HistoryRow>& rows) {
  Table table({{"TIME"},
               {"DISK"},
               {"EVENT"},
               {"NAME"},
               {"UUID"},
               {"EPOCH", Table::Align::kRight},
               {"MESSAGE"}});
  for (const HistoryRow& row : rows) {
    const store::HistoryEntry& entry = row.entry;
    table.AddRow({FormatTime(entry.time_ns), row.path,
                  std::string(store::HistoryEventName(entry.what)), entry.name,
                  entry.uuid, std::to_string(entry.epoch), entry.message});
  }
  return table.Render();
}

std::string HistoryJson(const std::vector<DiskHistory>& disks,
                        const std::vector<HistoryRow>& rows) {
  Json json;
  json["entries"] = Json::array();
  for (const HistoryRow& row : rows) {
    const store::HistoryEntry& entry = row.entry;
    json["entries"].push_back({{"time", FormatTimeNs(entry.time_ns)},
                               {"disk", row.path},
                               {"event", store::HistoryEventName(entry.what)},
                               {"name", entry.name},
                               {"uuid", entry.uuid},
                               {"message", entry.message},
                               {"manager_id", entry.manager_id},
                               {"version", entry.version},
                               {"epoch", entry.epoch}});
  }
  json["disks"] = Json::array();
  for (const DiskHistory& disk : disks) {
    json["disks"].push_back({{"path", disk.path},
                             {"uuid", disk.uuid},
                             {"skipped", disk.history.skipped},
                             {"error", disk.status.message()}});
  }
  return Dump(json);
}

std::string RenderPruned(const std::vector<DiskPruned>& disks, bool dry_run) {
  Table table({{"DISK"},
               {dry_run ? "WOULD DROP" : "DROPPED", Table::Align::kRight},
               {"KEPT", Table::Align::kRight}});
  for (const DiskPruned& disk : disks) {
    if (!disk.status.ok()) continue;
    table.AddRow({disk.path, std::to_string(disk.pruned.dropped),
                  std::to_string(disk.pruned.kept)});
  }
  return table.Render();
}

std::string PrunedJson(const std::vector<DiskPruned>& disks, bool dry_run) {
  Json json;
  json["dry_run"] = dry_run;
  json["disks"] = Json::array();
  for (const DiskPruned& disk : disks) {
    json["disks"].push_back({{"path", disk.path},
                             {"uuid", disk.uuid},
                             {"dropped", disk.pruned.dropped},
                             {"kept", disk.pruned.kept},
                             {"error", disk.status.message()}});
  }
  return Dump(json);
}

}  // namespace bim::daemon
