#include "pkg/store/handover.h"

#include <chrono>
#include <nlohmann/json.hpp>

#include "pkg/base/failpoint.h"
#include "pkg/base/log.h"
#include "pkg/store/layout.h"

namespace bim::store {
namespace {

using base::Code;
using base::Result;
using base::Status;
using nlohmann::json;

constexpr size_t kMaxFile = 64 * 1024;
constexpr HandoverPhase kPhases[] = {HandoverPhase::kBegun,
                                     HandoverPhase::kConfirmed,
                                     HandoverPhase::kRolledBack};

}  // namespace

std::string_view HandoverPhaseName(HandoverPhase phase) {
  switch (phase) {
    case HandoverPhase::kBegun:
      return "begun";
    case HandoverPhase::kConfirmed:
      return "confirmed";
    case HandoverPhase::kRolledBack:
      return "rolled-back";
  }
  return "begun";
}

std::string EncodeHandover(const HandoverRecord& record) {
  return json{{"id", record.id},
              {"phase", HandoverPhaseName(record.phase)},
              {"automatic", record.automatic},
              {"owner", record.owner},
              {"ownerVersion", record.owner_version},
              {"candidate", record.candidate},
              {"candidateVersion", record.candidate_version},
              {"candidateEndpoint", record.candidate_endpoint},
              {"sinceNs", record.since_ns}}
             .dump(-1, ' ', false, json::error_handler_t::replace) +
         "\n";
}

Result<HandoverRecord> DecodeHandover(std::string_view text) {
  const json object = json::parse(text, nullptr, false);
  HandoverRecord record;
  try {
    object.at("id").get_to(record.id);
    object.at("automatic").get_to(record.automatic);
    object.at("owner").get_to(record.owner);
    object.at("ownerVersion").get_to(record.owner_version);
    object.at("candidate").get_to(record.candidate);
    object.at("candidateVersion").get_to(record.candidate_version);
    object.at("candidateEndpoint").get_to(record.candidate_endpoint);
    object.at("sinceNs").get_to(record.since_ns);
    const auto name = object.at("phase").get<std::string>();
    for (const HandoverPhase phase : kPhases) {
      if (HandoverPhaseName(phase) != name) continue;
      record.phase = phase;
      return record;
    }
    return base::DataLossError("the hand-over's phase is '" + name +
                               "': expected begun, confirmed or rolled-back");
  } catch (const json::exception& error) {
    return base::DataLossError(
        std::string("the record of the hand-over is damaged: ") + error.what());
  }
}

HistoryEntry ToHistory(const HandoverRecord& record) {
  HistoryEntry entry;
  switch (record.phase) {
    case HandoverPhase::kBegun:
      entry.what = HistoryEvent::kBegun;
      break;
    case HandoverPhase::kConfirmed:
      entry.what = HistoryEvent::kConfirmed;
      break;
    case HandoverPhase::kRolledBack:
      entry.what = HistoryEvent::kRolledBack;
      break;
  }
  entry.message = std::string(record.automatic ? "automatic " : "") +
                  "hand-over " + record.id + " from manager " + record.owner +
                  " (version " + record.owner_version + ") to manager " +
                  record.candidate + " (version " + record.candidate_version +
                  ")";
  return entry;
}

Result<std::optional<HandoverRecord>> ReadHandover(const io::Dir& root) {
  const auto text = root.ReadFile(kHandoverFile, kMaxFile);
  if (!text.ok()) {
    if (text.status().code() == Code::kNotFound)
      return std::optional<HandoverRecord>();
    return text.status();
  }
  auto record = DecodeHandover(*text);
  if (!record.ok()) {
    return record.status().WithContext(root.path() + "/" + kHandoverFile);
  }
  return std::optional(*std::move(record));
}

Status WriteHandover(const io::Dir& root, HandoverRecord record) {
  record.since_ns = std::chrono::duration_cast<std::chrono::nanoseconds>(
                        std::chrono::system_clock::now().time_since_epoch())
                        .count();
  BIM_FAILPOINT("store.handover.writing");
  BIM_RETURN_IF_ERROR(root.ReplaceFile(kHandoverFile, EncodeHandover(record)));
  BIM_FAILPOINT("store.handover.written");
  return base::OkStatus();
}

Status DecideHandover(const io::Dir& root, const HandoverRecord& record,
                      const std::string& manager_id,
                      const std::string& version) {
  BIM_RETURN_IF_ERROR(WriteHandover(root, record));
  HistoryEntry entry = ToHistory(record);
  entry.manager_id = manager_id;
  entry.version = version;
  if (const Status told = AppendHistory(root, entry); !told.ok()) {
    BIM_LOG_WARN("{}: its history lacks a hand-over: {}", root.path(),
                 told.message());
  }
  return base::OkStatus();
}

Status RemoveHandover(const io::Dir& root) {
  BIM_FAILPOINT("store.handover.removing");
  BIM_RETURN_IF_ERROR(root.RemoveFile(kHandoverFile));
  BIM_ASSIGN_OR_RETURN(const io::Dir dir, root.OpenDir(kBimDir));
  return dir.Sync();
}

ClaimVerdict MayClaim(const std::optional<HandoverRecord>& record,
                      std::string_view manager_id) {
  // (Of an automatic one the lock alone decides: a manager that keeps no
  // identity must be able to come back.)
  if (!record || record->automatic) return ClaimVerdict::kYes;
  const bool owner = record->owner == manager_id;
  const bool candidate = record->candidate == manager_id;
  switch (record->phase) {
    case HandoverPhase::kConfirmed:
      return candidate ? ClaimVerdict::kYes : ClaimVerdict::kNo;
    case HandoverPhase::kRolledBack:
      return owner ? ClaimVerdict::kYes : ClaimVerdict::kNo;
    case HandoverPhase::kBegun:
      break;
  }
  return owner || candidate ? ClaimVerdict::kUndecided : ClaimVerdict::kNo;
}

}  // namespace bim::store
