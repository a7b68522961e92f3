// A manager on two disks, with an event loop of its own, for the tests of it.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "pkg/manager/manager.h"
#include "pkg/store/layout.h"
#include "tests/unit/store/scratch.h"

namespace bim::manager {

using base::Code;
using test::Exists;
using test::RandomBytes;
using test::ReadAll;
using test::Sha512;
using test::TempDir;
using test::WriteAll;
using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr uint64_t kMiB = 1024 * 1024;
constexpr std::chrono::seconds kDeadline{30};

class ManagerTest : public ::testing::Test {
 protected:
  ManagerTest() {
    for (const char* disk : {"a", "b"}) {
      test::InitDisk(dir_ / disk, std::string("disk-") + disk);
    }
    std::filesystem::create_directory(dir_ / "state");
    std::filesystem::create_directory(dir_ / "src");
    options_.manager_id = "manager-1";
    options_.version = "0";
    options_.state_dir = dir_ / "state";
    options_.disk_paths = {dir_ / "a", dir_ / "b"};
    options_.backoff_first = std::chrono::milliseconds(100);
    options_.backoff_max = std::chrono::milliseconds(400);
    options_.disk_check_interval = std::chrono::milliseconds(20);
    options_.transfer.allow_file = true;
    options_.transfer.retry.first = std::chrono::milliseconds(2);
    options_.transfer.retry.max = std::chrono::milliseconds(5);
    WriteAll(Source(), content_);
  }
  ~ManagerTest() override { End(); }

  void Begin() {
    auto manager = Manager::Create(options_, loop_);
    ASSERT_TRUE(manager.ok()) << manager.status().ToString();
    manager_ = *std::move(manager);
    subscription_ = manager_->Subscribe([this] {
      std::lock_guard lock(mutex_);
      ++wakes_;
      changed_.notify_all();
    });
    manager_->Start();
  }
  void End() {
    if (!manager_) return;
    manager_->Stop();
    subscription_.reset();
    manager_.reset();
  }
  void Restart() {
    End();
    Begin();
  }
  // Waits until `done`, looked at after every wake-up.
  bool WaitFor(const std::function<bool()>& done) {
    const auto deadline = std::chrono::steady_clock::now() + kDeadline;
    while (true) {
      uint64_t seen = 0;
      {
        std::lock_guard lock(mutex_);
        seen = wakes_;
      }
      if (done()) return true;
      std::unique_lock lock(mutex_);
      if (!changed_.wait_until(lock, deadline,
                               [&] { return wakes_ != seen; })) {
        return false;
      }
    }
  }
  ImageStatus Status(const std::string& name = "debian") {
    const auto got = manager_->Get(name, "");
    return got.ok() ? *got : ImageStatus();
  }
  ::testing::AssertionResult Reaches(CopyState state,
                                     const std::string& name = "debian") {
    if (WaitFor([&] {
          const ImageStatus status = Status(name);
          return !status.copies.empty() && status.state == state;
        })) {
      return ::testing::AssertionSuccess();
    }
    const ImageStatus status = Status(name);
    auto failure = ::testing::AssertionFailure()
                   << "still " << CopyStateName(status.state) << " '"
                   << status.message << "'";
    for (const CopyStatus& copy : status.copies) {
      failure << "\n  " << copy.disk_path << ": " << CopyStateName(copy.state)
              << " '" << copy.message << "'";
    }
    return failure;
  }
  ImageSpec Spec(const std::string& name = "debian") {
    ImageSpec spec;
    spec.name = name;
    spec.uuid = "u-" + name;
    spec.source.url = "file://" + Source();
    return spec;
  }
  void MakeReady(ImageSpec spec) {
    const auto ensured = manager_->Ensure(spec);
    ASSERT_TRUE(ensured.ok()) << ensured.status().ToString();
    ASSERT_TRUE(Reaches(CopyState::kReady, spec.name));
  }
  std::string Source() { return dir_ / "src/a.raw"; }
  std::string File(const std::string& disk,
                   const std::string& name = "debian") {
    return dir_ / (disk + "/" + store::DataFile({name, "u-" + name}));
  }
  const CopyStatus& CopyOn(const ImageStatus& status, const std::string& disk) {
    static const CopyStatus kNone;
    for (const CopyStatus& copy : status.copies) {
      if (copy.disk_uuid == disk) return copy;
    }
    ADD_FAILURE() << "no copy on " << disk;
    return kNone;
  }

  TempDir dir_;
  const std::string content_ = RandomBytes(3 * kMiB + 512, 5);
  Options options_;
  exec::EventLoop loop_;
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t wakes_ = 0;
  std::unique_ptr<Manager> manager_;
  std::unique_ptr<Subscription> subscription_;
};

}  // namespace bim::manager
