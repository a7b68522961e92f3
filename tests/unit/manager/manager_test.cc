#include "pkg/manager/manager.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>

#include "pkg/store/layout.h"
#include "pkg/store/record.h"
#include "tests/unit/manager/fixture.h"

namespace bim::manager {
namespace {

TEST_F(ManagerTest, BadOptions) {
  for (int i = 0; i < 4; ++i) {
    Options odd = options_;
    if (i == 0) odd.limits.transfers = 0;
    if (i == 1) odd.manager_id = "";
    if (i == 2) odd.disk_paths = {"relative"};
    if (i == 3) odd.state_dir = dir_ / "nowhere";
    EXPECT_FALSE(Manager::Create(odd, loop_).ok()) << i;
  }
  WriteAll(dir_ / "state/disks.json", "{");
  EXPECT_EQ(Manager::Create(options_, loop_).status().code(),
            Code::kFailedPrecondition);
}

TEST_F(ManagerTest, StopWithoutStart) {
  auto manager = Manager::Create(options_, loop_);
  ASSERT_TRUE(manager.ok());
  (*manager)->Stop();
  (*manager)->Stop();
  EXPECT_EQ((*manager)->Ensure(Spec()).status().code(), Code::kUnavailable);
}

TEST_F(ManagerTest, EnsureBringsItToEveryDisk) {
  Begin();
  const auto ensured = manager_->Ensure(Spec());
  ASSERT_TRUE(ensured.ok()) << ensured.status().ToString();
  EXPECT_TRUE(ensured->created);
  EXPECT_TRUE(ensured->image.spec.all_disks);
  EXPECT_THAT(ensured->image.copies, SizeIs(2));
  ASSERT_TRUE(Reaches(CopyState::kReady));
  const ImageStatus status = Status();
  EXPECT_EQ(status.format, "raw");
  EXPECT_EQ(status.size, content_.size());
  EXPECT_EQ(status.current_sha512, Sha512(content_));
  std::set<std::string> origins;
  for (const CopyStatus& copy : status.copies) {
    EXPECT_TRUE(ReadAll(copy.file_path) == content_);
    EXPECT_EQ(copy.progress, 100u);
    EXPECT_EQ(copy.attempts, 0u);
    EXPECT_EQ(copy.processed_bytes, content_.size());
    origins.insert(copy.origin);
  }
  EXPECT_EQ(origins, (std::set<std::string>{"download", "copy"}))
      << "one is downloaded, the other filled from it";
}

TEST_F(ManagerTest, EnsureIsIdempotentAndConflictsAreTold) {
  Begin();
  MakeReady(Spec());
  auto again = manager_->Ensure(Spec());
  ASSERT_TRUE(again.ok());
  EXPECT_FALSE(again->created);
  ImageSpec without_uuid = Spec();
  without_uuid.uuid.clear();
  again = manager_->Ensure(without_uuid);
  ASSERT_TRUE(again.ok()) << again.status().ToString();
  EXPECT_FALSE(again->created);
  EXPECT_EQ(again->image.spec.uuid, "u-debian");
  ImageSpec other = Spec();
  other.size = content_.size();
  EXPECT_EQ(manager_->Ensure(other).status().code(), Code::kAlreadyExists);
  other.uuid.clear();
  EXPECT_EQ(manager_->Ensure(other).status().code(), Code::kAlreadyExists);
  // "debian" + "u-debian" and "debian-u" + "debian" are one directory.
  ImageSpec twin = Spec();
  twin.name = "debian-u";
  twin.uuid = "debian";
  EXPECT_EQ(manager_->Ensure(twin).status().code(), Code::kAlreadyExists);
  EXPECT_TRUE(ReadAll(File("a")) == content_);
}

TEST_F(ManagerTest, EnsureWithoutUuidFindsTheOneOfSeveral) {
  Begin();
  ImageSpec first = Spec(), second = Spec();
  first.uuid = "u-1";
  second.uuid = "u-2";
  second.size = content_.size();
  ASSERT_TRUE(manager_->Ensure(first).ok());
  ASSERT_TRUE(manager_->Ensure(second).ok());
  ImageSpec asked = second;
  asked.uuid.clear();
  const auto ensured = manager_->Ensure(asked);
  ASSERT_TRUE(ensured.ok()) << ensured.status().ToString();
  EXPECT_EQ(ensured->image.spec.uuid, "u-2");
  EXPECT_EQ(manager_->Get("debian", "").status().code(),
            Code::kInvalidArgument);
}

TEST_F(ManagerTest, BadSpecsAreRefusedAndLeaveNothing) {
  Begin();
  const auto code = [&](const std::function<void(ImageSpec&)>& change) {
    ImageSpec spec = Spec();
    change(spec);
    return manager_->Ensure(spec).status().code();
  };
  EXPECT_EQ(code([](ImageSpec& s) { s.name = ""; }), Code::kInvalidArgument);
  EXPECT_EQ(code([](ImageSpec& s) { s.name = "../x"; }),
            Code::kInvalidArgument);
  EXPECT_EQ(code([](ImageSpec& s) { s.uuid = "a/b"; }), Code::kInvalidArgument);
  EXPECT_EQ(code([](ImageSpec& s) { s.size = 5; }), Code::kInvalidArgument);
  EXPECT_EQ(code([](ImageSpec& s) { s.source.url = ""; }),
            Code::kInvalidArgument);
  EXPECT_EQ(code([](ImageSpec& s) { s.source.credential = "../x"; }),
            Code::kInvalidArgument);
  EXPECT_EQ(code([](ImageSpec& s) { s.disks = {"disk-9"}; }), Code::kNotFound);
  EXPECT_TRUE(manager_->List(0, "")->images.empty());
  EXPECT_TRUE(std::filesystem::is_empty(dir_ / "a/.bim/desired"));
}

TEST_F(ManagerTest, OneDiskByUuidOrPath) {
  Begin();
  ImageSpec spec = Spec();
  spec.disks = {dir_ / "b", "disk-b"};
  MakeReady(spec);
  EXPECT_EQ(Status().spec.disks, (std::vector<std::string>{"disk-b"}));
  EXPECT_FALSE(Exists(File("a")));
  EXPECT_TRUE(Exists(File("b")));
}

TEST_F(ManagerTest, List) {
  Begin();
  for (int i = 0; i < 7; ++i) {
    ImageSpec spec = Spec("image" + std::to_string(i));
    spec.disks = {"disk-a"};
    ASSERT_TRUE(manager_->Ensure(spec).ok());
  }
  for (uint32_t size : {1u, 2u, 3u, 7u, 8u, 1000u}) {
    std::vector<std::string> names;
    std::string token;
    do {
      const auto page = manager_->List(size, token);
      ASSERT_TRUE(page.ok()) << page.status().ToString();
      EXPECT_LE(page->images.size(), size);
      for (const auto& image : page->images) names.push_back(image.spec.name);
      token = page->next_page_token;
    } while (!token.empty());
    EXPECT_EQ(names,
              (std::vector<std::string>{"image0", "image1", "image2", "image3",
                                        "image4", "image5", "image6"}));
  }
  EXPECT_THAT(manager_->List(0, "")->images, SizeIs(7));
  EXPECT_EQ(manager_->List(1001, "").status().code(), Code::kInvalidArgument);
  for (const char* token : {"x", "/", "a/", "../b", "a/b/c"}) {
    EXPECT_EQ(manager_->List(0, token).status().code(), Code::kInvalidArgument)
        << token;
  }
}

// Not before all its disks have it in writing: with copies, from the start.
TEST_F(ManagerTest, IsShownWhenItWasWritten) {
  Begin();
  constexpr int kImages = 20;
  std::atomic<bool> done = false;
  std::jthread ensuring([&] {
    for (int i = 0; i < kImages; ++i) {
      const auto ensured = manager_->Ensure(Spec("image" + std::to_string(i)));
      EXPECT_TRUE(ensured.ok()) << ensured.status().ToString();
    }
    done = true;
  });
  std::set<std::string> told;
  size_t looks = 0, without = 0;
  const auto look = [&](const ImageStatus& image) {
    ++looks;
    if (image.copies.size() != 2) ++without;
    told.insert(image.spec.name);
  };
  for (bool last = false; !last;) {
    last = done;
    const auto page = manager_->List(0, "");
    ASSERT_TRUE(page.ok()) << page.status().ToString();
    std::for_each(page->images.begin(), page->images.end(), look);
    const std::string next = "image" + std::to_string(page->images.size());
    if (const auto got = manager_->Get(next, ""); got.ok()) look(*got);
    told.clear();
    // A snapshot, and what has changed since.
    WatchPosition position;
    for (size_t round = 0; round < 2; ++round) {
      for (const Event& event : manager_->NextEvents(position, 1000)) {
        if (event.type == Event::Type::kImage) look(event.image);
      }
    }
  }
  EXPECT_EQ(without, 0u) << "of " << looks;
  EXPECT_THAT(told, SizeIs(kImages));
}

TEST_F(ManagerTest, WatchTellsSnapshotChangesAndRemovals) {
  Begin();
  MakeReady(Spec("one"));
  WatchPosition position;
  std::vector<Event> events = manager_->NextEvents(position, 100);
  ASSERT_THAT(events, SizeIs(3));
  EXPECT_EQ(events[0].type, Event::Type::kSnapshotBegin);
  EXPECT_EQ(events[1].type, Event::Type::kImage);
  EXPECT_EQ(events[1].image.spec.name, "one");
  EXPECT_EQ(events[2].type, Event::Type::kSnapshotEnd);
  const std::string token = events[2].resume_token;
  EXPECT_TRUE(manager_->NextEvents(position, 100).empty());

  std::vector<CopyState> seen;
  ASSERT_TRUE(manager_->Ensure(Spec("two")).ok());
  ASSERT_TRUE(WaitFor([&] {
    for (const Event& event : manager_->NextEvents(position, 1)) {
      EXPECT_EQ(event.type, Event::Type::kImage);
      EXPECT_EQ(event.image.spec.name, "two");
      seen.push_back(event.image.state);
    }
    return !seen.empty() && seen.back() == CopyState::kReady;
  }));
  BIM_ASSERT_OK(manager_->Remove("one", "", false));
  // One that resumes an old token sees the same end.
  for (WatchPosition from : {position, manager_->PositionOf(token)}) {
    bool removed = false;
    ASSERT_TRUE(WaitFor([&] {
      for (const Event& event : manager_->NextEvents(from, 100)) {
        EXPECT_NE(event.type, Event::Type::kSnapshotBegin);
        removed = removed || (event.type == Event::Type::kRemoved &&
                              event.image.spec.name == "one");
      }
      return removed;
    }));
  }
  for (const char* foreign : {"", "x", "x:1"}) {
    EXPECT_EQ(manager_->PositionOf(foreign).phase,
              WatchPosition::Phase::kStart);
  }
  EXPECT_EQ(manager_->PositionOf(token + "9999999").phase,
            WatchPosition::Phase::kStart);
}

TEST_F(ManagerTest, RemoveDeletesEverywhere) {
  Begin();
  MakeReady(Spec());
  BIM_ASSERT_OK(manager_->Remove("debian", "u-debian", false));
  EXPECT_EQ(manager_->Get("debian", "").status().code(), Code::kNotFound);
  EXPECT_EQ(manager_->Remove("debian", "", false).code(), Code::kNotFound);
  for (const char* disk : {"a", "b"}) {
    EXPECT_FALSE(Exists(dir_ / (std::string(disk) + "/" +
                                store::ImageDir({"debian", "u-debian"}))));
    EXPECT_TRUE(std::filesystem::is_empty(
        dir_ / (std::string(disk) + "/.bim/desired")));
  }
  Restart();
  EXPECT_TRUE(manager_->List(0, "")->images.empty());
  MakeReady(Spec());
}

TEST_F(ManagerTest, RemoveInUseIsAllOrNothingUnlessForced) {
  Begin();
  MakeReady(Spec());
  auto open = manager_->Open("debian", "", "disk-b");
  ASSERT_TRUE(open.ok()) << open.status().ToString();
  EXPECT_EQ(open->stamp.size, content_.size());
  EXPECT_EQ(open->sha512_hex, Sha512(content_).Hex());
  EXPECT_EQ(manager_->Remove("debian", "", false).code(),
            Code::kFailedPrecondition);
  EXPECT_EQ(Status().state, CopyState::kReady);
  EXPECT_TRUE(Exists(File("a")));
  EXPECT_TRUE(Exists(File("b")));
  BIM_EXPECT_OK(manager_->Remove("debian", "", true));
  std::string bytes(content_.size(), '\0');
  EXPECT_EQ(::pread(open->fd.get(), bytes.data(), bytes.size(), 0),
            static_cast<ssize_t>(bytes.size()));
  EXPECT_TRUE(bytes == content_) << "readable whatever happens meanwhile";
}

TEST_F(ManagerTest, OpenWithoutAReadyCopy) {
  Begin();
  EXPECT_EQ(manager_->Open("debian", "", "").status().code(), Code::kNotFound);
  std::filesystem::remove(Source());
  ASSERT_TRUE(manager_->Ensure(Spec()).ok());
  ASSERT_TRUE(Reaches(CopyState::kFailed));
  EXPECT_EQ(manager_->Open("debian", "", "").status().code(),
            Code::kFailedPrecondition);
}

TEST_F(ManagerTest, VerifyOk) {
  Begin();
  MakeReady(Spec());
  const auto id = manager_->StartVerify("debian", "", {}, false);
  ASSERT_TRUE(id.ok()) << id.status().ToString();
  ASSERT_TRUE(WaitFor([&] { return manager_->VerifyProgressOf(*id)->done; }));
  const auto progress = manager_->VerifyProgressOf(*id);
  EXPECT_TRUE(progress->ok) << progress->message;
  EXPECT_EQ(progress->total_bytes, 2 * content_.size());
  EXPECT_EQ(progress->verified_bytes, 2 * content_.size());
  ASSERT_TRUE(WaitFor([&] {
    return CopyOn(Status(), "disk-a").verify == VerifyState::kOk &&
           CopyOn(Status(), "disk-b").verify == VerifyState::kOk;
  }));
  EXPECT_EQ(manager_->VerifyProgressOf(*id + 1).status().code(),
            Code::kNotFound);
  EXPECT_EQ(
      manager_->StartVerify("debian", "", {"disk-9"}, false).status().code(),
      Code::kNotFound);
}

// Changes a byte and sets the times back, as a failing disk would seem to.
TEST_F(ManagerTest, ModifiedContentFailsAndIsNeverOverwritten) {
  Begin();
  MakeReady(Spec());
  test::FlipByte(File("a"), 5);
  ASSERT_TRUE(WaitFor(
      [&] { return CopyOn(Status(), "disk-a").state == CopyState::kFailed; }));
  const ImageStatus status = Status();
  EXPECT_EQ(status.state, CopyState::kFailed);
  EXPECT_THAT(CopyOn(status, "disk-a").message, HasSubstr("1 of 13 chunks"));
  EXPECT_EQ(CopyOn(status, "disk-b").state, CopyState::kReady);
  EXPECT_FALSE(ReadAll(File("a")) == content_) << "kept as it is";
  Restart();
  ASSERT_TRUE(WaitFor(
      [&] { return CopyOn(Status(), "disk-a").state == CopyState::kFailed; }));
  EXPECT_FALSE(ReadAll(File("a")) == content_);
}

// A byte that changed with no trace in the file's times: only reading tells,
// and what was told is not forgotten.
TEST_F(ManagerTest, ProvenDamageIsStillKnownAfterARestart) {
  options_.disk_paths = {dir_ / "a"};
  Begin();
  MakeReady(Spec());
  End();
  test::FlipByte(File("a"), 5);
  {
    auto root = io::Dir::Open(dir_ / "a");
    ASSERT_TRUE(root.ok());
    const store::ImageKey key{"debian", "u-debian"};
    auto record = store::ReadRecord(*root, key, true);
    ASSERT_TRUE(record.ok());
    record->stamp = store::StampOf(*root->Stat(store::DataFile(key)));
    BIM_ASSERT_OK(root->ReplaceFile(store::RecordFile(key),
                                    store::EncodeRecord(*record)));
  }
  Begin();
  ASSERT_EQ(Status().state, CopyState::kReady) << "nothing to see";
  const auto id = manager_->StartVerify("debian", "", {}, false);
  ASSERT_TRUE(id.ok()) << id.status().ToString();
  ASSERT_TRUE(Reaches(CopyState::kFailed));
  EXPECT_THAT(Status().message, HasSubstr("1 of 13 chunks"));
  for (int round = 0; round < 2; ++round) {
    End();
    Begin();
    EXPECT_NE(Status().state, CopyState::kReady);
    ASSERT_TRUE(Reaches(CopyState::kFailed));
    EXPECT_THAT(Status().message, HasSubstr("1 of 13 chunks"));
  }
}

// Reading them takes a minute, and not all are read at once.
TEST_F(ManagerTest, AnUploadToACopyThatIsToBeVerifiedIsRefused) {
  options_.disk_paths = {dir_ / "a"};
  Begin();
  const std::vector<std::string> names = {"one", "two", "three", "four"};
  for (const std::string& name : names) {
    ImageSpec spec = Spec(name);
    spec.source = {};
    spec.source.upload = true;
    ASSERT_TRUE(manager_->Ensure(spec).ok());
    auto upload = manager_->BeginUpload(name, "", 0, content_.size());
    ASSERT_TRUE(upload.ok()) << upload.status().ToString();
    BIM_ASSERT_OK((*upload)->Append(test::AsBytes(content_)));
    const auto done = (*upload)->Finish(true);
    ASSERT_TRUE(done.ok()) << done.status().ToString();
    EXPECT_TRUE(done->done);
  }
  Limits limits = manager_->GetLimits();
  limits.background_read_rate = kMinRate;
  BIM_ASSERT_OK(manager_->SetLimits(limits));
  for (const std::string& name : names) test::FlipByte(File("a", name), 5);
  for (const std::string& name : names) {
    ASSERT_TRUE(Reaches(CopyState::kUnknown, name));
  }
  for (const std::string& name : names) {
    const auto refused = manager_->BeginUpload(name, "", 0, kMiB);
    ASSERT_EQ(refused.status().code(), Code::kUnavailable)
        << refused.status().ToString();
    const auto state = manager_->GetUpload(name, "");
    ASSERT_TRUE(state.ok() || state.status().code() == Code::kUnavailable);
  }
}

TEST_F(ManagerTest, UploadsHaveTheirOwnBound) {
  options_.disk_paths = {dir_ / "a"};
  options_.limits.transfers = 1;
  Begin();
  constexpr int kAtOnce = 32;
  const auto name = [](int i) { return "image" + std::to_string(i); };
  for (int i = 0; i <= kAtOnce; ++i) {
    ImageSpec spec = Spec(name(i));
    spec.source = {};
    spec.source.upload = true;
    ASSERT_TRUE(manager_->Ensure(spec).ok());
  }
  std::vector<std::unique_ptr<Upload>> others;
  for (int i = 1; i < kAtOnce; ++i) {
    auto begun = manager_->BeginUpload(name(i), "", 0, content_.size());
    ASSERT_TRUE(begun.ok()) << begun.status().ToString();
    others.push_back(*std::move(begun));
  }
  auto upload = manager_->BeginUpload(name(0), "", 0, content_.size());
  ASSERT_TRUE(upload.ok()) << upload.status().ToString();
  const auto more =
      manager_->BeginUpload(name(kAtOnce), "", 0, content_.size());
  EXPECT_EQ(more.status().code(), Code::kUnavailable);
  EXPECT_THAT(more.status().message(), HasSubstr("32 uploads run already"));
  MakeReady(Spec());  // a download goes on all the same
  BIM_ASSERT_OK((*upload)->Append(test::AsBytes(content_).first(2 * kMiB)));
  const auto rest = (*upload)->Finish(false);
  ASSERT_TRUE(rest.ok()) << rest.status().ToString();
  EXPECT_EQ(rest->offset, 2 * kMiB);
  upload->reset();
  auto other = manager_->BeginUpload(name(kAtOnce), "", 0, content_.size());
  ASSERT_TRUE(other.ok()) << other.status().ToString();
  other->reset();
  upload = manager_->BeginUpload(name(0), "", 2 * kMiB, content_.size());
  ASSERT_TRUE(upload.ok()) << upload.status().ToString();
  BIM_ASSERT_OK((*upload)->Append(test::AsBytes(content_).subspan(2 * kMiB)));
  ASSERT_TRUE((*upload)->Finish(false).ok());
  EXPECT_EQ(Status(name(0)).current_sha512, Sha512(content_));
}

TEST_F(ManagerTest, ARepairOnADiskThatIsAwayIsRefused) {
  Begin();
  MakeReady(Spec());
  test::FlipByte(File("a"), 5);
  ASSERT_TRUE(WaitFor(
      [&] { return CopyOn(Status(), "disk-a").state == CopyState::kFailed; }));
  std::filesystem::rename(dir_ / "a/longhorn-disk.cfg", dir_ / "cfg");
  ASSERT_TRUE(WaitFor(
      [&] { return CopyOn(Status(), "disk-a").state == CopyState::kUnknown; }));
  EXPECT_EQ(
      manager_->StartVerify("debian", "", {"disk-a"}, true).status().code(),
      Code::kFailedPrecondition);
  // Of all copies: of those that are there.
  const auto id = manager_->StartVerify("debian", "", {}, true);
  ASSERT_TRUE(id.ok()) << id.status().ToString();
  ASSERT_TRUE(WaitFor([&] { return manager_->VerifyProgressOf(*id)->done; }));
  EXPECT_EQ(manager_->VerifyProgressOf(*id)->total_bytes, content_.size());
}

// Each replaces what is wanted while others do, and one removes it.
TEST_F(ManagerTest, WhatWasRemovedIsNotWrittenAgain) {
  class NoPeers : public transfer::PeerResolver {
    base::Result<transfer::PeerInfo> Resolve(const std::string&,
                                             std::chrono::milliseconds,
                                             std::stop_token) override {
      return base::UnavailableError("nobody is there");
    }
  };
  options_.peers = std::make_shared<NoPeers>();
  Begin();
  for (int round = 0; round < 60; ++round) {
    ASSERT_TRUE(manager_->Ensure(Spec()).ok());
    std::atomic<bool> removed = false;
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; ++t) {
      threads.emplace_back([&, t] {
        for (int i = 0; i < 1000 && !removed; ++i) {
          ImageSpec spec = Spec();
          spec.source.peers = {"h:" + std::to_string(1 + t * 1000 + i)};
          (void)manager_->Ensure(spec);
        }
      });
    }
    std::this_thread::sleep_for(std::chrono::microseconds(round * 50));
    // It may be made again at once: then that is removed.
    removed = true;
    (void)manager_->Remove("debian", "", true);
    for (std::thread& thread : threads) thread.join();
    (void)manager_->Remove("debian", "", true);
    ASSERT_FALSE(manager_->Get("debian", "").ok());
    for (const char* disk : {"a", "b"}) {
      const auto desired = dir_ / (std::string(disk) + "/" +
                                   store::DesiredFile({"debian", "u-debian"}));
      ASSERT_FALSE(Exists(desired)) << round;
      ASSERT_FALSE(Exists(desired + ".new")) << round;
    }
  }
}

TEST_F(ManagerTest, TouchedButTheSameIsReadyAgain) {
  Begin();
  MakeReady(Spec());
  WatchPosition position;
  (void)manager_->NextEvents(position, 100);
  bool unknown = false;
  std::filesystem::last_write_time(
      File("a"), std::filesystem::file_time_type::clock::now());
  ASSERT_TRUE(WaitFor([&] {
    for (const Event& event : manager_->NextEvents(position, 100)) {
      unknown = unknown || event.image.state == CopyState::kUnknown;
    }
    return unknown && Status().state == CopyState::kReady;
  }));
}

TEST_F(ManagerTest, AGoneFileIsFetchedAgain) {
  Begin();
  MakeReady(Spec());
  WriteAll(Source(), "not needed");  // the other disk has it
  std::filesystem::remove(File("a"));
  ASSERT_TRUE(WaitFor([&] {
    return Exists(File("a")) && Status().state == CopyState::kReady;
  }));
  EXPECT_TRUE(ReadAll(File("a")) == content_);
}

TEST_F(ManagerTest, RestartFindsItReadyWithoutTheSource) {
  Begin();
  MakeReady(Spec());
  const auto inode = [&] {
    struct stat st = {};
    EXPECT_EQ(::stat(File("a").c_str(), &st), 0);
    return st.st_ino;
  };
  const auto before = inode();
  std::filesystem::remove(Source());
  Restart();
  EXPECT_EQ(Status().state, CopyState::kReady);
  EXPECT_EQ(inode(), before);
  for (const DiskStatus& disk : manager_->ListDisks()) {
    EXPECT_EQ(disk.epoch, 2u);
  }
}

TEST_F(ManagerTest, AFailureIsRememberedAndRetried) {
  std::filesystem::remove(Source());
  Begin();
  ASSERT_TRUE(manager_->Ensure(Spec()).ok());
  ASSERT_TRUE(Reaches(CopyState::kFailed));
  EXPECT_NE(Status().message, "");
  const std::string message = Status().message;
  Restart();
  EXPECT_EQ(Status().state, CopyState::kFailed);
  EXPECT_EQ(Status().message, message);
  BIM_EXPECT_OK(manager_->Remove("debian", "", false));
  WriteAll(Source(), content_);
  MakeReady(Spec());
}

TEST_F(ManagerTest, WrongChecksumFailsForGood) {
  Begin();
  ImageSpec spec = Spec();
  spec.sha512 = Sha512("other");
  ASSERT_TRUE(manager_->Ensure(spec).ok());
  ASSERT_TRUE(Reaches(CopyState::kFailed));
  EXPECT_THAT(Status().message, HasSubstr("checksum"));
  EXPECT_FALSE(Exists(File("a")));
  EXPECT_FALSE(Exists(File("b")));
  for (const CopyStatus& copy : Status().copies) {
    EXPECT_FALSE(copy.next_attempt);
  }
}

TEST_F(ManagerTest, AFileThatLiesThereIsUsedWhenItFits) {
  for (const char* disk : {"a", "b"}) {
    std::filesystem::create_directories(
        dir_ /
        (std::string(disk) + "/" + store::ImageDir({"debian", "u-debian"})));
    WriteAll(File(disk), content_);
  }
  std::filesystem::remove(Source());
  Begin();
  ImageSpec spec = Spec();
  spec.sha512 = Sha512(content_);
  MakeReady(spec);
  EXPECT_THAT(CopyOn(Status(), "disk-a").origin, HasSubstr("reused"));
}

TEST_F(ManagerTest, SwappedAndMissingDisks) {
  Begin();
  MakeReady(Spec());
  // Its identity changes under us.
  WriteAll(dir_ / "a/longhorn-disk.cfg", "{\"diskUUID\":\"disk-z\"}");
  const auto state_of = [&](const std::string& path) {
    for (const DiskStatus& disk : manager_->ListDisks()) {
      if (disk.path == dir_ / path) return disk.state;
    }
    return std::string("none");
  };
  ASSERT_TRUE(WaitFor([&] { return state_of("a") == "swapped"; }));
  ASSERT_TRUE(Reaches(CopyState::kUnknown));
  EXPECT_EQ(CopyOn(Status(), "disk-b").state, CopyState::kReady);
  EXPECT_EQ(manager_->Remove("debian", "", false).code(),
            Code::kFailedPrecondition);
  WriteAll(dir_ / "a/longhorn-disk.cfg", "{\"diskUUID\":\"disk-a\"}");
  ASSERT_TRUE(WaitFor([&] { return state_of("a") == "ready"; }));
  ASSERT_TRUE(Reaches(CopyState::kReady));
  // Removed by force while away: gone when it is back.
  std::filesystem::rename(dir_ / "a", dir_ / "away");
  ASSERT_TRUE(WaitFor([&] { return state_of("a") == "missing"; }));
  BIM_EXPECT_OK(manager_->Remove("debian", "", true));
  EXPECT_FALSE(Exists(File("b")));
  Restart();
  EXPECT_EQ(state_of("a"), "missing");
  std::filesystem::rename(dir_ / "away", dir_ / "a");
  ASSERT_TRUE(WaitFor([&] { return state_of("a") == "ready"; }));
  EXPECT_FALSE(Exists(File("a")));
  EXPECT_TRUE(manager_->List(0, "")->images.empty());
}

TEST_F(ManagerTest, AnOwnedDiskIsListedWithItsOwner) {
  auto held = test::ClaimDisk(dir_ / "a");
  Begin();
  bool found = false;
  for (const DiskStatus& disk : manager_->ListDisks()) {
    if (disk.path != dir_ / "a") continue;
    found = true;
    EXPECT_EQ(disk.state, "owned");
    EXPECT_THAT(disk.message, HasSubstr("manager-1"));
  }
  EXPECT_TRUE(found);
  held.reset();
  EXPECT_TRUE(WaitFor([&] {
    for (const DiskStatus& disk : manager_->ListDisks()) {
      if (disk.state != "ready") return false;
    }
    return true;
  }));
}

TEST_F(ManagerTest, AddAndRemoveDisks) {
  options_.disk_paths.clear();
  Begin();
  EXPECT_EQ(manager_->Ensure(Spec()).status().code(), Code::kUnavailable);
  EXPECT_EQ(manager_->AddDisk("relative", "", false).status().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(manager_->AddDisk(dir_ / "nowhere", "", false).status().code(),
            Code::kNotFound);
  std::filesystem::create_directory(dir_ / "c");
  EXPECT_EQ(manager_->AddDisk(dir_ / "c", "", false).status().code(),
            Code::kFailedPrecondition);
  EXPECT_EQ(manager_->AddDisk(dir_ / "a", "disk-z", false).status().code(),
            Code::kFailedPrecondition);
  const auto added = manager_->AddDisk(dir_ / "c/", "disk-c", true);
  ASSERT_TRUE(added.ok()) << added.status().ToString();
  EXPECT_EQ(added->state, "ready") << added->message;
  EXPECT_EQ(added->uuid, "disk-c");
  ASSERT_TRUE(manager_->AddDisk(dir_ / "c", "", false).ok()) << "again";
  std::filesystem::create_directory(dir_ / "d");
  WriteAll(dir_ / "d/longhorn-disk.cfg", "{\"diskUUID\":\"disk-c\"}");
  EXPECT_EQ(manager_->AddDisk(dir_ / "d", "", false).status().code(),
            Code::kAlreadyExists);
  MakeReady(Spec());
  Restart();
  EXPECT_THAT(manager_->ListDisks(), SizeIs(1)) << "remembered";
  EXPECT_EQ(manager_->ListDisks()[0].images, 1u);
  EXPECT_EQ(manager_->RemoveDisk("disk-9", false).code(), Code::kNotFound);
  EXPECT_EQ(manager_->RemoveDisk("disk-c", false).code(),
            Code::kFailedPrecondition);
  BIM_EXPECT_OK(manager_->RemoveDisk(dir_ / "c", true));
  EXPECT_TRUE(manager_->ListDisks().empty());
  EXPECT_TRUE(manager_->List(0, "")->images.empty());
  EXPECT_TRUE(ReadAll(File("c")) == content_) << "files stay";
  const auto back = manager_->AddDisk(dir_ / "c", "", false);
  ASSERT_TRUE(back.ok()) << back.status().ToString();
  EXPECT_EQ(back->state, "ready") << back->message;
  EXPECT_EQ(Status().state, CopyState::kReady);
}

TEST_F(ManagerTest, ARemovedDiskCanBeTakenAtOnceAlsoAfterWork) {
  Begin();
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(manager_->Ensure(Spec()).ok());
    BIM_ASSERT_OK(manager_->RemoveDisk("disk-a", true));
    const auto back = manager_->AddDisk(dir_ / "a", "", false);
    ASSERT_TRUE(back.ok()) << back.status().ToString();
    ASSERT_EQ(back->state, "ready") << i << ": " << back->message;
    BIM_ASSERT_OK(manager_->Remove("debian", "", true));
  }
}

TEST_F(ManagerTest, ARemovedDiskCanBeTakenWhileTheDisksAreChecked) {
  options_.disk_check_interval = std::chrono::milliseconds(1);
  Begin();
  for (int i = 0; i < 200; ++i) {
    BIM_ASSERT_OK(manager_->RemoveDisk("disk-a", true));
    const auto back = manager_->AddDisk(dir_ / "a", "", false);
    ASSERT_TRUE(back.ok()) << back.status().ToString();
    ASSERT_EQ(back->state, "ready") << i << ": " << back->message;
  }
}

TEST_F(ManagerTest, ADamagedDesiredRecordStopsTheDiskNotTheDaemon) {
  Begin();
  MakeReady(Spec());
  End();
  WriteAll(dir_ / ("a/" + store::DesiredFile({"debian", "u-debian"})), "{");
  Begin();
  for (const DiskStatus& disk : manager_->ListDisks()) {
    EXPECT_EQ(disk.state, disk.uuid == "disk-a" ? "failed" : "ready");
  }
  EXPECT_TRUE(Exists(File("a")));
}

TEST_F(ManagerTest, StopInTheMiddleOfWorkResumesLater) {
  WriteAll(Source(), RandomBytes(64 * kMiB, 8));
  options_.disk_paths = {dir_ / "a"};
  Begin();
  ASSERT_TRUE(manager_->Ensure(Spec()).ok());
  ASSERT_TRUE(WaitFor([&] {
    return Status().state == CopyState::kInProgress ||
           Status().state == CopyState::kReady;
  }));
  Restart();
  ASSERT_TRUE(Reaches(CopyState::kReady));
  EXPECT_EQ(Status().current_sha512, Sha512(ReadAll(Source())));
}

TEST_F(ManagerTest, ManyImagesEnsuredAndRemovedAtOnce) {
  Begin();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      for (int i = 0; i < 5; ++i) {
        const std::string name =
            "image" + std::to_string(t) + std::to_string(i);
        EXPECT_TRUE(manager_->Ensure(Spec(name)).ok());
        (void)manager_->Get(name, "");
        (void)manager_->List(3, "");
        if (i % 2 == 0) BIM_EXPECT_OK(manager_->Remove(name, "", true));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(WaitFor([&] {
    const auto page = manager_->List(0, "");
    for (const ImageStatus& image : page->images) {
      if (image.state != CopyState::kReady) return false;
    }
    return page->images.size() == 8;
  }));
}

}  // namespace
}  // namespace bim::manager
