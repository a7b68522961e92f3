// What a manager does while its disks are handed over.

#include "pkg/store/disk.h"
#include "tests/unit/manager/fixture.h"

namespace bim::manager {
namespace {

using base::Code;
using ::testing::HasSubstr;

class HandOverTest : public ManagerTest {
 protected:
  bool IsFree(const std::string& disk) {
    return store::LockUnowned(*io::Dir::Open(dir_ / disk)).ok();
  }
};

TEST_F(HandOverTest, TakesNothingNewUntilItIsToldTo) {
  Begin();
  MakeReady(Spec());
  manager_->Hold("ask the other one");
  for (const base::Status& refused :
       {manager_->Ensure(Spec("other")).status(),
        manager_->Remove("debian", "", false),
        manager_->StartVerify("debian", "", {}, false).status(),
        manager_->AddDisk(dir_ / "a", "", false).status(),
        manager_->RemoveDisk("disk-a", true),
        manager_->RemoveDirected("", "x", "y")}) {
    EXPECT_EQ(refused.code(), Code::kUnavailable);
    EXPECT_THAT(refused.message(), HasSubstr("ask the other one"));
  }
  EXPECT_TRUE(manager_->AwaitIdle(std::chrono::seconds(10)));
  EXPECT_TRUE(manager_->Open("debian", "", "").ok());
  EXPECT_FALSE(IsFree("a"));
  manager_->Unhold();
  MakeReady(Spec("other"));
}

TEST_F(HandOverTest, LetsGoOfTheDisksAndReadsOn) {
  Begin();
  MakeReady(Spec());
  EXPECT_TRUE(manager_->ReleaseDisks());
  EXPECT_TRUE(manager_->ReleaseDisks());
  EXPECT_TRUE(IsFree("a"));
  EXPECT_TRUE(IsFree("b"));
  EXPECT_EQ(Status().state, CopyState::kReady);
  EXPECT_TRUE(manager_->Open("debian", "", "").ok());
  // It never takes them again, and nothing of it is written.
  manager_->CheckDisksNow();
  EXPECT_TRUE(IsFree("a"));
  manager_->Unhold();
  EXPECT_EQ(manager_->Ensure(Spec("other")).status().code(),
            Code::kUnavailable);
  EXPECT_EQ(manager_->PutHandover({}).code(), Code::kAborted);
  End();
  options_.manager_id = "manager-2";
  Begin();
  ASSERT_TRUE(Reaches(CopyState::kReady));
}

TEST_F(HandOverTest, ARegularStopForgetsWhatWasDecided) {
  Begin();
  store::HandoverRecord record;
  record.owner = "manager-1";
  record.candidate = "manager-2";
  for (const auto phase :
       {store::HandoverPhase::kBegun, store::HandoverPhase::kRolledBack}) {
    record.phase = phase;
    BIM_ASSERT_OK(manager_->PutHandover(record));
    manager_->ForgetHandover();
    const auto left = store::ReadHandover(*io::Dir::Open(dir_ / "a"));
    BIM_ASSERT_OK(left.status());
    EXPECT_EQ(left->has_value(), phase == store::HandoverPhase::kBegun);
  }
}

}  // namespace
}  // namespace bim::manager
