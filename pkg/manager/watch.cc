// Events: revisions, snapshots, subscribers.

#include <algorithm>
#include <charconv>

#include "pkg/manager/manager_impl.h"

namespace bim::manager {
namespace {
// How many removals a watcher may miss before it needs a new snapshot.
constexpr size_t kKeptRemovals = 4096;
}  // namespace

class ManagerImpl::SubscriptionImpl : public Subscription {
 public:
  SubscriptionImpl(ManagerImpl& manager, uint64_t id)
      : manager_(manager), id_(id) {}
  ~SubscriptionImpl() override {
    std::lock_guard lock(manager_.subscribers_mutex_);
    manager_.subscribers_.erase(id_);
  }

 private:
  ManagerImpl& manager_;
  const uint64_t id_;
};

std::unique_ptr<Subscription> ManagerImpl::Subscribe(
    std::function<void()> wake) {
  std::lock_guard lock(subscribers_mutex_);
  const uint64_t id = next_subscriber_++;
  subscribers_.emplace(id, std::move(wake));
  return std::make_unique<SubscriptionImpl>(*this, id);
}

void ManagerImpl::Notify() {
  // Held while calling: what ends a subscription waits for its last wake-up.
  std::lock_guard lock(subscribers_mutex_);
  for (const auto& [id, wake] : subscribers_) wake();
}

void ManagerImpl::Touch(const ImageKey& key, ImageEntry& image) {
  by_revision_.erase(image.revision);
  image.revision = ++revision_;
  by_revision_[image.revision] = key;
}

void ManagerImpl::Forget(const ImageKey& key) {
  const auto it = images_.find(key);
  if (it == images_.end()) return;
  for (auto& [disk_uuid, copy] : it->second.copies) {
    EndVerify(copy, disk_uuid, false, "the image was removed");
  }
  by_revision_.erase(it->second.revision);
  images_.erase(it);
  removed_[++revision_] = key;
  if (removed_.size() > kKeptRemovals) {
    forgotten_removals_ = removed_.begin()->first;
    removed_.erase(removed_.begin());
  }
}

void ManagerImpl::SetState(CopyEntry& copy, CopyState state,
                           std::string message) {
  BIM_CHECK(MayFollow(copy.state, state));
  copy.state = state;
  copy.message = std::move(message);
}

CopyStatus ManagerImpl::CopyStatusOf(const ImageKey& key,
                                     const std::string& disk_uuid,
                                     const CopyEntry& copy) {
  CopyStatus out;
  out.disk_uuid = disk_uuid;
  for (const DiskEntry& disk : disks_) {
    if (disk.expected_uuid == disk_uuid) out.disk_path = disk.path;
  }
  out.file_path = out.disk_path + "/" + store::DataFile(key);
  out.state = copy.state;
  out.message = copy.message;
  out.attempts = copy.retry.attempts;
  out.verify = copy.verify;
  if (copy.state == CopyState::kFailed && !copy.permanent) {
    out.next_attempt = copy.due;
  }
  const auto percent = [](uint64_t done, uint64_t total) -> uint32_t {
    if (total == 0) return 0;
    return static_cast<uint32_t>(
        std::min<uint64_t>(100, done / (total / 100 + 1)));
  };
  uint64_t done = 0, total = 0;
  if (copy.ingest) {
    done = copy.ingest->stored_bytes();
    total = copy.ingest->total_bytes();
  }
  if (copy.scanned && copy.judged) {
    done = copy.scanned->load();
    total = copy.judged->size;
  }
  if (copy.state == CopyState::kReady && copy.record) {
    out.progress = 100;
    out.processed_bytes = copy.record->stamp.size;
    out.real_size = copy.real_size;
    out.origin = copy.record->origin;
    out.verified_at = TimePoint(std::chrono::duration_cast<TimePoint::duration>(
        std::chrono::nanoseconds(copy.record->verified_ns)));
    if (copy.record->verified_ns == 0) out.verified_at.reset();
    if (copy.verify == VerifyState::kRunning) {
      out.verify_progress = percent(done, total);
    }
  } else {
    out.progress = percent(done, total);
    out.processed_bytes = done;
  }
  if (copy.progress) {
    out.wire_bytes = copy.progress->wire_bytes;
    out.reused_bytes = copy.progress->reused_bytes;
    out.encoding = copy.progress->encoding();
    out.encoded_size = copy.progress->encoded_size;
  }
  out.sha512_pending = copy.record && copy.record->sha512_pending;
  return out;
}

ImageStatus ManagerImpl::StatusOf(const ImageKey& key,
                                  const ImageEntry& image) {
  ImageStatus status;
  status.spec = image.spec;
  status.revision = image.revision;
  std::vector<CopyState> states;
  for (const auto& [disk_uuid, copy] : image.copies) {
    if (copy.state == CopyState::kReady && copy.record) {
      if (status.format.empty()) {
        status.format = copy.record->format;
        status.size = copy.record->stamp.size;
        status.virtual_size = copy.record->virtual_size;
        status.current_sha512 = copy.record->sha512;
      }
      if (copy.record->sha256) status.current_sha256 = copy.record->sha256;
      status.real_size = std::max(status.real_size, copy.real_size);
    }
    states.push_back(copy.state);
    status.copies.push_back(CopyStatusOf(key, disk_uuid, copy));
  }
  // Disks that never said who they are: wanted there, nothing known.
  for (const DiskEntry& disk : disks_) {
    if (!disk.expected_uuid.empty() || !image.spec.all_disks) continue;
    CopyStatus out;
    out.disk_path = disk.path;
    out.state = CopyState::kUnknown;
    out.message =
        "disk at " + disk.path + " cannot be used: " + disk.fault.message;
    states.push_back(out.state);
    status.copies.push_back(std::move(out));
  }
  std::sort(status.copies.begin(), status.copies.end(),
            [](const CopyStatus& a, const CopyStatus& b) {
              return a.disk_path < b.disk_path;
            });
  status.state = Aggregate(states);
  for (const CopyStatus& copy : status.copies) {
    if (copy.state == status.state && !copy.message.empty()) {
      status.message = copy.message;
      break;
    }
  }
  return status;
}

WatchPosition ManagerImpl::PositionOf(std::string_view token) {
  WatchPosition position;
  // "<instance>:<revision>"
  if (!token.starts_with(instance_ + ":")) return position;
  token.remove_prefix(instance_.size() + 1);
  uint64_t revision = 0;
  const auto parsed =
      std::from_chars(token.data(), token.data() + token.size(), revision);
  if (parsed.ec != std::errc() || parsed.ptr != token.data() + token.size()) {
    return position;
  }
  Lock lock(mutex_);
  if (revision > revision_) return position;
  position.phase = WatchPosition::Phase::kChanges;
  position.revision = revision;
  return position;
}

std::vector<Event> ManagerImpl::NextEvents(WatchPosition& position,
                                           size_t max) {
  using Phase = WatchPosition::Phase;
  std::vector<Event> events;
  Lock lock(mutex_);
  const auto token = [&](uint64_t revision) {
    return instance_ + ":" + std::to_string(revision);
  };
  if (position.phase == Phase::kChanges &&
      position.revision < forgotten_removals_) {
    position = WatchPosition();
  }
  if (position.phase == Phase::kStart && events.size() < max) {
    position.phase = Phase::kSnapshot;
    position.revision = revision_;
    // Tokens within a snapshot are empty: a snapshot is not resumed half-way.
    events.push_back({Event::Type::kSnapshotBegin, {}, ""});
  }
  if (position.phase == Phase::kSnapshot) {
    auto it = position.last_name.empty()
                  ? images_.begin()
                  : images_.upper_bound(
                        ImageKey{position.last_name, position.last_uuid});
    while (it != images_.end() && events.size() < max) {
      // One that is being written comes as a change when it has been.
      if (!it->second.ensuring) {
        events.push_back(
            {Event::Type::kImage, StatusOf(it->first, it->second), ""});
      }
      position.last_name = it->first.name;
      position.last_uuid = it->first.uuid;
      ++it;
    }
    if (it == images_.end() && events.size() < max) {
      position.phase = Phase::kChanges;
      events.push_back(
          {Event::Type::kSnapshotEnd, {}, token(position.revision)});
    }
  }
  if (position.phase != Phase::kChanges) return events;
  // Both maps are ordered by revision: merge them.
  auto changed = by_revision_.upper_bound(position.revision);
  auto gone = removed_.upper_bound(position.revision);
  while (events.size() < max &&
         (changed != by_revision_.end() || gone != removed_.end())) {
    const bool removal =
        changed == by_revision_.end() ||
        (gone != removed_.end() && gone->first < changed->first);
    Event event;
    if (removal) {
      event.type = Event::Type::kRemoved;
      event.image.spec.name = gone->second.name;
      event.image.spec.uuid = gone->second.uuid;
      event.image.revision = gone->first;
      position.revision = gone->first;
      ++gone;
    } else {
      const ImageEntry& image = images_.find(changed->second)->second;
      const bool shown = !image.ensuring;  // else it changes once more
      if (shown) {
        event.type = Event::Type::kImage;
        event.image = StatusOf(changed->second, image);
      }
      position.revision = changed->first;
      ++changed;
      if (!shown) continue;
    }
    event.resume_token = token(position.revision);
    events.push_back(std::move(event));
  }
  return events;
}

}  // namespace bim::manager
