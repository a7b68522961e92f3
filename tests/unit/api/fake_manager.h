// A manager of images in memory, scripted by the test: what the faces call.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "pkg/manager/manager.h"

namespace bim::api {

class FakeManager final : public manager::Manager {
 public:
  // Set before the server starts.
  base::Status fail;         // of every call that can fail, when not OK
  size_t message_bytes = 0;  // of each image

  // What was asked for last.
  manager::ImageSpec ensured;
  std::string disk_path, disk_uuid, name, uuid, disk, token;
  bool flag = false;  // init or force
  std::vector<std::string> verify_disks;
  manager::DirectedSpec directed_spec;
  manager::DirectedStatus directed;
  std::string directed_disk;
  manager::Limits limits;

  // What Open and Manifest give.
  std::string file = "/dev/null";
  uint64_t file_size = 512;
  const std::shared_ptr<exec::Turns> turns = exec::Turns::Make(1);
  const std::shared_ptr<exec::RateLimiter> rate =
      std::make_shared<exec::RateLimiter>();
  store::ImageRecord record;

  // The one upload: it is done when all bytes of its size came, or when it is
  // said to be complete.
  manager::UploadStatus upload;
  std::string uploaded;
  int uploads = 0;  // running
  bool complete = false;
  base::Status begin_fail, append_fail, finish_fail;

  std::atomic<int> next_events{0};
  std::atomic<int> events_given{0};
  std::atomic<size_t> largest_batch{0};
  std::atomic<int> subscriptions{0};
  std::atomic<int> verifications{0};
  std::atomic<int> blocked{0};

  // Makes calls that block wait until the gate is opened.
  void CloseGate() {
    std::lock_guard lock(mutex_);
    gate_open_ = false;
  }
  void OpenGate() {
    {
      std::lock_guard lock(mutex_);
      gate_open_ = true;
    }
    gate_.notify_all();
  }

  // Adds or changes an image, and wakes the subscribers.
  void Put(const std::string& image_name,
           manager::CopyState state = manager::CopyState::kReady) {
    {
      std::lock_guard lock(mutex_);
      manager::ImageStatus& image = images_[image_name];
      image.spec.name = image_name;
      image.spec.uuid = "u-" + image_name;
      image.state = state;
      image.message.assign(message_bytes, 'm');
      image.revision = ++revision_;
    }
    Wake();
  }
  void SetProgress(manager::VerifyProgress progress) {
    {
      std::lock_guard lock(mutex_);
      progress_ = std::move(progress);
    }
    Wake();
  }
  void Wake() {
    std::lock_guard lock(subscribers_->mutex);
    for (auto& [id, wake] : subscribers_->wakes) wake();
  }

  void Start() override {}
  void BeginStop() override {}
  void Stop() override {}

  std::vector<manager::DiskStatus> ListDisks() override {
    return {
        {.uuid = "d1", .path = "/disks/1", .state = "ready"},
        {.path = "/disks/2", .state = "missing", .message = "no directory"}};
  }
  base::Result<manager::DiskStatus> AddDisk(const std::string& path,
                                            const std::string& with_uuid,
                                            bool init) override {
    Block();
    disk_path = path;
    disk_uuid = with_uuid;
    flag = init;
    if (!fail.ok()) return fail;
    return manager::DiskStatus{
        .uuid = with_uuid, .path = path, .state = "ready"};
  }
  base::Result<std::vector<manager::AdoptedImage>> Adopt(
      std::string_view of, bool dry_run) override {
    Block();
    disk = of;
    flag = dry_run;
    if (!fail.ok()) return fail;
    return adopted;
  }
  std::vector<manager::AdoptedImage> adopted;
  std::vector<std::string> Running() override { return {}; }
  base::Status RemoveDisk(const std::string& uuid_or_path,
                          bool force) override {
    Block();
    disk = uuid_or_path;
    flag = force;
    return fail;
  }
  base::Result<Ensured> Ensure(manager::ImageSpec spec) override {
    Block();
    ensured = spec;
    if (!fail.ok()) return fail;
    Ensured result;
    result.image.spec = std::move(spec);
    result.created = true;
    return result;
  }
  base::Result<manager::ImageStatus> Get(std::string_view image_name,
                                         std::string_view) override {
    if (!fail.ok()) return fail;
    std::lock_guard lock(mutex_);
    auto found = images_.find(std::string(image_name));
    if (found == images_.end()) {
      return base::NotFoundError("cannot find image " +
                                 std::string(image_name));
    }
    return found->second;
  }
  base::Result<Page> List(uint32_t page_size,
                          std::string_view page_token) override {
    if (!fail.ok()) return fail;
    if (page_size > 1000) {
      return base::InvalidArgumentError("page_size is over 1000");
    }
    std::lock_guard lock(mutex_);
    Page page;
    for (auto it = images_.upper_bound(std::string(page_token));
         it != images_.end(); ++it) {
      if (page.images.size() == page_size) {
        page.next_page_token = page.images.back().spec.name;
        break;
      }
      page.images.push_back(it->second);
    }
    return page;
  }
  base::Status Remove(std::string_view image_name, std::string_view image_uuid,
                      bool force) override {
    Block();
    name = image_name;
    uuid = image_uuid;
    flag = force;
    return fail;
  }
  base::Result<uint64_t> StartVerify(std::string_view image_name,
                                     std::string_view image_uuid,
                                     const std::vector<std::string>& disks,
                                     bool repair) override {
    if (!fail.ok()) return fail;
    name = image_name;
    uuid = image_uuid;
    flag = repair;
    verify_disks = disks;
    ++verifications;
    return uint64_t{7};
  }
  base::Result<store::ImageRecord> Manifest(
      std::string_view image_name, std::string_view image_uuid) override {
    name = image_name;
    uuid = image_uuid;
    if (!fail.ok()) return fail;
    return record;
  }
  base::Result<manager::UploadStatus> GetUpload(
      std::string_view image_name, std::string_view image_uuid) override {
    name = image_name;
    uuid = image_uuid;
    if (!fail.ok()) return fail;
    return upload;
  }
  base::Result<std::unique_ptr<manager::Upload>> BeginUpload(
      std::string_view image_name, std::string_view image_uuid, uint64_t offset,
      std::optional<uint64_t> size, std::string_view /*disk*/) override {
    name = image_name;
    uuid = image_uuid;
    if (!begin_fail.ok()) return begin_fail;
    if (offset == 0) upload = {};
    if (offset != upload.offset) {
      return base::OutOfRangeError("expected another offset");
    }
    if (size) upload.size = size;
    uploaded.resize(offset);
    ++uploads;
    return std::unique_ptr<manager::Upload>(
        std::make_unique<FakeUpload>(*this));
  }
  base::Result<manager::DirectedStatus> Direct(
      manager::DirectedSpec spec) override {
    directed_spec = std::move(spec);
    if (!fail.ok()) return fail;
    return directed;
  }
  base::Result<manager::DirectedStatus> GetDirected(
      std::string_view disk, std::string_view image_name,
      std::string_view image_uuid) override {
    directed_disk = disk;
    name = image_name;
    uuid = image_uuid;
    if (!fail.ok()) return fail;
    return directed;
  }
  base::Status VisitDirected(
      std::string_view disk,
      const std::function<void(const manager::DirectedStatus&)>& visit)
      override {
    directed_disk = disk;
    if (fail.ok()) visit(directed);
    return fail;
  }
  base::Status RemoveDirected(std::string_view disk,
                              std::string_view image_name,
                              std::string_view image_uuid) override {
    directed_disk = disk;
    name = image_name;
    uuid = image_uuid;
    return fail;
  }
  base::Result<std::string> DirectedDiskUuid(std::string_view disk) override {
    directed_disk = disk;
    if (!fail.ok()) return fail;
    return std::string("disk-1");
  }
  base::Status ForgetDirected(std::string_view disk,
                              std::string_view image_name,
                              std::string_view image_uuid) override {
    return RemoveDirected(disk, image_name, image_uuid);
  }
  base::Status SendDirected(std::string_view disk, std::string_view image_name,
                            std::string_view image_uuid,
                            const std::string& /*to*/) override {
    return RemoveDirected(disk, image_name, image_uuid);
  }
  void Hold(const std::string&) override {}
  void Unhold() override {}
  bool AwaitIdle(std::chrono::milliseconds) override { return true; }
  bool ReleaseDisks() override { return true; }
  base::Status PutHandover(const store::HandoverRecord&) override {
    return fail;
  }
  void ForgetHandover() override {}
  void CheckDisksNow() override {}
  manager::Limits GetLimits() override { return limits; }
  base::Status SetLimits(const manager::Limits& wanted) override {
    limits = wanted;
    return fail;
  }
  base::Result<manager::VerifyProgress> VerifyProgressOf(uint64_t id) override {
    if (id != 7) return base::NotFoundError("cannot find verification");
    std::lock_guard lock(mutex_);
    return progress_;
  }

  // Tokens are "r<revision>"; the snapshot is sent in one piece.
  manager::WatchPosition PositionOf(std::string_view resume_token) override {
    manager::WatchPosition position;
    if (resume_token.starts_with("r")) {
      position.phase = manager::WatchPosition::Phase::kChanges;
      position.revision = std::stoull(std::string(resume_token.substr(1)));
    }
    return position;
  }
  std::vector<manager::Event> NextEvents(manager::WatchPosition& position,
                                         size_t max) override {
    ++next_events;
    std::lock_guard lock(mutex_);
    std::vector<manager::Event> events;
    using Type = manager::Event::Type;
    if (position.phase == manager::WatchPosition::Phase::kStart) {
      events.push_back({.type = Type::kSnapshotBegin});
      position.phase = manager::WatchPosition::Phase::kSnapshot;
    }
    if (position.phase == manager::WatchPosition::Phase::kSnapshot) {
      auto it = images_.upper_bound(position.last_name);
      for (; it != images_.end() && events.size() < max; ++it) {
        position.last_name = it->first;
        position.revision = std::max(position.revision, it->second.revision);
        events.push_back({.type = Type::kImage, .image = it->second});
      }
      if (it == images_.end() && events.size() < max) {
        position.phase = manager::WatchPosition::Phase::kChanges;
        position.revision = revision_;
        events.push_back({.type = Type::kSnapshotEnd,
                          .resume_token = "r" + std::to_string(revision_)});
      }
    } else {
      std::map<uint64_t, const manager::ImageStatus*> changed;
      for (const auto& [key, image] : images_) {
        if (image.revision > position.revision) {
          changed.emplace(image.revision, &image);
        }
      }
      for (const auto& [revision, image] : changed) {
        if (events.size() == max) break;
        position.revision = revision;
        events.push_back({.type = Type::kImage,
                          .image = *image,
                          .resume_token = "r" + std::to_string(revision)});
      }
    }
    events_given += static_cast<int>(events.size());
    largest_batch = std::max(largest_batch.load(), events.size());
    return events;
  }
  std::unique_ptr<manager::Subscription> Subscribe(
      std::function<void()> wake) override {
    std::lock_guard lock(subscribers_->mutex);
    const int id = ++subscribers_->last;
    subscribers_->wakes.emplace(id, std::move(wake));
    ++subscriptions;
    return std::make_unique<FakeSubscription>(*this, id);
  }
  base::Result<manager::OpenImage> Open(std::string_view image_name,
                                        std::string_view image_uuid,
                                        std::string_view on_disk) override {
    name = image_name;
    uuid = image_uuid;
    disk = on_disk;
    if (!fail.ok()) return fail;
    manager::OpenImage image;
    image.fd = base::UniqueFd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat st = {};
    if (::fstat(image.fd.get(), &st) == 0) image.stamp = store::StampOf(st);
    image.stamp.size = file_size;
    image.sha512_hex = "ab12";
    image.turns = image.downloads = turns;
    image.rate = rate;
    return image;
  }

 private:
  class FakeUpload final : public manager::Upload {
   public:
    explicit FakeUpload(FakeManager& manager) : manager_(manager) {}
    ~FakeUpload() override { --manager_.uploads; }
    base::Status Append(std::span<const std::byte> data) override {
      if (!manager_.append_fail.ok()) return manager_.append_fail;
      manager_.uploaded.append(reinterpret_cast<const char*>(data.data()),
                               data.size());
      manager_.upload.offset = manager_.uploaded.size();
      return base::OkStatus();
    }
    base::Result<manager::UploadStatus> Finish(bool complete) override {
      if (!manager_.finish_fail.ok()) return manager_.finish_fail;
      manager_.complete = complete;
      manager_.upload.done =
          complete || manager_.upload.offset == manager_.upload.size;
      return manager_.upload;
    }
    void Break(const base::Status& /*why*/) override {}

   private:
    FakeManager& manager_;
  };
  struct Subscribers {
    std::mutex mutex;  // held while waking: an unsubscribe waits for it
    int last = 0;
    std::map<int, std::function<void()>> wakes;
  };
  class FakeSubscription final : public manager::Subscription {
   public:
    FakeSubscription(FakeManager& manager, int id)
        : manager_(manager), id_(id) {}
    ~FakeSubscription() override {
      std::lock_guard lock(manager_.subscribers_->mutex);
      manager_.subscribers_->wakes.erase(id_);
      --manager_.subscriptions;
    }

   private:
    FakeManager& manager_;
    const int id_;
  };

  void Block() {
    std::unique_lock lock(mutex_);
    ++blocked;
    gate_.wait(lock, [this] { return gate_open_; });
    --blocked;
  }

  std::mutex mutex_;
  std::condition_variable gate_;
  bool gate_open_ = true;
  std::map<std::string, manager::ImageStatus> images_;
  uint64_t revision_ = 0;
  manager::VerifyProgress progress_;
  const std::unique_ptr<Subscribers> subscribers_ =
      std::make_unique<Subscribers>();
};

}  // namespace bim::api
