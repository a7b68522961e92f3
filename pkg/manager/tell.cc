// What happened to images, told to the histories of their disks.

#include "pkg/base/log.h"
#include "pkg/http/client.h"
#include "pkg/manager/manager_impl.h"

namespace bim::manager {
namespace {

// Where its bytes come from, without secrets.
std::string DescribeSource(const ImageSpec& spec) {
  const SourceSpec& source = spec.source;
  std::string text = spec.directed ? "directed" : "wanted";
  if (source.upload) text += ", by an upload";
  if (!source.peers.empty()) {
    text += ", from peer " + source.peers.front();
    if (source.peers.size() > 1) text += " and others";
  }
  if (!source.url.empty()) text += ", from " + http::RedactUrl(source.url);
  if (!source.clone_name.empty()) {
    text +=
        ", from image " + source.clone_name + " (" + source.clone_uuid + ")";
  }
  if (source.volume) text += ", from a volume";
  if (source.data_source) text += ", from a data source";
  return text;
}

void TellOfDisk(const store::Disk& disk, store::HistoryEntry entry) {
  const std::string_view what = store::HistoryEventName(entry.what);
  if (const base::Status told = store::AppendHistory(disk, std::move(entry));
      !told.ok()) {
    BIM_LOG_WARN("disk {}: its history lacks that it was {}: {}", disk.uuid(),
                 what, told.message());
  }
}

}  // namespace

void ManagerImpl::Tell(const store::Disk& disk, store::HistoryEvent what,
                       const ImageKey& key, const std::string& message) {
  // (That one is ready, or failed, is logged with what it took.)
  if (what == store::HistoryEvent::kCreated ||
      what == store::HistoryEvent::kRemoved) {
    BIM_LOG_INFO("image {} ({}) on disk {}: {}{}{}", key.name, key.uuid,
                 disk.uuid(), store::HistoryEventName(what),
                 message.empty() ? "" : ": ", message);
  }
  store::HistoryEntry entry;
  entry.what = what;
  entry.name = key.name;
  entry.uuid = key.uuid;
  entry.message = message;
  if (const base::Status told = store::AppendHistory(disk, std::move(entry));
      !told.ok()) {
    BIM_LOG_WARN("disk {}: its history lacks that image {} is {}: {}",
                 disk.uuid(), key.name, store::HistoryEventName(what),
                 told.message());
  }
}

void ManagerImpl::TellAll(const std::vector<Happened>& happened) {
  for (const Happened& one : happened) {
    Tell(*one.disk, one.what, one.key, one.message);
  }
}

void ManagerImpl::AddFailure(std::vector<Happened>& happened,
                             const std::shared_ptr<store::Disk>& disk,
                             const ImageKey& key, CopyEntry& copy) {
  if (!disk || copy.state != CopyState::kFailed ||
      copy.told_failure == copy.message) {
    return;
  }
  copy.told_failure = copy.message;
  happened.push_back({disk, store::HistoryEvent::kFailed, key, copy.message});
}

void ManagerImpl::TellCreated(const store::Disk& disk, const ImageKey& key,
                              const ImageSpec& spec, CopyEntry& copy) {
  Tell(disk, store::HistoryEvent::kCreated, key, DescribeSource(spec));
  if (copy.state == CopyState::kReady) {
    Tell(disk, store::HistoryEvent::kReady, key,
         copy.record ? "found: " + copy.record->origin : "found");
  } else if (copy.state == CopyState::kFailed) {
    Tell(disk, store::HistoryEvent::kFailed, key, copy.message);
    copy.told_failure = copy.message;
  }
}

void ManagerImpl::TellHandedOver(const store::Disk& disk) {
  const auto record = store::ReadHandover(disk.root());
  if (!record.ok() || !*record) return;
  store::HistoryEntry entry;
  entry.what = store::HistoryEvent::kHandedOver;
  entry.message = "to manager " + (**record).candidate + " (version " +
                  (**record).candidate_version + ")";
  TellOfDisk(disk, std::move(entry));
}

void ManagerImpl::TellTakenOver(const store::Disk& disk,
                                const std::string& images) {
  if (!disk.taken_over() || !disk.predecessor()) return;
  const store::OwnerRecord& before = *disk.predecessor();
  store::HistoryEntry entry;
  entry.what = store::HistoryEvent::kTakenOver;
  entry.message =
      fmt::format("{}; before: manager {}, version {}, epoch {}", images,
                  before.manager_id, before.version, before.epoch);
  TellOfDisk(disk, std::move(entry));
}

}  // namespace bim::manager
