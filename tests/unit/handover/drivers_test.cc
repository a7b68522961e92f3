// Both sides in one process, over real disks, sockets and locks.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <thread>

#include "pkg/handover/candidate.h"
#include "pkg/handover/control.h"
#include "pkg/handover/owner.h"
#include "pkg/store/disk.h"
#include "tests/unit/store/scratch.h"

namespace bim::handover {
namespace {

using base::Code;
using std::chrono::milliseconds;
using store::Disk;
using ::testing::HasSubstr;

std::shared_ptr<Disk> Claim(const std::string& path, const std::string& id) {
  auto claimed = Disk::Claim(path, "", {id, "1", "unix:/" + id});
  auto* disk = std::get_if<std::shared_ptr<Disk>>(&claimed);
  return disk != nullptr ? *disk : nullptr;
}

::testing::AssertionResult Soon(const std::function<bool()>& is) {
  for (int i = 0; i < 2000; ++i) {
    if (is()) return ::testing::AssertionSuccess();
    std::this_thread::sleep_for(milliseconds(10));
  }
  return ::testing::AssertionFailure() << "not within 20 s";
}

class OwnerHost final : public Owner::Host {
 public:
  explicit OwnerHost(std::shared_ptr<Disk> disk) : disk_(std::move(disk)) {}
  std::vector<OwnedDisk> Disks() override {
    return {{disk_->uuid(), disk_->path()}};
  }
  base::Status Write(const store::HandoverRecord& record) override {
    if (fail) return base::UnavailableError("full");
    return disk_->PutHandover(record);
  }
  void Hold(const std::string&) override { held = true; }
  void Resume() override {
    // Who is told before it is done finds it undone.
    std::this_thread::sleep_for(milliseconds(resuming_ms));
    held = false;
  }
  void Release() override { disk_->Release(); }
  std::vector<ListeningSocket> Sockets() override {
    std::vector<ListeningSocket> sockets;
    sockets.push_back(
        {"api x", base::UniqueFd(::socket(AF_UNIX, SOCK_STREAM, 0))});
    return sockets;
  }
  void Exit(bool handed) override {
    handed_over = handed;
    exited = true;
  }

  std::atomic<bool> fail{false}, held{false}, exited{false};
  std::atomic<bool> handed_over{false};
  std::atomic<int> resuming_ms{100};

 private:
  const std::shared_ptr<Disk> disk_;
};

class CandidateHost final : public Candidate::Host {
 public:
  CandidateHost(std::string path, std::string id)
      : path_(std::move(path)), id_(std::move(id)) {}
  std::vector<std::string> DiskPaths() override { return {path_}; }
  void Load() override { ++loads; }
  base::Status Claim() override {
    auto disk = handover::Claim(path_, id_);
    if (!disk) return base::UnavailableError("not free");
    std::lock_guard lock(mutex_);
    disk_ = std::move(disk);
    return base::OkStatus();
  }
  bool owns() {
    std::lock_guard lock(mutex_);
    return disk_ != nullptr;
  }
  std::atomic<int> loads{0};

 private:
  const std::string path_, id_;
  std::mutex mutex_;
  std::shared_ptr<Disk> disk_;
};

class DriversTest : public ::testing::Test {
 protected:
  void SetUp() override {
    test::InitDisk(dir_.path(), "disk-1");
    StartOwner();
  }
  void TearDown() override {
    candidate_.reset();
    owner_.reset();
  }
  void StartOwner() {
    TakeDisk();
    ServeDisk();
  }
  void TakeDisk() {
    // (A candidate that looks at the disk holds its lock for a moment.)
    std::shared_ptr<Disk> disk;
    ASSERT_TRUE(Soon([&] {
      disk = Claim(dir_.path(), "old");
      return disk != nullptr;
    }));
    host_ = std::make_unique<OwnerHost>(std::move(disk));
  }
  void ServeDisk() {
    owner_ = Owner::Start({.self = Self("old", "unix:/old"),
                           .lease = milliseconds(2'000),
                           .confirm_timeout = milliseconds(1'000)},
                          *host_);
    ASSERT_TRUE(Soon([&] { return test::Exists(dir_ / kSocketFile); }));
  }
  // As if the process had ended.
  void EndOwner() {
    owner_.reset();
    host_.reset();
  }
  std::unique_ptr<Candidate> MakeCandidate(CandidateHost& host,
                                           const std::string& id) {
    return Candidate::Start({.self = Self(id, "unix:/" + id),
                             .heartbeat = milliseconds(100),
                             .confirm_timeout = milliseconds(3'000)},
                            host);
  }
  void StartCandidate() { candidate_ = MakeCandidate(taker_, "new"); }
  void BecomeReady() {
    StartCandidate();
    BIM_ASSERT_OK(candidate_->Begin(false));
    ASSERT_TRUE(Soon([&] { return owner_->Now().ready; }));
    EXPECT_TRUE(host_->held);
    EXPECT_FALSE(taker_.owns());
  }

  test::TempDir dir_;
  std::unique_ptr<OwnerHost> host_;
  CandidateHost taker_{dir_.path(), "new"};
  std::unique_ptr<Owner> owner_;
  std::unique_ptr<Candidate> candidate_;
};

TEST_F(DriversTest, ConfirmedByTheOwner) {
  BecomeReady();
  BIM_ASSERT_OK(owner_->Confirm());
  EXPECT_EQ(owner_->Rollback().code(), Code::kFailedPrecondition);
  ASSERT_TRUE(Soon([&] { return taker_.owns() && host_->exited; }));
  EXPECT_TRUE(host_->handed_over);
  EXPECT_TRUE(candidate_->AwaitOwning());
  // The process that still ends has its answers.
  BIM_EXPECT_OK(owner_->Confirm());
  EXPECT_EQ(owner_->Rollback().code(), Code::kFailedPrecondition);
}

TEST_F(DriversTest, ConfirmedByTheCandidate) {
  BecomeReady();
  BIM_ASSERT_OK(candidate_->Confirm(milliseconds(10'000)));
  EXPECT_TRUE(taker_.owns());
  EXPECT_EQ(candidate_->Rollback(milliseconds(1'000)).code(),
            Code::kFailedPrecondition);
  EXPECT_TRUE(Soon([&] { return host_->exited.load(); }));
}

TEST_F(DriversTest, Automatic) {
  StartCandidate();
  BIM_ASSERT_OK(candidate_->Begin(true));
  EXPECT_TRUE(candidate_->AwaitOwning());
  EXPECT_TRUE(taker_.owns());
  EXPECT_TRUE(Soon([&] { return host_->exited.load(); }));
  EXPECT_GE(taker_.loads, 1);
}

TEST_F(DriversTest, WhatWouldBeAnswered) {
  StartCandidate();
  for (const bool confirm : {false, true}) {
    EXPECT_EQ(owner_->Would(confirm).code(), Code::kFailedPrecondition);
    EXPECT_EQ(candidate_->Would(confirm).code(), Code::kFailedPrecondition);
  }
  BIM_EXPECT_OK(candidate_->WouldBegin(false));
  EXPECT_FALSE(owner_->Busy());
  EXPECT_EQ(candidate_->Stage(), CandidateStage::kIdle);
  // Somebody is to decide between two that are one; by itself it may be.
  CandidateHost again(dir_.path(), "old");
  const auto same = MakeCandidate(again, "old");
  EXPECT_THAT(std::string(same->WouldBegin(false).message()),
              HasSubstr("needs two identities"));
  BIM_EXPECT_OK(same->WouldBegin(true));

  BIM_ASSERT_OK(candidate_->Begin(false));
  ASSERT_TRUE(Soon([&] { return owner_->Now().ready; }));
  for (const bool confirm : {false, true}) {
    BIM_EXPECT_OK(owner_->Would(confirm));
    BIM_EXPECT_OK(candidate_->Would(confirm));
  }
  EXPECT_THAT(std::string(candidate_->WouldBegin(false).message()),
              HasSubstr("goes on already"));
  CandidateHost third(dir_.path(), "third");
  EXPECT_THAT(
      std::string(MakeCandidate(third, "third")->WouldBegin(false).message()),
      HasSubstr("cannot hand over to more than one manager"));
  EXPECT_EQ(owner_->Now().phase, "begun");

  BIM_ASSERT_OK(owner_->Confirm());
  EXPECT_TRUE(candidate_->AwaitOwning());
  BIM_EXPECT_OK(owner_->Would(true));
  EXPECT_EQ(owner_->Would(false).message(), owner_->Rollback().message());
  BIM_EXPECT_OK(candidate_->Would(true));
  EXPECT_EQ(candidate_->Would(false).code(), Code::kFailedPrecondition);
  EndOwner();
  // The new one has the disk, and (in this test) no socket on it.
  CandidateHost late(dir_.path(), "late");
  EXPECT_EQ(MakeCandidate(late, "late")->WouldBegin(true).code(),
            Code::kUnavailable);
}

TEST_F(DriversTest, RolledBackAndBegunAgain) {
  BecomeReady();
  BIM_ASSERT_OK(candidate_->Rollback(milliseconds(10'000)));
  EXPECT_FALSE(host_->held);
  EXPECT_TRUE(
      Soon([&] { return candidate_->Stage() == CandidateStage::kIdle; }));
  EXPECT_EQ(owner_->Confirm().code(), Code::kFailedPrecondition);
  BIM_ASSERT_OK(candidate_->Begin(false));
  ASSERT_TRUE(Soon([&] { return owner_->Now().ready; }));
  auto undone =
      std::async(std::launch::async, [&] { return owner_->Rollback(); });
  ASSERT_TRUE(Soon([&] { return owner_->Now().phase == "steady"; }));
  EXPECT_FALSE(host_->held);
  BIM_EXPECT_OK(undone.get());
  EXPECT_FALSE(taker_.owns());
}

// The end of the conversation before is not taken for the new one's.
TEST_F(DriversTest, BegunAgainAtOnce) {
  StartCandidate();
  host_->resuming_ms = 0;
  for (int i = 0; i < 500; ++i) {
    BIM_ASSERT_OK(candidate_->Begin(false));
    BIM_ASSERT_OK(candidate_->Rollback(milliseconds(10'000)));
  }
}

// At whatever moment: the candidate does not wait for one that is gone.
TEST_F(DriversTest, TheOwnerGoesWhileItIsAsked) {
  StartCandidate();
  for (int i = 0; i < 40; ++i) {
    auto begun = std::async(std::launch::async,
                            [&] { return candidate_->Begin(false); });
    std::this_thread::sleep_for(std::chrono::microseconds(10 * i));
    EndOwner();
    EXPECT_NE(begun.get().code(), Code::kDeadlineExceeded) << "round " << i;
    EXPECT_NE(candidate_->Rollback(milliseconds(10'000)).code(),
              Code::kDeadlineExceeded)
        << "round " << i;
    ASSERT_TRUE(
        Soon([&] { return candidate_->Stage() == CandidateStage::kIdle; }));
    StartOwner();
    ASSERT_TRUE(Soon([&] { return candidate_->WouldBegin(false).ok(); }));
  }
  BIM_EXPECT_OK(candidate_->Begin(false));
}

TEST_F(DriversTest, AnOwnerThatDoesNotListenYetIsAwaited) {
  EndOwner();
  TakeDisk();
  StartCandidate();
  auto begun =
      std::async(std::launch::async, [&] { return candidate_->Begin(false); });
  EXPECT_EQ(begun.wait_for(milliseconds(300)), std::future_status::timeout);
  ServeDisk();
  BIM_EXPECT_OK(begun.get());
}

TEST_F(DriversTest, WhatNoDiskTakesIsNotDecided) {
  BecomeReady();
  host_->fail = true;
  EXPECT_EQ(owner_->Confirm().code(), Code::kUnavailable);
  EXPECT_FALSE(host_->exited);
  host_->fail = false;
  ASSERT_TRUE(Soon([&] { return owner_->Now().ready; }));
  BIM_ASSERT_OK(owner_->Confirm());
  EXPECT_TRUE(Soon([&] { return taker_.owns(); }));
}

TEST_F(DriversTest, OneAtATimeAndNotWithItself) {
  BecomeReady();
  CandidateHost other{dir_.path(), "third"};
  const auto third = MakeCandidate(other, "third");
  const base::Status refused = third->Begin(false);
  EXPECT_EQ(refused.code(), Code::kFailedPrecondition);
  EXPECT_THAT(refused.message(), HasSubstr("more than one manager"));
  BIM_ASSERT_OK(owner_->Rollback());
  CandidateHost same{dir_.path(), "old"};
  const auto itself = MakeCandidate(same, "old");
  EXPECT_THAT(itself->Begin(false).message(), HasSubstr("two identities"));
}

TEST_F(DriversTest, TheOwnerIsGone) {
  BecomeReady();
  EndOwner();
  ASSERT_TRUE(Soon(
      [&] { return candidate_->Stage() == CandidateStage::kInterrupted; }));
  EXPECT_THAT(candidate_->Now().message, HasSubstr("bim handover rollback"));
  EXPECT_FALSE(taker_.owns());
  // It may not come back by itself either.
  EXPECT_EQ(Claim(dir_.path(), "old"), nullptr);
  BIM_ASSERT_OK(candidate_->Confirm(milliseconds(10'000)));
  EXPECT_TRUE(taker_.owns());
}

TEST_F(DriversTest, TheOwnerDecidesWhenItIsBack) {
  BecomeReady();
  EndOwner();
  ASSERT_TRUE(Soon(
      [&] { return candidate_->Stage() == CandidateStage::kInterrupted; }));
  EXPECT_EQ(DecideAsOwner({dir_.path()}, "third", false, false).code(),
            Code::kFailedPrecondition);
  // (The candidate looks at the disk from time to time, and holds its lock.)
  const auto roll_back = [&](bool dry_run) {
    return DecideAsOwner({dir_.path()}, "old", false, dry_run).ok();
  };
  ASSERT_TRUE(Soon([&] { return roll_back(/*dry_run=*/true); }));
  EXPECT_EQ(candidate_->Stage(), CandidateStage::kInterrupted);
  ASSERT_TRUE(Soon([&] { return roll_back(/*dry_run=*/false); }));
  EXPECT_TRUE(
      Soon([&] { return candidate_->Stage() == CandidateStage::kIdle; }));
  EXPECT_FALSE(taker_.owns());
  StartOwner();
}

TEST_F(DriversTest, ACandidateThatIsGoneComesBack) {
  BecomeReady();
  candidate_.reset();
  EXPECT_EQ(owner_->Confirm().code(), Code::kDeadlineExceeded);
  StartCandidate();
  EXPECT_TRUE(candidate_->Resume());
  ASSERT_TRUE(Soon([&] { return owner_->Now().ready; }));
  BIM_ASSERT_OK(owner_->Confirm());
  EXPECT_TRUE(Soon([&] { return taker_.owns(); }));
}

TEST_F(DriversTest, ACandidateThatIsDownGetsTheDisksAllTheSame) {
  BecomeReady();
  candidate_.reset();
  ASSERT_TRUE(Soon([&] {
    return owner_->Now().message.find("is down") != std::string::npos;
  }));
  BIM_ASSERT_OK(owner_->Confirm());
  EXPECT_TRUE(Soon([&] { return host_->exited.load(); }));
  EndOwner();
  EXPECT_EQ(Claim(dir_.path(), "old"), nullptr);
  EXPECT_NE(Claim(dir_.path(), "new"), nullptr);
}

TEST_F(DriversTest, SocketsGoOverInOneNetworkNamespace) {
  BecomeReady();
  const auto sockets = candidate_->TakeSockets();
  ASSERT_EQ(sockets.size(), 1u);
  EXPECT_EQ(sockets[0].address, "api x");
  EXPECT_TRUE(sockets[0].fd);
}

TEST_F(DriversTest, WhoSpeaksNothingElseAsksItToStop) {
  Party strange = Self("new", "");
  strange.api = {meta::kApiVersion + 1, meta::kApiVersion + 2};
  const auto candidate = Candidate::Start({.self = strange}, taker_);
  const base::Status begun = candidate->Begin(true);
  EXPECT_EQ(begun.code(), Code::kUnimplemented);
  EXPECT_THAT(begun.message(), HasSubstr("API versions"));
  EXPECT_FALSE(host_->exited);
  BIM_ASSERT_OK(AskToStop(dir_.path(), strange));
  EXPECT_TRUE(Soon([&] { return host_->exited.load(); }));
  EXPECT_FALSE(host_->handed_over);
}

TEST_F(DriversTest, NobodyOwnsIt) {
  EndOwner();
  StartCandidate();
  EXPECT_EQ(candidate_->Begin(false).code(), Code::kNotFound);
  EXPECT_EQ(candidate_->Confirm(milliseconds(1'000)).code(),
            Code::kFailedPrecondition);
  EXPECT_EQ(AskToStop(dir_.path(), Self("new", "")).code(), Code::kUnavailable);
}

TEST_F(DriversTest, WhoTalksNonsenseIsToldSo) {
  const auto root = io::Dir::Open(dir_.path());
  for (const nlohmann::json& first :
       {nlohmann::json{{"bim", "begin"}}, nlohmann::json{{"bim", 5}},
        nlohmann::json{{"bim", "hello"}, {"managerId", "../x"}}}) {
    auto talk = Talk::Connect(*root);
    BIM_ASSERT_OK(talk.status());
    BIM_ASSERT_OK((*talk)->Send(first));
    const auto answer = (*talk)->Receive(milliseconds(5'000));
    BIM_ASSERT_OK(answer.status());
    ASSERT_TRUE(*answer);
    EXPECT_EQ((**answer).document["bim"], "refused");
  }
  EXPECT_FALSE(owner_->Busy());
}

TEST_F(DriversTest, OnlyALivingProcessThatIsKnownIsEnded) {
  // This very process is in the record: told apart by what locks the disk.
  store::OwnerRecord other;
  const auto root = io::Dir::Open(dir_.path());
  other = *store::ReadOwner(*root);
  other.pid_namespace = "pid:[1]";
  BIM_ASSERT_OK(root->ReplaceFile(".bim/owner", store::EncodeOwner(other)));
  EXPECT_THAT(handover::EndOwner(dir_.path()).message(),
              HasSubstr("another pid namespace"));
  store::DescribeSelf(other);
  ++other.start_time;
  BIM_ASSERT_OK(root->ReplaceFile(".bim/owner", store::EncodeOwner(other)));
  EXPECT_THAT(handover::EndOwner(dir_.path()).message(),
              HasSubstr("is locked, but not by"));
}

}  // namespace
}  // namespace bim::handover
