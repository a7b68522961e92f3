#include "pkg/manager/directed.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "pkg/store/record.h"
#include "tests/unit/manager/fixture.h"

namespace bim::manager {
namespace {

class DirectedTest : public ManagerTest {
 protected:
  DirectedSpec Directed(const std::string& disk = "disk-a",
                        const std::string& name = "debian") {
    DirectedSpec spec;
    spec.name = name;
    spec.uuid = "u-" + name;
    spec.disk = disk;
    return spec;
  }
  DirectedSpec FromSource(const std::string& disk = "disk-a") {
    DirectedSpec spec = Directed(disk);
    spec.source.url = "file://" + Source();
    return spec;
  }
  DirectedStatus Now(const std::string& disk = "disk-a",
                     const std::string& name = "debian") {
    const auto got = manager_->GetDirected(disk, name, "u-" + name);
    return got.ok() ? *got : DirectedStatus();
  }
  ::testing::AssertionResult Becomes(CopyState state,
                                     const std::string& disk = "disk-a") {
    if (WaitFor([&] {
          const DirectedStatus now = Now(disk);
          return !now.name.empty() && now.copy.state == state;
        })) {
      return ::testing::AssertionSuccess();
    }
    return ::testing::AssertionFailure()
           << "still " << CopyStateName(Now(disk).copy.state) << " '"
           << Now(disk).copy.message << "'";
  }
  // As an upstream manager leaves it: the file, and its cfg or none.
  void Leave(const std::string& disk, const std::string& content,
             bool with_config) {
    const std::string file = File(disk);
    std::filesystem::create_directories(
        std::filesystem::path(file).parent_path());
    WriteAll(file, content);
    if (!with_config) return;
    LeaveConfig(file, "u-debian", content);
  }
  static void LeaveConfig(const std::string& file, const std::string& uuid,
                          const std::string& content) {
    struct stat st = {};
    ASSERT_EQ(::stat(file.c_str(), &st), 0);
    store::LonghornConfig config;
    config.file_path = file;
    config.uuid = uuid;
    config.size = config.virtual_size = content.size();
    config.current_checksum = Sha512(content).Hex();
    config.modification_time = store::FormatModificationTime(
        st.st_mtim.tv_sec * 1'000'000'000 + st.st_mtim.tv_nsec);
    WriteAll(file + ".cfg", store::EncodeConfig(config));
  }
  size_t Listed(const std::string& disk) {
    size_t count = 0;
    BIM_EXPECT_OK(
        manager_->VisitDirected(disk, [&](const DirectedStatus&) { ++count; }));
    return count;
  }
};

TEST_F(DirectedTest, NothingToReuseFails) {
  Begin();
  const auto made = manager_->Direct(Directed());
  ASSERT_TRUE(made.ok()) << made.status().ToString();
  EXPECT_EQ(made->copy.state, CopyState::kFailed);
  EXPECT_THAT(made->copy.message, HasSubstr("no file to reuse"));
  // It stays so, over a restart, too.
  Restart();
  EXPECT_EQ(Now().copy.state, CopyState::kFailed);
  EXPECT_THAT(Now().copy.message, HasSubstr("no file to reuse"));
  EXPECT_FALSE(Now().copy.next_attempt.has_value());
}

TEST_F(DirectedTest, AFileWithItsConfigIsReadyAtOnce) {
  Leave("a", content_, true);
  Begin();
  DirectedSpec spec = Directed();
  spec.size = content_.size();
  spec.sha512 = Sha512(content_);
  const auto made = manager_->Direct(spec);
  ASSERT_TRUE(made.ok()) << made.status().ToString();
  EXPECT_EQ(made->copy.state, CopyState::kReady);
  EXPECT_EQ(made->copy.progress, 100u);
  EXPECT_EQ(made->size, content_.size());
  EXPECT_EQ(made->current_sha512, spec.sha512);
  EXPECT_EQ(made->expected_sha512, spec.sha512);
  EXPECT_EQ(ReadAll(File("a")), content_);
}

TEST_F(DirectedTest, ManyReadyOnesAreStillRegisteredAfterAStop) {
  constexpr size_t kCount = 40;
  const auto name = [](size_t i) { return "image" + std::to_string(i); };
  for (size_t i = 0; i < kCount; ++i) {
    const std::string file = File("a", name(i));
    std::filesystem::create_directories(
        std::filesystem::path(file).parent_path());
    WriteAll(file, content_);
    LeaveConfig(file, "u-" + name(i), content_);
  }
  Begin();
  for (size_t i = 0; i < kCount; ++i) {
    const auto made = manager_->Direct(Directed("disk-a", name(i)));
    ASSERT_TRUE(made.ok()) << made.status().ToString();
    ASSERT_EQ(made->copy.state, CopyState::kReady);
    // Forgotten at once, it stays so.
    if (i % 4 == 0) {
      BIM_EXPECT_OK(
          manager_->ForgetDirected("disk-a", name(i), "u-" + name(i)));
    }
  }
  Restart();
  EXPECT_EQ(Listed("disk-a"), kCount / 4 * 3);
  for (size_t i = 0; i < kCount; ++i) {
    EXPECT_EQ(Now("disk-a", name(i)).copy.state == CopyState::kReady,
              i % 4 != 0);
  }
}

TEST_F(DirectedTest, OneThatChangedBehindAStoppedManagerStays) {
  for (const bool with_checksum : {true, false}) {
    Leave("a", content_, true);
    Begin();
    DirectedSpec spec = Directed();
    if (with_checksum) spec.sha512 = Sha512(content_);
    const auto made = manager_->Direct(spec);
    ASSERT_TRUE(made.ok() && made->copy.state == CopyState::kReady);
    End();
    std::string other = content_;
    other[17] ^= 1;
    WriteAll(File("a"), other);
    for (int start = 0; start < 3; ++start) {
      Begin();
      ASSERT_TRUE(Becomes(CopyState::kFailed));
      EXPECT_EQ(ReadAll(File("a")), other);
      if (start < 2) End();
    }
    EXPECT_TRUE(manager_->RemoveDirected("disk-a", "debian", "u-debian").ok());
    End();
  }
}

TEST_F(DirectedTest, APlaceOfAnotherImage) {
  // "a" with "b-c", and "a-b" with "c", make the same directory.
  const std::string file = dir_ / "a/backing-images/a-b-c/backing";
  std::filesystem::create_directories(
      std::filesystem::path(file).parent_path());
  WriteAll(file, content_);
  LeaveConfig(file, "c", content_);
  Begin();
  DirectedSpec spec;
  spec.name = "a";
  spec.uuid = "b-c";
  spec.disk = "disk-a";
  EXPECT_EQ(manager_->Direct(spec).status().code(), Code::kAlreadyExists);
  const base::Status removed = manager_->RemoveDirected("disk-a", "a", "b-c");
  EXPECT_EQ(removed.code(), Code::kFailedPrecondition);
  EXPECT_THAT(removed.message(), HasSubstr("uuid 'c'"));
  EXPECT_EQ(ReadAll(file), content_);
  EXPECT_EQ(Listed("disk-a"), 0u);
  spec.name = "a-b";
  spec.uuid = "c";
  const auto right = manager_->Direct(spec);
  ASSERT_TRUE(right.ok()) << right.status().ToString();
  EXPECT_EQ(right->copy.state, CopyState::kReady);
}

TEST_F(DirectedTest, AFileWithoutConfigIsRead) {
  Leave("a", content_, false);
  Begin();
  DirectedSpec spec = Directed();
  spec.sha512 = Sha512(content_);
  ASSERT_TRUE(manager_->Direct(spec).ok());
  ASSERT_TRUE(Becomes(CopyState::kReady));
  EXPECT_EQ(Now().current_sha512, spec.sha512);
}

TEST_F(DirectedTest, AFileThatIsProvenWrongIsRemovedAndSaid) {
  for (const bool by_size : {true, false}) {
    Leave("a", content_, false);
    Begin();
    DirectedSpec spec = Directed();
    if (by_size) {
      spec.size = content_.size() + 512;
    } else {
      spec.sha512 = Sha512("another");
    }
    ASSERT_TRUE(manager_->Direct(spec).ok());
    ASSERT_TRUE(Becomes(CopyState::kFailed));
    EXPECT_THAT(Now().copy.message, HasSubstr(by_size ? "size" : "SHA-512"));
    EXPECT_FALSE(Exists(File("a")));
    EXPECT_TRUE(manager_->RemoveDirected("disk-a", "debian", "u-debian").ok());
    End();
  }
}

TEST_F(DirectedTest, AFileThatIsProvenWrongGivesWayToTheSource) {
  Leave("a", RandomBytes(4096, 9), true);
  Begin();
  DirectedSpec spec = FromSource();
  spec.sha512 = Sha512(content_);
  ASSERT_TRUE(manager_->Direct(spec).ok());
  ASSERT_TRUE(Becomes(CopyState::kReady));
  EXPECT_EQ(ReadAll(File("a")), content_);
}

TEST_F(DirectedTest, ADownloadThatDoesNotBeginInTimeIsNotTriedAgain) {
  for (const bool late : {false, true}) {
    options_.directed_begin = std::chrono::hours(late ? 0 : 1);
    Begin();
    DirectedSpec spec = Directed();
    spec.source.url = "http://127.0.0.1:1/a";  // refused: worth another try
    ASSERT_TRUE(manager_->Direct(spec).ok());
    ASSERT_TRUE(WaitFor([&] { return !Now().copy.message.empty(); }));
    EXPECT_EQ(Now().copy.state,
              late ? CopyState::kFailed : CopyState::kStarting);
    EXPECT_THAT(Now().copy.message,
                HasSubstr(late ? "did not begin in time: " : "trying again"));
    ASSERT_TRUE(manager_->RemoveDirected("", "debian", "u-debian").ok());
    End();
  }
}

TEST_F(DirectedTest, WhatFitsIsNotFetched) {
  Leave("a", content_, true);
  std::filesystem::remove(Source());
  Begin();
  const auto made = manager_->Direct(FromSource());
  ASSERT_TRUE(made.ok());
  EXPECT_EQ(made->copy.state, CopyState::kReady);
}

TEST_F(DirectedTest, OneDiskAtATime) {
  Begin();
  ASSERT_TRUE(manager_->Direct(FromSource("disk-a")).ok());
  ASSERT_TRUE(Becomes(CopyState::kReady));
  EXPECT_EQ(Listed("disk-a"), 1u);
  EXPECT_EQ(Listed(""), 1u);  // the first
  EXPECT_EQ(Listed("disk-b"), 0u);
  EXPECT_FALSE(Exists(File("b")));
  EXPECT_EQ(
      manager_->GetDirected("disk-b", "debian", "u-debian").status().code(),
      Code::kNotFound);
  const auto again = manager_->Direct(FromSource("disk-a"));
  EXPECT_EQ(again.status().code(), Code::kAlreadyExists);
  EXPECT_THAT(again.status().message(), HasSubstr("already exists"));
  // The other disk has its own source and digest.
  DirectedSpec other = Directed("disk-b");
  ASSERT_TRUE(manager_->Direct(other).ok());
  EXPECT_EQ(Now("disk-b").copy.state, CopyState::kFailed);
  EXPECT_EQ(Now("disk-a").copy.state, CopyState::kReady);
  ASSERT_TRUE(manager_->RemoveDirected("disk-b", "debian", "u-debian").ok());
  EXPECT_EQ(Listed("disk-b"), 0u);
  ASSERT_TRUE(manager_->Direct(FromSource("disk-b")).ok());
  ASSERT_TRUE(Becomes(CopyState::kReady, "disk-b"));
  ASSERT_TRUE(manager_->RemoveDirected("disk-a", "debian", "u-debian").ok());
  EXPECT_FALSE(Exists(File("a")));
  EXPECT_EQ(ReadAll(File("b")), content_);
  EXPECT_EQ(Now("disk-b").copy.state, CopyState::kReady);
  Restart();
  EXPECT_EQ(Listed("disk-a"), 0u);
  EXPECT_EQ(Now("disk-b").copy.state, CopyState::kReady);
}

TEST_F(DirectedTest, WhatARestartBroughtBackMayBeAskedForOnce) {
  Begin();
  ASSERT_TRUE(manager_->Direct(FromSource()).ok());
  ASSERT_TRUE(Becomes(CopyState::kReady));
  Restart();
  EXPECT_EQ(Now().copy.state, CopyState::kReady);
  EXPECT_EQ(Now("disk-a").size, content_.size());
  DirectedSpec spec = Directed();
  spec.size = 512;
  EXPECT_EQ(manager_->Direct(spec).status().code(), Code::kAlreadyExists);
  spec.size = content_.size();
  spec.sha512 = Sha512("another");
  EXPECT_EQ(manager_->Direct(spec).status().code(), Code::kAlreadyExists);
  spec.sha512 = Sha512(content_);
  const auto first = manager_->Direct(spec);
  ASSERT_TRUE(first.ok()) << first.status().ToString();
  EXPECT_EQ(first->copy.state, CopyState::kReady);
  EXPECT_EQ(manager_->Direct(spec).status().code(), Code::kAlreadyExists);
}

TEST_F(DirectedTest, AFailureIsFinal) {
  std::filesystem::remove(Source());
  Begin();
  ASSERT_TRUE(manager_->Direct(FromSource()).ok());
  ASSERT_TRUE(Becomes(CopyState::kFailed));
  EXPECT_FALSE(Now().copy.next_attempt.has_value());
  WriteAll(Source(), content_);
  Restart();
  EXPECT_EQ(Now().copy.state, CopyState::kFailed);
  EXPECT_FALSE(Now().copy.next_attempt.has_value());
  ASSERT_TRUE(manager_->RemoveDirected("disk-a", "debian", "u-debian").ok());
  ASSERT_TRUE(manager_->Direct(FromSource()).ok());
  ASSERT_TRUE(Becomes(CopyState::kReady));
}

TEST_F(DirectedTest, WorkThatARestartInterruptedHasFailed) {
  Begin();
  DirectedSpec spec = Directed();
  spec.source.upload = true;
  ASSERT_TRUE(manager_->Direct(spec).ok());
  Restart();
  EXPECT_EQ(Now().copy.state, CopyState::kFailed);
  EXPECT_THAT(Now().copy.message, HasSubstr("restarted"));
}

TEST_F(DirectedTest, AFileThatIsGoneHasFailed) {
  Begin();
  ASSERT_TRUE(manager_->Direct(FromSource()).ok());
  ASSERT_TRUE(Becomes(CopyState::kReady));
  std::filesystem::remove(File("a"));
  ASSERT_TRUE(Becomes(CopyState::kFailed));
  EXPECT_THAT(Now().copy.message, HasSubstr("gone"));
  EXPECT_FALSE(Exists(File("a")));
}

TEST_F(DirectedTest, ATouchedFileIsReadAgain) {
  Begin();
  ASSERT_TRUE(manager_->Direct(FromSource()).ok());
  ASSERT_TRUE(Becomes(CopyState::kReady));
  const int64_t before = Now().mtime_ns;
  ASSERT_EQ(::utimensat(AT_FDCWD, File("a").c_str(), nullptr, 0), 0);
  ASSERT_TRUE(WaitFor([&] {
    return Now().copy.state == CopyState::kReady && Now().mtime_ns != before;
  }));
  std::string other = content_;
  other[5] ^= 1;
  WriteAll(File("a"), other);
  ASSERT_TRUE(Becomes(CopyState::kFailed));
  EXPECT_EQ(ReadAll(File("a")), other);  // kept
}

TEST_F(DirectedTest, RemovingWhatNobodyRegistered) {
  Leave("a", content_, true);
  Begin();
  EXPECT_EQ(Listed("disk-a"), 0u);  // nothing is adopted unasked
  EXPECT_TRUE(manager_->RemoveDirected("disk-a", "debian", "u-debian").ok());
  EXPECT_FALSE(Exists(File("a")));
  EXPECT_TRUE(manager_->RemoveDirected("disk-a", "debian", "u-debian").ok());
  EXPECT_EQ(manager_->RemoveDirected("nowhere", "debian", "u-debian").code(),
            Code::kNotFound);
}

TEST_F(DirectedTest, RemovingEndsTheWork) {
  Begin();
  DirectedSpec spec = Directed();
  spec.source.upload = true;
  ASSERT_TRUE(manager_->Direct(spec).ok());
  ASSERT_TRUE(Becomes(CopyState::kPending));
  ASSERT_TRUE(manager_->RemoveDirected("disk-a", "debian", "u-debian").ok());
  EXPECT_EQ(Listed("disk-a"), 0u);
  EXPECT_FALSE(Exists(dir_ / "a/backing-images/debian-u-debian"));
  Restart();
  EXPECT_EQ(Listed("disk-a"), 0u);
}

TEST_F(DirectedTest, AnUploadHasOneRequest) {
  Begin();
  DirectedSpec spec = Directed("disk-b");
  spec.source.upload = true;
  const auto bytes = [&](size_t begin, size_t end) {
    return test::AsBytes(std::string_view(content_).substr(begin, end - begin));
  };
  const auto register_again = [&] {
    ASSERT_TRUE(manager_->RemoveDirected("disk-b", "debian", "u-debian").ok());
    ASSERT_TRUE(manager_->Direct(spec).ok());
    ASSERT_TRUE(Becomes(CopyState::kPending, "disk-b"));
  };
  const auto begin = [&] {
    auto upload = manager_->BeginUpload("debian", "u-debian", 0,
                                        content_.size(), "disk-b");
    EXPECT_TRUE(upload.ok()) << upload.status().ToString();
    return std::move(*upload);
  };
  register_again();
  {
    auto upload = begin();
    ASSERT_TRUE(upload->Append(bytes(0, content_.size())).ok());
    ASSERT_TRUE(upload->Finish(true).ok());
  }
  ASSERT_TRUE(Becomes(CopyState::kReady, "disk-b"));
  EXPECT_EQ(ReadAll(File("b")), content_);

  register_again();
  {
    auto upload = begin();
    ASSERT_TRUE(upload->Append(bytes(0, kMiB)).ok());
  }
  ASSERT_TRUE(Becomes(CopyState::kFailed, "disk-b"));
  EXPECT_THAT(Now("disk-b").copy.message, HasSubstr("broke off"));
  EXPECT_FALSE(Exists(File("b") + ".tmp"));
  EXPECT_EQ(manager_->BeginUpload("debian", "u-debian", 0, content_.size())
                .status()
                .code(),
            Code::kFailedPrecondition);

  for (const bool complete : {true, false}) {
    register_again();
    auto upload = begin();
    ASSERT_TRUE(upload->Append(bytes(0, kMiB)).ok());
    EXPECT_EQ(upload->Finish(complete).status().code(), Code::kInvalidArgument);
    ASSERT_TRUE(Becomes(CopyState::kFailed, "disk-b"));
    EXPECT_THAT(Now("disk-b").copy.message, HasSubstr("ended early"));
    EXPECT_FALSE(Exists(File("b") + ".tmp"));
  }

  register_again();
  {
    auto upload = begin();
    ASSERT_TRUE(upload->Append(bytes(0, content_.size())).ok());
    EXPECT_EQ(upload->Append(bytes(0, 1)).code(), Code::kOutOfRange);
  }
  ASSERT_TRUE(Becomes(CopyState::kFailed, "disk-b"));
  EXPECT_THAT(Now("disk-b").copy.message, HasSubstr("more bytes"));
  EXPECT_FALSE(Exists(File("b") + ".tmp"));

  // A removal while it runs.
  register_again();
  auto upload = begin();
  ASSERT_TRUE(upload->Append(bytes(0, kMiB)).ok());
  ASSERT_TRUE(manager_->RemoveDirected("disk-b", "debian", "u-debian").ok());
  EXPECT_EQ(upload->Append(bytes(0, 1)).code(), Code::kCancelled);
  EXPECT_EQ(Listed("disk-b"), 0u);
  EXPECT_EQ(manager_->BeginUpload("debian", "u-debian", 0, content_.size())
                .status()
                .code(),
            Code::kNotFound);
}

TEST_F(DirectedTest, EnsuredAndDirectedKeepApart) {
  Begin();
  MakeReady(Spec());
  EXPECT_EQ(Listed("disk-a"), 0u);
  EXPECT_EQ(manager_->Direct(Directed()).status().code(), Code::kAlreadyExists);
  EXPECT_EQ(manager_->RemoveDirected("disk-a", "debian", "u-debian").code(),
            Code::kFailedPrecondition);
  EXPECT_TRUE(Exists(File("a")));
  ASSERT_TRUE(manager_->Remove("debian", "u-debian", false).ok());
  ASSERT_TRUE(manager_->Direct(FromSource()).ok());
  ASSERT_TRUE(Becomes(CopyState::kReady));
  EXPECT_EQ(manager_->Ensure(Spec()).status().code(), Code::kAlreadyExists);
  // An operator may remove it all the same.
  EXPECT_TRUE(manager_->Remove("debian", "u-debian", false).ok());
  EXPECT_EQ(Listed("disk-a"), 0u);
}

TEST_F(DirectedTest, OneDirectoryOneImage) {
  Begin();
  ASSERT_TRUE(manager_->Direct(Directed()).ok());
  DirectedSpec odd = Directed();
  odd.name = "debian-u";
  odd.uuid = "debian";
  EXPECT_EQ(manager_->Direct(odd).status().code(), Code::kAlreadyExists);
  EXPECT_EQ(manager_->RemoveDirected("disk-a", "debian-u", "debian").code(),
            Code::kFailedPrecondition);
}

TEST_F(DirectedTest, BadInput) {
  Begin();
  const auto code = [&](const std::function<void(DirectedSpec&)>& change) {
    DirectedSpec spec = FromSource();
    change(spec);
    return manager_->Direct(spec).status().code();
  };
  EXPECT_EQ(code([](auto& s) { s.name = ""; }), Code::kInvalidArgument);
  EXPECT_EQ(code([](auto& s) { s.uuid = ""; }), Code::kInvalidArgument);
  EXPECT_EQ(code([](auto& s) { s.uuid = "../x"; }), Code::kInvalidArgument);
  EXPECT_EQ(code([](auto& s) { s.size = 100; }), Code::kInvalidArgument);
  EXPECT_EQ(code([](auto& s) {
              s.size = 100;
              s.source = {};
            }),
            Code::kInvalidArgument);
  EXPECT_EQ(code([](auto& s) { s.size = uint64_t{1} << 62; }),
            Code::kInvalidArgument);
  EXPECT_EQ(code([](auto& s) { s.disk = "nowhere"; }), Code::kNotFound);
  EXPECT_EQ(Listed("disk-a"), 0u);
}

TEST_F(DirectedTest, ADiskThatIsAway) {
  Begin();
  ASSERT_TRUE(manager_->Direct(FromSource()).ok());
  ASSERT_TRUE(Becomes(CopyState::kReady));
  std::filesystem::rename(dir_ / "a", dir_ / "away");
  ASSERT_TRUE(Becomes(CopyState::kUnknown));
  EXPECT_EQ(manager_->Direct(Directed("disk-a", "other")).status().code(),
            Code::kUnavailable);
  EXPECT_EQ(manager_->RemoveDirected("disk-a", "debian", "u-debian").code(),
            Code::kUnavailable);
  std::filesystem::rename(dir_ / "away", dir_ / "a");
  ASSERT_TRUE(Becomes(CopyState::kReady));
  // It was never out of the caller's sight.
  EXPECT_EQ(manager_->Direct(Directed()).status().code(), Code::kAlreadyExists);
}

}  // namespace
}  // namespace bim::manager
